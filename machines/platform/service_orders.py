"""Bodies of `/services`, checked once: what comes out of here is well-formed.

A bootstrap is a URL (field `bootstrap`, beginning with `http://` or `https://`: fetched inside the
sandbox, through the egress proxy) or a script (`bootstrap` that is no URL, or `bootstrap_content`).
A script that begins with `#!` chooses its interpreter; any other is bash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from machines.platform import orders
from machines.platform.egress_policy import OWN_NAMES
from machines.platform.orders import VCPUS_MAX, parse_network_mode
from machines.platform.replies import Problem, bad_field, int_field, text_field
from machines.platform.sandbox.backend import (
    EGRESS_PORT,
    FILES_BYTES_MAX,
    Handle,
    Network,
)
from machines.platform.wire import Schema, array, one_of

SERVICE_TYPES = ("minecraft", "mumble", "teamspeak", "source", "tcp", "udp")
BOOTSTRAP_BYTES_MAX = 1024 * 1024
# A bootstrap and its files go into the sandbox together.
INPUT_BYTES_MAX = FILES_BYTES_MAX - BOOTSTRAP_BYTES_MAX
URL_CHARACTERS_MAX = 2_000
PORTS_MAX = 32
# One argument of a program is at most 128 KiB.
COMMAND_BYTES_MAX = 100_000
DOMAINS_MAX = 32
TIMEOUT_MS_DEFAULT = 30_000
NAME_PATTERN = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a service out of an empty sandbox: exactly one of the two is given."""

    url: str | None = None
    script: str | None = None


class ServiceOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `POST /services` body, or what a clone or a spawn asks for.

    `input_files`: path inside -> content.  `prepare` is run in the new sandbox before the
    bootstrap; what it raises is the answer, and nothing of the service stays.
    """

    name: str
    ports: tuple[int, ...] = ()
    bootstrap: Bootstrap | None = None
    network_mode: Network = "semitrusted"
    custom_domains: tuple[str, ...] = ()
    vcpu: int = 1
    service_type: str | None = None
    unfreeze_on_demand: bool = False
    show_freeze_page: bool = True
    input_files: Mapping[str, bytes] = {}
    source_image: str | None = None
    prepare: Callable[[Handle], None] | None = None


class Redeploy(msgspec.Struct, frozen=True, kw_only=True):
    """A checked redeploy body; what is None stays as it is stored."""

    bootstrap: Bootstrap | None = None
    input_files: Mapping[str, bytes] | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A checked PATCH body; what is None stays as it is."""

    name: str | None = None
    ports: tuple[int, ...] | None = None
    custom_domains: tuple[str, ...] | None = None
    vcpu: int | None = None
    unfreeze_on_demand: bool | None = None
    show_freeze_page: bool | None = None


class ServiceCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A checked execute body."""

    command: str
    timeout_ms: int
    input_files: Mapping[str, bytes]


class DomainChange(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `PUT .../domains` body: `kind` is `custom_domains`, `add` or `remove`."""

    kind: str
    domains: tuple[str, ...]

    def applied(self, present: Sequence[str]) -> tuple[str, ...]:
        """The domains after it.

        Raises:
            Problem: 400, too many.
        """
        match self.kind:
            case "add":
                after = (*present, *(one for one in self.domains if one not in present))
            case "remove":
                after = tuple(one for one in present if one not in self.domains)
            case _:
                after = self.domains
        if len(after) > DOMAINS_MAX:
            raise bad_field(self.kind, self.domains, f"at most {DOMAINS_MAX} domains altogether")
        return after


def parse_service(body: dict[str, Any]) -> ServiceOrder:
    """Check a create request.

    Raises:
        Problem: 400 naming the field, the value seen and what was expected.
    """
    if body.get("golden_image") is not None:
        raise bad_field(
            "golden_image",
            body["golden_image"],
            "nothing: golden images are not offered here; use POST /images/{id}/spawn",
        )
    mode = parse_network_mode(body, "semitrusted")
    return ServiceOrder(
        name=parse_name(body),
        ports=parse_ports(body) or (),
        bootstrap=parse_bootstrap(body, mode),
        network_mode=mode,
        custom_domains=parse_domains(body, "custom_domains") or (),
        vcpu=int_field(body, "vcpu", 1, least=1, most=VCPUS_MAX),
        service_type=_service_type(body),
        unfreeze_on_demand=parse_flag(body, "unfreeze_on_demand") or False,
        input_files=parse_files(body) or {},
    )


