"""What a layer of flow 13 asks of the platform; each call is harmless to repeat."""

from __future__ import annotations

import hashlib
import shlex

import msgspec

from engine.clock import minutes
from engine.effects import Call, effect
from engine.errors import OutcomeUnknown, Permanent, Transient
from engine.retry import Retry
from machines.clients.ports import (
    ClientError,
    Credentials,
    NotFound,
    Platform,
    Record,
    ReplyLost,
    Unavailable,
)
from machines.flows import evidence, recursion
from machines.flows.layer import (
    SEMITRUSTED,
    STDOUT_CHARACTERS_MAX,
    ChildLost,
    ClearedUp,
    Created,
    Equipped,
    Executed,
    ExecutionFailed,
    Layer,
    Released,
)

SAID_CHARACTERS_MAX = 300
PATIENT = Retry(attempts=200, first_ms=250, max_ms=15_000)


def _credentials(context: Layer) -> Credentials:
    if context.secret_key is None:
        raise Permanent("this layer has no secret key")
    return Credentials(
        public_key=context.public_key, secret_key=context.secret_key, offset_ms=context.offset_ms
    )


def _later(error: ClientError) -> Exception:
    """What a failed call means when performing it again with its key is harmless."""
    if isinstance(error, Unavailable):
        return Transient(str(error), retry_after_ms=error.retry_after_ms)
    if isinstance(error, ReplyLost):
        return OutcomeUnknown(str(error))
    return Permanent(str(error))


@effect(idempotent=True, retry=PATIENT)
async def equip(context: Layer, call: Call) -> Equipped:
    """Take the scripts along, if the platform can run them."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        languages = await platform.languages(_credentials(context))
    except ClientError as error:
        raise _later(error) from error
    if "python" not in languages:
        raise Permanent(f"the platform has no python; it has {', '.join(languages)}")
    tools = evidence.source() + recursion.source()
    return Equipped(digest=hashlib.sha256(tools.encode()).hexdigest())


@effect(idempotent=True, retry=PATIENT)
async def create_session(context: Layer, call: Call) -> Created:
    """Create the child sandbox; the same key gives the same one."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        session = await platform.create_session(  # noqa: S604 - the name of a shell, not a flag
            _credentials(context),
            shell="bash",
            network_mode=context.network_mode,
            ttl_seconds=context.session_ttl_seconds,
            key=call.key,
        )
    except ClientError as error:
        raise _later(error) from error
    return Created(session_id=session.session_id)


@effect(idempotent=True, retry=PATIENT)
async def delete_session(context: Layer, call: Call) -> Released:
    """End the child sandbox, and what it may have made beside it; no error when they are gone."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        await platform.delete_session(_credentials(context), context.session_id)
        if context.network_mode == SEMITRUSTED:
            await _end_all(platform, context)
    except ClientError as error:
        raise _later(error) from error
    return Released()


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(3))
async def inspect_child(context: Layer, call: Call) -> Executed | ChildLost | ExecutionFailed:
    """Look around inside the child; the same key runs the command once."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        done = await platform.execute(
            _credentials(context), context.session_id, greeting(context), key=call.key
        )
    except NotFound:
        return ChildLost()
    except ClientError as error:
        raise _later(error) from error
    if done.exit_code != 0:
        return ExecutionFailed(exit_code=done.exit_code)
    return Executed(stdout=done.stdout[:STDOUT_CHARACTERS_MAX], latency_ms=done.duration_ms)


@effect(idempotent=True, retry=PATIENT)
async def clear_sessions(context: Layer, call: Call) -> ClearedUp:
    """End every sandbox of this layer's key; there is at most the one nobody told us of."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        await _end_all(platform, context)
    except ClientError as error:
        raise _later(error) from error
    return ClearedUp()


async def _end_all(platform: Platform, context: Layer) -> None:
    """End every sandbox of this layer's key, which is its own alone."""
    for session in await platform.sessions(_credentials(context)):
        await platform.delete_session(_credentials(context), session.session_id)


def greeting(context: Layer) -> str:
    """The command of a layer: a line for people, the evidence, and what came of a try to recurse.

    The secret stands in what bash reads, and goes by a pipe to the one script that needs it.
    """
    ask = {"url": recursion.INSIDE_URL}
    if context.network_mode == SEMITRUSTED:
        credentials = _credentials(context)
        ask["public_key"] = credentials.public_key
        ask["secret_key"] = credentials.secret_key.reveal()
    line = shlex.quote(line_of(context))
    return f"echo {line}; {evidence.command()} && {recursion.command(ask)}"


def line_of(context: Layer) -> str:
    return f"turtle {context.depth} of {context.max_depth} was here"


def split_answer(stdout: str) -> tuple[str, str]:
    """(the line for people, the evidence) of a greeting's output."""
    line, _, rest = stdout.partition("\n")
    return line.strip(), rest.partition("\n")[0].strip()


class Sibling(Record):
    """What came of a try to make a sandbox from inside one: its id, or why there is none."""

    sibling: str = ""
    reason: str = ""


def sibling_of(stdout: str) -> Sibling:
    """What a greeting's output says of the try; a sandbox may say anything."""
    lines = stdout.split("\n", 3)
    try:
        told = msgspec.json.decode(lines[2] if len(lines) > 2 else "", type=Sibling)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return Sibling(reason="the sandbox did not say")
    return Sibling(sibling=_shown(told.sibling), reason=_shown(told.reason))


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)[:SAID_CHARACTERS_MAX]


def is_answer(context: Layer, stdout: str) -> bool:
    """Whether this is what a greeting gives: its line, with evidence behind it.

    Where the network leads to the platform, a sibling belongs to it, made and ended.
    """
    if not _is_greeted(context, stdout):
        return False
    told = sibling_of(stdout)
    return context.network_mode != SEMITRUSTED or (bool(told.sibling) and not told.reason)


def why_not_answered(context: Layer, stdout: str) -> str:
    """What is wrong with an output that is no answer."""
    if not _is_greeted(context, stdout):
        return "the child did not answer the greeting"
    return f"the child could not make a sibling: {sibling_of(stdout).reason}"


def _is_greeted(context: Layer, stdout: str) -> bool:
    line, inspection = split_answer(stdout)
    return line == line_of(context) and inspection.startswith("{")
