"""What flow 9 asks of the platform; each call is harmless to repeat."""

from __future__ import annotations

from engine.clock import minutes
from engine.effects import Again, Call, effect
from machines.clients.ports import ClientError, NotFound, Rejected
from machines.clients.ports.refusals import code_of
from machines.clients.ports.snapshots import CopyInfo, SnapshotInfo, Snapshots
from machines.flows.capture import (
    Barred,
    Capture,
    Captured,
    Cause,
    ClearedUp,
    Clone,
    Cloned,
    Declined,
    Keep,
    Lock,
    LockSet,
    Remove,
    Removed,
    Restore,
    RestoreDone,
    Unlock,
)
from machines.flows.errands import IDLE, key_of, next_of
from machines.flows.keyed import PATIENT, calling, credentials_of

LONG_MS = minutes(3)


def snapshots_of(call: Call) -> Snapshots:
    """The platform's snapshots."""
    return call.resource(Snapshots)  # type: ignore[type-abstract]


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def capture(context: Capture, call: Call) -> Captured | Declined:
    """Take it; the same key gives the same one."""
    with calling():
        try:
            taken = await _take(context, call)
        except NotFound as error:
            return Declined(cause="source_gone", detail=str(error))
        except Rejected as error:
            return _declined(error)
    return Captured(
        snapshot_id=taken.snapshot_id,
        source_id=taken.source_id,
        level=taken.level,
        lost=taken.lost,
        size_bytes=taken.size_bytes,
    )


async def _take(context: Capture, call: Call) -> SnapshotInfo:
    return await snapshots_of(call).take(
        credentials_of(context),
        source_type=context.source_type,
        source_id=context.source_id,
        name=context.name,
        hot=context.hot,
        ttl_seconds=context.snapshot_ttl_seconds,
        key=key_of(call, "snapshot"),
    )


def _declined(error: Rejected) -> Declined:
    """What a refusal is about; one that passes is for `calling` to translate."""
    code = code_of(error)
    if code == "restore_in_progress":
        raise error
    cause: Cause = "source_idle" if code in IDLE else "refused"
    return Declined(cause=cause, detail=str(error))


@effect(retry=PATIENT)
async def heed(
    context: Capture, call: Call
) -> Restore | Clone | Lock | Unlock | Remove | Keep | Barred | Declined | Again:
    """The next order of the script; without one, a look whether the snapshot is still there."""
    order: Restore | Clone | Lock | Unlock | Remove | Keep | None
    order = next_of(context.script, context.line)
    if order is None and context.then == "keep":
        order = Keep()
    if order is None and context.then == "remove":
        order = Remove()
    if order is not None:
        return Barred() if isinstance(order, Remove) and context.locked else order
    with calling():
        try:
            await snapshots_of(call).snapshot(credentials_of(context), context.snapshot_id)
        except NotFound as error:
            return Declined(cause="gone", detail=str(error))
    return Again()


@heed.reconcile
async def heed_again(
    context: Capture, call: Call
) -> Restore | Clone | Lock | Unlock | Remove | Keep | Barred | Declined | Again:
    """The same read."""
    return await heed.perform(context, call)  # type: ignore[return-value]


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def restore(context: Capture, call: Call) -> RestoreDone | Declined:
    """Write it back."""
    with calling():
        try:
            done = await snapshots_of(call).restore(credentials_of(context), context.snapshot_id)
        except NotFound as error:
            return await _which_is_gone(context, call, error)
        except Rejected as error:
            return _declined(error)
    return RestoreDone(target_id=done.target_id)


async def _which_is_gone(context: Capture, call: Call, error: NotFound) -> Declined:
    """The snapshot, or what it would be written over."""
    try:
        await snapshots_of(call).snapshot(credentials_of(context), context.snapshot_id)
    except NotFound:
        return Declined(cause="gone", detail=str(error))
    return Declined(cause="source_gone", detail=str(error))


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def clone(context: Capture, call: Call) -> Cloned | Declined:
    """Make something of it; the same key gives the same one."""
    with calling():
        try:
            made = await _clone(context, call)
        except NotFound as error:
            return Declined(cause="gone", detail=str(error))
        except Rejected as error:
            return _declined(error)
    return Cloned(copy=made)


async def _clone(context: Capture, call: Call) -> CopyInfo:
    return await snapshots_of(call).clone(
        credentials_of(context),
        context.snapshot_id,
        kind=context.wanted.kind,
        name=context.wanted.name,
        key=key_of(call, f"clone{len(context.clones)}"),
    )


@effect(idempotent=True, retry=PATIENT)
async def lock(context: Capture, call: Call) -> LockSet | Declined:
    """Lock it."""
    return await _set_locked(context, call, locked=True)


@effect(idempotent=True, retry=PATIENT)
async def unlock(context: Capture, call: Call) -> LockSet | Declined:
    """Unlock it."""
    return await _set_locked(context, call, locked=False)


async def _set_locked(context: Capture, call: Call, *, locked: bool) -> LockSet | Declined:
    with calling():
        try:
            await snapshots_of(call).set_locked(
                credentials_of(context), context.snapshot_id, locked=locked
            )
        except NotFound as error:
            return Declined(cause="gone", detail=str(error))
    return LockSet(locked=locked)


@effect(idempotent=True, retry=PATIENT)
async def remove(context: Capture, call: Call) -> Removed:
    """Delete it; somebody's lock is a refusal."""
    with calling():
        await snapshots_of(call).remove(credentials_of(context), context.snapshot_id)
    return Removed()


@effect(idempotent=True, retry=PATIENT)
async def undo(context: Capture, call: Call) -> Removed:
    """Remove what this run made, clones first, unless it is to be kept, or a lock keeps it."""
    if context.keep:
        return Removed()
    with calling():
        for made in context.clones:
            await snapshots_of(call).remove_copy(credentials_of(context), made.kind, made.copy_id)
        if context.snapshot_id:
            await _remove_unless_locked(context, call)
    return Removed()


async def _remove_unless_locked(context: Capture, call: Call) -> None:
    try:
        await snapshots_of(call).remove(credentials_of(context), context.snapshot_id)
    except Rejected as error:
        if code_of(error) != "locked":
            raise


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def clear_up(context: Capture, call: Call) -> ClearedUp:
    """Learn what may have been made by asking again under its key, and remove it."""
    with calling():
        try:
            if context.snapshot_id:
                made = await _clone(context, call)
                await snapshots_of(call).remove_copy(
                    credentials_of(context), made.kind, made.copy_id
                )
            else:
                taken = await _take(context, call)
                await snapshots_of(call).remove(credentials_of(context), taken.snapshot_id)
        except ClientError as error:
            if not isinstance(error, NotFound | Rejected):
                raise
    return ClearedUp()