def parse_redeploy(body: dict[str, Any], network_mode: Network) -> Redeploy:
    """Check a redeploy request.

    Raises:
        Problem: 400.
    """
    return Redeploy(bootstrap=parse_bootstrap(body, network_mode), input_files=parse_files(body))


def parse_change(body: dict[str, Any]) -> Change:
    """Check a PATCH request.

    Raises:
        Problem: 400, also when nothing in it can be changed.
    """
    domains = "domains" if body.get("custom_domains") is None else "custom_domains"
    change = Change(
        name=None if body.get("name") is None else parse_name(body),
        ports=parse_ports(body),
        custom_domains=parse_domains(body, domains),
        vcpu=parse_vcpu(body) if body.get("vcpu") is not None else None,
        unfreeze_on_demand=parse_flag(body, "unfreeze_on_demand"),
        show_freeze_page=parse_flag(body, "show_freeze_page"),
    )
    if change == Change():
        raise Problem(
            400,
            "invalid_request",
            "body: nothing to change. Give one or more of " + ", ".join(Change.__struct_fields__),
        )
    return change


def parse_vcpu(body: dict[str, Any]) -> int:
    """`vcpu`, which must be there.

    Raises:
        Problem: 400.
    """
    if body.get("vcpu") is None:
        raise bad_field("vcpu", None, f"an integer from 1 to {VCPUS_MAX}")
    return int_field(body, "vcpu", 1, least=1, most=VCPUS_MAX)


def parse_command(body: dict[str, Any]) -> ServiceCommand:
    """Check an execute request.  `code` is the paper's word for `command`.

    Raises:
        Problem: 400.
    """
    name = "code" if body.get("command") is None and "code" in body else "command"
    command = text_field(body, name, limit=COMMAND_BYTES_MAX)
    if not _is_plain(command) or len(command.encode()) > COMMAND_BYTES_MAX:
        raise bad_field(name, command, f"at most {COMMAND_BYTES_MAX} bytes of text without NUL")
    return ServiceCommand(
        command=command,
        timeout_ms=int_field(
            body,
            "timeout",
            TIMEOUT_MS_DEFAULT,
            least=1,
            most=orders.COMMAND_TIMEOUT_MS_MAX,
        ),
        input_files=parse_files(body) or {},
    )


def parse_domain_change(body: dict[str, Any]) -> DomainChange:
    """Check a domains request: exactly one of its three forms.

    Raises:
        Problem: 400.
    """
    kinds = [kind for kind in ("custom_domains", "add", "remove") if body.get(kind) is not None]
    if len(kinds) != 1:
        raise bad_field(
            kinds[1] if kinds else "custom_domains",
            body.get(kinds[1]) if kinds else None,
            "exactly one of custom_domains, add and remove: an array of host names",
        )
    return DomainChange(kind=kinds[0], domains=parse_domains(body, kinds[0]) or ())


def parse_name(body: dict[str, Any]) -> str:
    """`name`: a DNS label, in lower case; it becomes a host name.

    Raises:
        Problem: 400.
    """
    name = body.get("name")
    lowered = name.lower() if isinstance(name, str) else ""
    # Ids begin so, and a path may name a service by either.
    if not _NAME.fullmatch(lowered) or lowered.startswith("unsb-"):
        raise bad_field(
            "name", name, "1 to 63 letters, digits and hyphens (a DNS label), not unsb-..."
        )
    return lowered


def parse_ports(body: dict[str, Any], name: str = "ports") -> tuple[int, ...] | None:
    """An array of ports, or the text `8000,9000` that one client sends; None when absent.

    Raises:
        Problem: 400.
    """
    value = body.get(name)
    if value is None:
        return None
    ports = _ports_of_text(value) if isinstance(value, str) else value
    if not isinstance(ports, list) or len(ports) > PORTS_MAX or not all(map(_is_port, ports)):
        raise bad_field(
            name, value, f"at most {PORTS_MAX} ports from 1 to 65535, {EGRESS_PORT} excepted"
        )
    return tuple(dict.fromkeys(ports))


