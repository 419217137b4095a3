"""The 59 tools that an agent may call on the platform: names, schemas, and the request of each.

One tool is one signed call.  Its arguments go where the tool says, the rest is the JSON body::

    {session_id}  in the path      query  in the query string      text  the body itself

The names and their arguments are those of the published wrapper package that the paper counts
("59 tool wrappers", Flow 1 and Phase 4); requests as in platform-api.md 2 to 8 and 12.  Nothing
here does I/O: `request_of` only says what would be sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec

Schema = dict[str, Any]
Method = Literal["GET", "POST", "PUT", "DELETE"]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the platform, as an agent sees it.

    Args:
        parameters: JSON Schema of the arguments (an object; no others are taken).
        method: of the request.
        path: below the base address; `{name}` stands for an argument.
        category: execution, languages, sessions, services, snapshots, images or system.
        query: arguments that go into the query; objects are written as JSON.
        text: the argument that is the whole body, as plain text.
        creates: makes something that lasts, so the same call again means the same thing.
    """

    name: str
    description: str
    parameters: Schema
    method: Method
    path: str
    category: str
    query: tuple[str, ...] = ()
    text: str | None = None
    creates: bool = False


class ToolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool call sends: a path with its query, and either a JSON object or a text."""

    method: Method
    path: str
    body: dict[str, Any] | None = None
    text: str | None = None


_PLACE = re.compile(r"\{(\w+)\}", re.ASCII)


def request_of(tool: Tool, arguments: Mapping[str, Any]) -> ToolRequest:
    """The request of a call whose arguments fit the tool's schema."""
    left = {name: value for name, value in arguments.items() if value is not None}
    path = _PLACE.sub(lambda place: quote(str(left.pop(place[1])), safe=""), tool.path)
    asked = {name: _written(left.pop(name)) for name in tool.query if name in left}
    if asked:
        path += f"?{urlencode(asked)}"
    if tool.text is not None:
        return ToolRequest(method=tool.method, path=path, text=str(left[tool.text]))
    sends = bool(left) or tool.method in ("POST", "PUT")
    return ToolRequest(method=tool.method, path=path, body=left if sends else None)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


# -- schemas --------------------------------------------------------------------------------------


def text(about: str) -> Schema:
    """A string that says something."""
    return {"type": "string", "minLength": 1, "description": about}


def flag(about: str) -> Schema:
    """Yes or no."""
    return {"type": "boolean", "description": about}


def whole(about: str, least: int, most: int | None = None) -> Schema:
    """An integer within bounds."""
    bounds = {"minimum": least} | ({} if most is None else {"maximum": most})
    return {"type": "integer", **bounds, "description": about}


def choice(about: str, *words: str) -> Schema:
    """One of some words."""
    return {"type": "string", "enum": list(words), "description": about}


def many(about: str, items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "description": about}


def texts(about: str) -> Schema:
    """An object of strings."""
    return {"type": "object", "additionalProperties": {"type": "string"}, "description": about}


