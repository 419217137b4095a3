"""What flow 5 knows, hears and asks: its context, its events, and its calls of the platform.

Everything in a sandbox is done by three commands, each one request: fetch, install, check
(`tool_inside`).  A command that was killed, or whose answer is not one line of JSON, *broke off*:
its state is entered into anew, with another key, and the command looks at what is there.
"""

from __future__ import annotations

import json
import shlex
from typing import Literal

import msgspec

from engine.clock import minutes
from engine.effects import Call, effect
from engine.events import Event, GaveUp
from machines.clients.ports import (
    NotFound,
    Platform,
    Record,
    Rejected,
    Unauthorized,
)
from machines.clients.ports.tools import Tools
from machines.flows import tool_inside
from machines.flows.keyed import PATIENT, Keyed, calling, credentials_of

HOME = "/root/.turtles"
TOOLBOX = "/opt/turtles"
TIMEOUT_MS = minutes(10)
REASON_CHARACTERS_MAX = 300
_STEP_MS = minutes(3)

Kind = Literal[
    "unresolved",
    "checksum",
    "no_toolbox",
    "no_python",
    "session_gone",
    "disk_full",
    "denied",
    "unusable",
]
"""Why an installation is turned down for good."""
KINDS: tuple[Kind, ...] = (
    "unresolved",
    "checksum",
    "no_toolbox",
    "no_python",
    "session_gone",
    "disk_full",
    "denied",
    "unusable",
)


class Installation(Keyed, kw_only=True):
    """What to install where, and how far it is.

    Args:
        session_id: a session of the key's, made with a toolbox, whose shell is bash.
        digest: SHA-256 of the wheel in hexadecimal; empty: that of the running code.
        home: where it is installed inside.
        toolbox: where the platform shows it inside.
        timeout_ms: how long each step may take, attempts and pauses included.
        filename, version, record, record_sha256: of the wheel, as this process builds it.
        seen, proof, salt: the digest that the sandbox told, that of salt and wheel, the salt.
        repairs: how often a step had to be done again.
    """

    session_id: str
    digest: str = ""
    home: str = HOME
    toolbox: str = TOOLBOX
    timeout_ms: int = TIMEOUT_MS
    filename: str = ""
    version: str = ""
    record: str = ""
    record_sha256: str = ""
    seen: str = ""
    proof: str = ""
    salt: str = ""
    python: str = ""
    repairs: int = 0
    found_sha256: str = ""
    tools: int = 0
    path: str = ""
    reason: str = ""


class Installed(Record):
    """The product is in the sandbox: `path` runs it there, `tools` wrappers are listed by it."""

    digest: str
    version: str
    tools: int
    path: str


class Resolved(Event, tag="resolved"):
    """Which wheel it is."""

    filename: str
    version: str
    digest: str
    record: str
    record_sha256: str


class Downloaded(Event, tag="downloaded"):
    """The wheel is in the sandbox, which says this of it; `salt` is what we sent."""

    digest: str
    proof: str
    salt: str
    python: str


class Compared(Event, tag="compared"):
    """What the proof has to be, by our own bytes."""

    proof: str


class Unpacked(Event, tag="unpacked"):
    """It is in its place; `kept`: it was there already, whole."""

    kept: bool


class Checked(Event, tag="checked"):
    """What the installed files are, and what the program said.

    Args:
        record_sha256: of RECORD, written anew from the files.
        tools: how many different tools it lists with a schema.
        unusable: how many it lists without one.
    """

    record_sha256: str
    version: str
    tools: int
    unusable: int
    path: str


class BrokeOff(Event, tag="broke_off"):
    """The command ended without an answer, or found the installation damaged."""

    reason: str


class TurnedDown(Event, tag="turned_down"):
    """It cannot be done here."""

    kind: Kind
    reason: str


class Removed(Event, tag="removed"):
    """Nothing of it is left, as far as anybody can still tell."""


class Unanswered(GaveUp, tag="unanswered"):
    """No answer after all attempts."""


class Told(Record):
    """One line of `tool_inside`.  Whatever a sandbox says, only these fields are heard."""

    refused: str = ""
    reason: str = ""
    digest: str = ""
    proof: str = ""
    python: str = ""
    kept: bool | None = None
    damaged: tuple[str, ...] = ()
    record: str = ""
    version: str = ""
    tools: int = 0
    unusable: int = 0
    path: str = ""


@effect(idempotent=True, retry=PATIENT)
async def resolve(context: Installation, call: Call) -> Resolved | TurnedDown:
    """Ask the running code which wheel it is; no request."""
    try:
        package = await call.resource(Tools).package()  # type: ignore[type-abstract]
    except Rejected as error:
        return _turned_down("unresolved", str(error))
    if context.digest not in ("", package.sha256):
        return _turned_down(
            "unresolved",
            f"asked for the wheel {context.digest}, but this program's own is {package.sha256}",
        )
    return Resolved(
        filename=package.filename,
        version=package.version,
        digest=package.sha256,
        record=package.record,
        record_sha256=package.record_sha256,
    )