def _is_port(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    # What listens on that one is the way out of the sandbox, which no visitor may use.
    return whole and 1 <= value <= 65_535 and value != EGRESS_PORT


def _ports_of_text(text: str) -> list[int] | None:
    words = [word.strip() for word in text[:400].split(",") if word.strip()]
    if not all(word.isascii() and word.isdecimal() and len(word) <= 5 for word in words):
        return None
    return [int(word) for word in words]


def parse_bootstrap(body: dict[str, Any], network_mode: Network) -> Bootstrap | None:
    """What to start with; None when neither field is given.

    Raises:
        Problem: 400, also for a URL that nothing could fetch.
    """
    given = [
        name for name in ("bootstrap", "bootstrap_content") if body.get(name) not in (None, "")
    ]
    if len(given) == 2:
        raise bad_field("bootstrap_content", body["bootstrap_content"], "no bootstrap beside it")
    if not given:
        return None
    text = text_field(body, given[0], limit=BOOTSTRAP_BYTES_MAX)
    if not _is_plain(text) or len(text.encode()) > BOOTSTRAP_BYTES_MAX:
        raise bad_field(
            given[0],
            text,
            f"at most {BOOTSTRAP_BYTES_MAX} bytes of text without NUL and half surrogates",
        )
    if given[0] == "bootstrap" and text.startswith(("http://", "https://")):
        return Bootstrap(url=_url(text, network_mode))
    return Bootstrap(script=text)


def _url(text: str, network_mode: Network) -> str:
    if len(text) > URL_CHARACTERS_MAX or not text.isascii() or any(c <= " " for c in text):
        raise bad_field("bootstrap", text, f"a URL of at most {URL_CHARACTERS_MAX} characters")
    if network_mode != "semitrusted":
        raise bad_field(
            "bootstrap", text, "a script: a zerotrust service has no network to fetch a URL"
        )
    return text


def parse_domains(body: dict[str, Any], name: str) -> tuple[str, ...] | None:
    """An array of host names, in lower case; None when absent.

    Raises:
        Problem: 400.
    """
    value = body.get(name)
    if value is None:
        return None
    good = isinstance(value, list) and len(value) <= DOMAINS_MAX and all(map(_is_domain, value))
    if not good:
        raise bad_field(
            name,
            value,
            f"an array of at most {DOMAINS_MAX} host names such as www.example.com "
            "(not NAME.on.ANYTHING: those are the services' own; nor the platform's names)",
        )
    return tuple(dict.fromkeys(each.lower() for each in value))


def _is_domain(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 253:
        return False
    labels = value.lower().split(".")
    return (
        len(labels) >= 2
        and all(map(_LABEL.fullmatch, labels))
        and labels[1] != "on"
        and not labels[-1].isdecimal()
        and value.lower() not in OWN_NAMES
    )


def parse_flag(body: dict[str, Any], name: str) -> bool | None:
    """A boolean; None when absent.

    Raises:
        Problem: 400.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, value, "true or false")
    return value


def _service_type(body: dict[str, Any]) -> str | None:
    value = body.get("service_type")
    if value is not None and value not in SERVICE_TYPES:
        raise bad_field("service_type", value, "one of " + ", ".join(SERVICE_TYPES))
    return value


def parse_files(body: dict[str, Any]) -> dict[str, bytes] | None:
    """`input_files` by their path inside; None when absent.

    Raises:
        Problem: 400.
    """
    if body.get("input_files") is None:
        return None
    files = orders.parse_files(body["input_files"])
    if (size := sum(map(len, files.values()))) > INPUT_BYTES_MAX:
        raise bad_field("input_files", f"{size} bytes", f"at most {INPUT_BYTES_MAX} bytes")
    return files


def _is_plain(text: str) -> bool:
    """Whether it can go into a sandbox and a database: no NUL, no half surrogates."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


FILES_SCHEMA: Schema = array(
    {
        "type": "object",
        "properties": {
            "filename": {"type": "string"},
            "content": {"type": "string", "description": "base64"},
        },
        "required": ["filename", "content"],
    }
)
SERVICE_TYPE_SCHEMA: Schema = one_of(*SERVICE_TYPES)