def takes(*required: str, **properties: Schema) -> Schema:
    """The arguments of a tool."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


SECONDS_MAX = 900
VCPUS_MAX = 8
NETWORK = choice(
    "zerotrust: no network; semitrusted: through the platform's proxy.", "zerotrust", "semitrusted"
)
_TTL = whole("Seconds the code may run; 60 unless said.", 1, SECONDS_MAX)
_NAME = text("A name to recognize it by.")
_HOT = flag("Take it without stopping what runs.")
_KEPT = whole("Seconds until it is deleted by itself; kept unless said.", 1)
_PORT = whole("A port.", 1, 65_535)
_FILES = many(
    "Files that the program finds under /tmp/input.",
    {
        "type": "object",
        "properties": {"filename": text("Its name."), "content": text("Its bytes in base64.")},
        "required": ["filename", "content"],
    },
)
_ENV = texts("Variables of the environment.")
_CODE = text("The source text.")
_SESSION = text("Which session.")
_SERVICE = text("Which service.")
_SNAPSHOT = text("Which snapshot.")
_IMAGE = text("Which image.")
_COMMAND = text("What to run there.")
_KEY = text("A public key, unsb-pk-...")
_ONE_OFF = {
    "language": text("Name of the language, as getLanguages lists them."),
    "code": _CODE,
    "network_mode": NETWORK,
    "ttl": _TTL,
    "vcpu": whole("CPUs, with 2 GB of memory each.", 1, VCPUS_MAX),
    "env": _ENV,
    "input_files": _FILES,
    "return_artifact": flag("Also give back the compiled program."),
    "return_wasm_artifact": flag("Also give back the program compiled to WebAssembly."),
}
NOTHING = takes()


def _tool(
    category: str,
    name: str,
    request: str,
    about: str,
    parameters: Schema,
    **more: Any,
) -> Tool:
    method, _, path = request.partition(" ")
    return Tool(
        name=name,
        description=about,
        parameters=parameters,
        method=msgspec.convert(method, Method),
        path=path,
        category=category,
        **more,
    )


def _execution() -> list[Tool]:
    once = takes("language", "code", **_ONE_OFF)
    guessed = {"code": _CODE, "network_mode": NETWORK, "ttl": _TTL}
    where = ("network_mode", "ttl")
    job = takes("job_id", job_id=text("Which job."))
    return [
        _tool("execution", "execute", "POST /execute",
              "Run code in a fresh sandbox and wait for its end.", once),
        _tool("execution", "executeCodeAsync", "POST /execute/async",
              "Begin to run code in a fresh sandbox; answers a job_id for getJob.", once,
              creates=True),
        _tool("execution", "run", "POST /run",
              "Run code whose language is guessed (first line, syntax) and wait for its end.",
              takes("code", **guessed, env=_ENV), query=(*where, "env"), text="code"),
        _tool("execution", "runAsync", "POST /run/async",
              "Begin to run code whose language is guessed; answers a job_id for getJob.",
              takes("code", **guessed), query=where, text="code", creates=True),
        _tool("execution", "getJob", "GET /jobs/{job_id}",
              "How a job stands, and its output once it has ended.", job),
        _tool("execution", "listJobs", "GET /jobs", "Jobs that have not ended.", NOTHING),
        _tool("execution", "deleteJob", "DELETE /jobs/{job_id}",
              "Cancel a job; what it had printed so far comes back. It may end first.", job),
    ]  # fmt: skip


def _languages() -> list[Tool]:
    return [
        _tool("languages", "getLanguages", "GET /languages",
              "Languages that code may be in, and other names for them.", NOTHING),
        _tool("languages", "getShells", "GET /shells",
              "Shells and interpreters that a session may run.", NOTHING),
    ]  # fmt: skip


def _acts(category: str, noun: str, place: str, this: Schema) -> list[Tool]:
    """Freeze, wake, lock and unlock."""
    path, one = f"POST /{category}/{{{place}}}", takes(place, **{place: this})
    kind = noun.capitalize()
    return [
        _tool(category, f"freeze{kind}", f"{path}/freeze",
              f"Stop a {noun}'s clock and free its slot; its memory is kept.", one),
        _tool(category, f"unfreeze{kind}", f"{path}/unfreeze",
              f"Go on with a frozen {noun} where it was; needs a free slot.", one),
        *_locks(category, noun, place, this),
    ]  # fmt: skip


def _locks(category: str, noun: str, place: str, this: Schema) -> list[Tool]:
    path, one = f"POST /{category}/{{{place}}}", takes(place, **{place: this})
    kind = noun.capitalize()
    return [
        _tool(category, f"lock{kind}", f"{path}/lock", f"Protect {_a(noun)} from deletion.", one),
        _tool(category, f"unlock{kind}", f"{path}/unlock", f"Let {_a(noun)} be deleted again.",
              one),
    ]  # fmt: skip


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _looks(category: str, noun: str, place: str, this: Schema) -> list[Tool]:
    """Get, list and delete."""
    one, kind = takes(place, **{place: this}), noun.capitalize()
    return [
        _tool(category, f"get{kind}", f"GET /{category}/{{{place}}}", f"What {_a(noun)} is now.",
              one),
        _tool(category, f"list{kind}s", f"GET /{category}", f"The {noun}s of this key.", NOTHING),
        _tool(category, f"delete{kind}", f"DELETE /{category}/{{{place}}}",
              f"Destroy {_a(noun)} for good.", one),
    ]  # fmt: skip


def _sessions() -> list[Tool]:
    this = {"session_id": _SESSION}
    return [
        _tool("sessions", "createSession", "POST /sessions",
              "Make a sandbox that lasts, with a shell or interpreter whose variables persist.",
              takes(shell=text("bash unless said; python3, node ... as getShells lists them."),
                    network_mode=NETWORK,
                    ttl=whole("Seconds it may live; 3600 unless said, 0: the most there is.", 0)),
              creates=True),
        _tool("sessions", "executeInSession", "POST /sessions/{session_id}/execute",
              "Run a command in a session and wait for its end.",
              takes("session_id", "command", **this, command=_COMMAND)),
        *_looks("sessions", "session", "session_id", _SESSION),
        *_acts("sessions", "session", "session_id", _SESSION),
        _tool("sessions", "createSessionSnapshot", "POST /sessions/{session_id}/snapshot",
              "Save what a session holds.",
              takes("session_id", **this, name=_NAME, hot=_HOT, ttl=_KEPT), creates=True),
        _tool("sessions", "restoreSession", "POST /sessions/{session_id}/restore",
              "Put a session back to a snapshot of it.",
              takes("session_id", "snapshot_id", **this, snapshot_id=_SNAPSHOT)),
    ]  # fmt: skip


def _services() -> list[Tool]:
    this = {"service_id": _SERVICE}
    bootstrap = text("The script that starts the program.")
    return [
        _tool("services", "createService", "POST /services",
              "Start a program that stays up behind an address of its own.",
              takes("name", name=text("Its name, and the first part of its address."),
                    bootstrap=text("Address of its script, or a command."),
                    bootstrap_content=bootstrap,
                    ports=many("Ports it listens on.", _PORT), network_mode=NETWORK,
                    custom_domains=many("Other names it answers to.", text("A name.")),
                    input_files=_FILES), creates=True),
        _tool("services", "executeInService", "POST /services/{service_id}/execute",
              "Run a command beside a service's program.",
              takes("service_id", "command", **this, command=_COMMAND)),
        *_looks("services", "service", "service_id", _SERVICE),
        *_acts("services", "service", "service_id", _SERVICE),
        _tool("services", "redeployService", "POST /services/{service_id}/redeploy",
              "Start a service's program anew, from the stored script or another; files stay.",
              takes("service_id", **this, bootstrap_content=bootstrap)),
        _tool("services", "getServiceLogs", "GET /services/{service_id}/logs",
              "What a service has printed.", takes("service_id", **this)),
        _tool("services", "createServiceSnapshot", "POST /services/{service_id}/snapshot",
              "Save what a service holds.",
              takes("service_id", **this, name=_NAME, hot=_HOT, ttl=_KEPT), creates=True),
        _tool("services", "getServiceEnv", "GET /services/{service_id}/env",
              "What a service's vault of variables holds; values are not shown.",
              takes("service_id", **this)),
        _tool("services", "setServiceEnv", "PUT /services/{service_id}/env",
              "Put variables into a service's vault.",
              takes("service_id", "env", **this, env=_ENV)),
        _tool("services", "deleteServiceEnv", "DELETE /services/{service_id}/env",
              "Take variables out of a service's vault.",
              takes("service_id", "keys", **this, keys=many("Their names.", text("A name.")))),
    ]  # fmt: skip


def _snapshots() -> list[Tool]:
    this = {"snapshot_id": _SNAPSHOT}
    return [
        _tool("snapshots", "createSnapshot", "POST /snapshots",
              "Save what a session or service holds.",
              takes("source_type", "source_id",
                    source_type=choice("What it is taken of.", "session", "service"),
                    source_id=text("Which one."), name=_NAME, hot=_HOT, ttl=_KEPT),
              creates=True),
        *_looks("snapshots", "snapshot", "snapshot_id", _SNAPSHOT),
        *_locks("snapshots", "snapshot", "snapshot_id", _SNAPSHOT),
        _tool("snapshots", "restoreSnapshot", "POST /snapshots/{snapshot_id}/restore",
              "Put the session or service back to this snapshot of it.",
              takes("snapshot_id", **this)),
        _tool("snapshots", "cloneSnapshot", "POST /snapshots/{snapshot_id}/clone",
              "Make a new session or service out of a snapshot.",
              takes("snapshot_id", "type", **this,
                    type=choice("What to make.", "session", "service"),
                    name=text("Name of the service; a service needs one."),
                    shell=text("Shell of the session.")), creates=True),
    ]  # fmt: skip


def _images() -> list[Tool]:
    this = {"image_id": _IMAGE}
    other = takes("image_id", "api_key", **this, api_key=_KEY)
    return [
        _tool("images", "publishImage", "POST /images",
              "Make an image, which outlives its source, of a service or a snapshot.",
              takes("source_type", "source_id",
                    source_type=choice("What it is made of.", "service", "snapshot"),
                    source_id=text("Which one."), name=_NAME,
                    description=text("What it is for.")), creates=True),
        *_looks("images", "image", "image_id", _IMAGE),
        *_locks("images", "image", "image_id", _IMAGE),
        _tool("images", "grantImageAccess", "POST /images/{image_id}/grant",
              "Let another key make services of an image.", other),
        _tool("images", "revokeImageAccess", "POST /images/{image_id}/revoke",
              "Take that permission back.", other),
        _tool("images", "transferImage", "POST /images/{image_id}/transfer",
              "Give an image to another key, which owns it from then on.",
              takes("image_id", "to_api_key", **this, to_api_key=_KEY)),
        _tool("images", "setImageVisibility", "POST /images/{image_id}/visibility",
              "Who sees an image: its owner, also granted keys, or all.",
              takes("image_id", "visibility", **this,
                    visibility=choice("Who.", "private", "unlisted", "public"))),
        _tool("images", "spawnFromImage", "POST /images/{image_id}/spawn",
              "Start a service out of an image.",
              takes("image_id", **this, name=_NAME, network_mode=NETWORK,
                    ports=many("Ports it listens on.", _PORT),
                    bootstrap=text("Another script than the image's own.")), creates=True),
        _tool("images", "getImageTrustedKeys", "GET /images/{image_id}/trusted",
              "Keys that an image was granted to.", takes("image_id", **this)),
    ]  # fmt: skip


def _system() -> list[Tool]:
    return [
        _tool("system", "healthCheck", "GET /health", "Whether the platform serves.", NOTHING),
        _tool("system", "getClusterStatus", "GET /cluster",
              "How many sandboxes the platform has, and how many are free.", NOTHING),
        _tool("system", "getSystemStats", "GET /stats", "Load of the platform's machines.",
              NOTHING),
        _tool("system", "listPools", "GET /pools", "The pools that sandboxes come from.", NOTHING),
    ]  # fmt: skip


TOOLS: tuple[Tool, ...] = (
    *_execution(),
    *_languages(),
    *_sessions(),
    *_services(),
    *_snapshots(),
    *_images(),
    *_system(),
)
"""All 59, by category."""
BY_NAME: Mapping[str, Tool] = {tool.name: tool for tool in TOOLS}