@effect(idempotent=True, retry=PATIENT, timeout_ms=_STEP_MS)
async def download(context: Installation, call: Call) -> Downloaded | BrokeOff | TurnedDown:
    """Have the wheel copied into the sandbox and hashed there."""
    told = await _told(context, call, "fetch")
    if not isinstance(told, Told):
        return told
    if not (told.digest and told.proof):
        return BrokeOff(reason="the sandbox did not say what it fetched")
    return Downloaded(
        digest=_short(told.digest),
        proof=_short(told.proof),
        salt=call.key,
        python=_short(told.python),
    )


@effect(idempotent=True, retry=PATIENT)
async def compare(context: Installation, call: Call) -> Compared | TurnedDown:
    """Say what the proof has to be; no request."""
    try:
        tools = call.resource(Tools)  # type: ignore[type-abstract]
        return Compared(proof=await tools.proof(context.salt))
    except Rejected as error:
        return _turned_down("unresolved", str(error))


@effect(idempotent=True, retry=PATIENT, timeout_ms=_STEP_MS)
async def install(context: Installation, call: Call) -> Unpacked | BrokeOff | TurnedDown:
    """Have it unpacked and compiled."""
    told = await _told(context, call, "install")
    if not isinstance(told, Told):
        return told
    if told.kept is None:
        return BrokeOff(reason="the sandbox did not say that it installed anything")
    return Unpacked(kept=told.kept)


@effect(idempotent=True, retry=PATIENT, timeout_ms=_STEP_MS)
async def check(context: Installation, call: Call) -> Checked | BrokeOff | TurnedDown:
    """Have every file looked at, and the program run."""
    told = await _told(context, call, "check")
    if not isinstance(told, Told):
        return told
    if told.damaged or not told.record:
        what = ", ".join(told.damaged) or "the sandbox did not say which files it has"
        return BrokeOff(reason=f"damaged: {what}"[:REASON_CHARACTERS_MAX])
    return Checked(
        record_sha256=_short(told.record),
        version=_short(told.version),
        tools=told.tools,
        unusable=told.unusable,
        path=_short(told.path),
    )


@effect(idempotent=True, retry=PATIENT, timeout_ms=_STEP_MS)
async def uninstall(context: Installation, call: Call) -> Removed:
    """Have everything removed again, if there was ever anything to fetch.

    It undoes `resolve`, before which nothing is made: a download whose answer was lost is removed,
    too.  Where nobody may look any more, nothing is left of ours.
    """
    if context.filename:
        await _told(context, call, "remove")
    return Removed()


async def _told(context: Installation, call: Call, step: str) -> Told | BrokeOff | TurnedDown:
    """Do a step inside; what it said, or why there is nothing to hear."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    with calling():
        try:
            done = await platform.execute(
                credentials_of(context),
                context.session_id,
                command(context, step, call.key),
                key=call.key,
            )
        except NotFound as error:
            return _turned_down("session_gone", str(error))
        except Unauthorized as error:
            return _turned_down("denied", f"{error.reason}: {error}")
        except Rejected as error:
            return _turned_down("unusable", str(error))
    if done.exit_code != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-REASON_CHARACTERS_MAX:]
        return BrokeOff(reason=_text(f"{step}: exit code {done.exit_code}, {said}"))
    return _heard(step, done.stdout)


def _heard(step: str, stdout: str) -> Told | BrokeOff | TurnedDown:
    lines = stdout.strip().splitlines()
    try:
        told = msgspec.json.decode(lines[-1] if lines else "", type=Told)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return BrokeOff(reason=_text(f"{step}: no answer, but {stdout[:100]!r}"))
    if not told.refused:
        return told
    kind: Kind = next((kind for kind in KINDS if kind == told.refused), "unusable")
    return _turned_down(kind, told.reason)


def _turned_down(kind: Kind, reason: str) -> TurnedDown:
    return TurnedDown(kind=kind, reason=_text(reason))


def _text(reason: str) -> str:
    """A reason that may come from a sandbox: short, and without control characters."""
    return "".join(one if one.isprintable() else "?" for one in reason)[:REASON_CHARACTERS_MAX]


def _short(value: str) -> str:
    return _text(value)[:100]


def command(context: Installation, step: str, salt: str) -> str:
    """A bash command that does a step of `tool_inside` with the toolbox's own interpreter."""
    ask = json.dumps(
        {
            "step": step,
            "home": context.home,
            "toolbox": context.toolbox,
            "filename": context.filename,
            "digest": context.digest,
            "record": context.record,
            "salt": salt,
        }
    )
    python = shlex.quote(f"{context.toolbox}/bin/python")
    house = shlex.quote(f"{context.toolbox}/wheelhouse")
    return (
        f"if [ ! -d {house} ]; then echo {_said('no_toolbox', 'the session shows none')}\n"
        f"elif ! {python} -c ''; then echo {_said('no_python', 'the interpreter does not start')}\n"
        f"else {python} -I -c {shlex.quote(tool_inside.source())} {shlex.quote(ask)}\n"
        "fi"
    )


def _said(kind: Kind, reason: str) -> str:
    return shlex.quote(json.dumps({"refused": kind, "reason": reason}))
