"""What flow 7 asks of the platform: one effect for each operation on a session.

Everything may be repeated: creating and running a cell by their key, the rest because it is the
same once or twice; only `extend` adds again, and is asked about first.
"""

from __future__ import annotations

from engine.clock import minutes, seconds
from engine.effects import Call, NotDone, effect
from engine.errors import OutcomeUnknown, Transient
from machines.clients.ports import ClientError, NotFound, Unauthorized
from machines.clients.ports.refusals import Refusal
from machines.clients.ports.sessions import CellEnd, Sessions, SessionView
from machines.flows.backoff import after, lacks_slot
from machines.flows.keyed import PATIENT, credentials_of
from machines.flows.session_run import (
    OUTPUT_BYTES_MAX,
    CellEnded,
    CellResult,
    Created,
    Declined,
    Over,
    Refused,
    Seen,
    SessionRun,
    order_of,
    over_of,
    problem_of,
    seen_of,
)
from machines.flows.text import kept

BUSY = frozenset({"session_busy", "session_starting"})
"""Codes that say: in a moment."""
GONE = "the platform knows no session of this id"


def _sessions_of(call: Call) -> Sessions:
    return call.resource(Sessions)  # type: ignore[type-abstract]


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(2))
async def create(context: SessionRun, call: Call) -> Created | Refused:
    """Create the session under the run's key; the same key never makes two.

    One that has ended since, while a reply was lost, is looked at soon: its time is over.
    """
    problem = problem_of(context)
    if problem is not None:
        return problem
    try:
        view = await _sessions_of(call).create(
            credentials_of(context), order_of(context), key=call.key
        )
    except Refusal as error:
        isolated = error.code != "sandbox_unavailable"
        return Refused(kind="rejected" if isolated else "unavailable", detail=str(error))
    except Unauthorized as error:
        return Refused(kind="unauthorized", detail=str(error))
    except ClientError as error:
        if lacks_slot(error) and call.attempt >= context.slot_attempts:
            return Refused(kind="no_slot", detail=str(error))
        raise after(error) from error
    ended = view.status == "terminated"
    return Created(
        session_id=view.session_id,
        vcpu=view.vcpu,
        expires_ms=min(view.expires_ms, call.now_ms) if ended else view.expires_ms,
        idles_ms=view.idles_ms,
    )


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(16))
async def run_cell(context: SessionRun, call: Call) -> CellEnded | Declined:
    """Run the first cell; the same key runs it once."""
    try:
        end = await _sessions_of(call).run(
            credentials_of(context),
            context.session_id,
            context.cells[0],
            timeout_ms=seconds(context.cell_seconds),
            key=call.key,
        )
    except Refusal as error:
        if error.code == "outcome_unknown":
            return CellEnded(result=CellResult("unknown"), at_ms=call.now_ms)
        return _declined(error)
    except NotFound as error:
        return Declined(detail=str(error))
    except ClientError as error:
        raise after(error) from error
    return CellEnded(result=_result(end), at_ms=call.now_ms)


def _declined(error: Refusal) -> Declined:
    """A refusal that stays.

    Raises:
        Transient: it will not stay.
    """
    if error.code in BUSY:
        raise Transient(str(error)) from error
    return Declined(detail=str(error))


def _result(end: CellEnd) -> CellResult:
    """An exit code counts only for a cell that ended by itself."""
    stdout, cut = kept(end.stdout, OUTPUT_BYTES_MAX)
    stderr, cut_too = kept(end.stderr, OUTPUT_BYTES_MAX)
    done = end.status == "completed" and end.exit_code is not None
    stopped = "timed_out" if end.status == "timeout" else "unknown"
    return CellResult(
        outcome="completed" if done else stopped,  # type: ignore[arg-type]
        exit_code=end.exit_code if done else None,
        stdout=stdout,
        stderr=stderr,
        truncated=cut or cut_too,
        duration_ms=end.duration_ms,
    )


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(2))
async def freeze(context: SessionRun, call: Call) -> Seen | Declined:
    """Stop its processes and give its slots back."""
    try:
        view = await _sessions_of(call).freeze(credentials_of(context), context.session_id)
    except ClientError as error:
        return _refused(error, context, call)
    return _changed(view, "frozen")


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(2))
async def unfreeze(context: SessionRun, call: Call) -> Seen | Declined:
    """Let its processes go on, when there is a slot for it."""
    try:
        view = await _sessions_of(call).unfreeze(credentials_of(context), context.session_id)
    except ClientError as error:
        return _refused(error, context, call)
    return _changed(view, "running")


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(2))
async def boost(context: SessionRun, call: Call) -> Seen | Declined:
    """Give it so many vCPUs."""
    try:
        view = await _sessions_of(call).boost(
            credentials_of(context), context.session_id, context.amount
        )
    except ClientError as error:
        return _refused(error, context, call)
    return _changed(view, "running")


@effect(retry=PATIENT)
async def extend(context: SessionRun, call: Call) -> Seen | Declined:
    """Add to its time to live."""
    try:
        view = await _sessions_of(call).extend(
            credentials_of(context), context.session_id, context.amount
        )
    except ClientError as error:
        return _refused(error, context, call)
    return _changed(view, "running", "frozen")


@extend.reconcile
async def find_extended(context: SessionRun, call: Call) -> Seen | Declined | NotDone:
    """Whether its time to live has grown; at the platform's most, adding again changes nothing."""
    try:
        view = await _sessions_of(call).look(credentials_of(context), context.session_id)
    except NotFound as error:
        return Declined(detail=str(error))
    except ClientError as error:
        raise OutcomeUnknown(str(error)) from error
    if view.status != "terminated" and view.expires_ms <= context.expires_ms:
        return NotDone()
    return _changed(view, "running", "frozen")


def _refused(error: ClientError, context: SessionRun, call: Call) -> Declined:
    """What a failed change means.

    Raises:
        EffectError: it is worth another attempt, or the question what became of it.
    """
    if isinstance(error, Refusal):
        return _declined(error)
    if isinstance(error, NotFound):
        return Declined(detail=str(error))
    if lacks_slot(error) and call.attempt >= context.slot_attempts:
        return Declined(detail=str(error))
    raise after(error) from error


def _changed(view: SessionView, *expected: str) -> Seen | Declined:
    if view.status in expected:
        return seen_of(view)
    why = f" ({view.reason})" if view.reason else ""
    return Declined(detail=f"the session is {view.status}{why}, expected {' or '.join(expected)}")


@effect(idempotent=True, retry=PATIENT)
async def look(context: SessionRun, call: Call) -> Seen | Over:
    """The platform's truth."""
    try:
        view = await _sessions_of(call).look(credentials_of(context), context.session_id)
    except NotFound:
        return Over(reason=GONE)
    except ClientError as error:
        raise after(error) from error
    return over_of(view, frozen=context.frozen) if view.status == "terminated" else seen_of(view)


@effect(idempotent=True, retry=PATIENT)
async def finish(context: SessionRun, call: Call) -> Over | Declined:
    """End it."""
    try:
        view = await _sessions_of(call).end(credentials_of(context), context.session_id)
    except NotFound:
        return Over(reason=GONE)
    except Refusal as error:
        return _declined(error)
    except ClientError as error:
        raise after(error) from error
    return over_of(view, frozen=context.frozen)
