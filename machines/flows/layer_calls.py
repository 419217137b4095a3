"""What a layer of flow 13 asks of the platform; each call is harmless to repeat."""

from __future__ import annotations

import hashlib
import shlex

from engine.clock import minutes
from engine.effects import Call, effect
from engine.errors import OutcomeUnknown, Permanent, Transient
from engine.retry import Retry
from machines.clients.ports import (
    ClientError,
    Credentials,
    NotFound,
    Platform,
    ReplyLost,
    Unavailable,
)
from machines.flows import evidence
from machines.flows.layer import (
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
    """Take the inspection script along, if the platform can run it."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        languages = await platform.languages(_credentials(context))
    except ClientError as error:
        raise _later(error) from error
    if "python" not in languages:
        raise Permanent(f"the platform has no python; it has {', '.join(languages)}")
    return Equipped(digest=hashlib.sha256(evidence.command().encode()).hexdigest())


@effect(idempotent=True, retry=PATIENT)
async def create_session(context: Layer, call: Call) -> Created:
    """Create the child sandbox; the same key gives the same one."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        session = await platform.create_session(  # noqa: S604 - the name of a shell, not a flag
            _credentials(context),
            shell="bash",
            network_mode="zerotrust",
            ttl_seconds=context.session_ttl_seconds,
            key=call.key,
        )
    except ClientError as error:
        raise _later(error) from error
    return Created(session_id=session.session_id)


@effect(idempotent=True, retry=PATIENT)
async def delete_session(context: Layer, call: Call) -> Released:
    """End the child sandbox; one that is gone already is no error."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        await platform.delete_session(_credentials(context), context.session_id)
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
        for session in await platform.sessions(_credentials(context)):
            await platform.delete_session(_credentials(context), session.session_id)
    except ClientError as error:
        raise _later(error) from error
    return ClearedUp()


def greeting(context: Layer) -> str:
    """The command of a layer: a line for people, then the evidence as one line of JSON."""
    return f"echo {shlex.quote(line_of(context))}; {evidence.command()}"


def line_of(context: Layer) -> str:
    return f"turtle {context.depth} of {context.max_depth} was here"


def split_answer(stdout: str) -> tuple[str, str]:
    """(the line for people, the evidence) of a greeting's output."""
    line, _, rest = stdout.partition("\n")
    return line.strip(), rest.strip()


def is_answer(context: Layer, stdout: str) -> bool:
    """Whether this is what a greeting gives: its line, with evidence behind it."""
    line, inspection = split_answer(stdout)
    return line == line_of(context) and inspection.startswith("{")
