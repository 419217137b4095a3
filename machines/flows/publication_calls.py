"""What flow 10 asks of the platform.

Each call is harmless to repeat, but a transfer: who has given an image away does not reach it any
more, so whether that was done is asked of the image.
"""

from __future__ import annotations

from typing import Any

from engine.clock import minutes
from engine.effects import Again, Call, NotDone, effect
from machines.clients.ports import ClientError, NotFound, Rejected, Unavailable
from machines.clients.ports.images import ImageInfo, Images
from machines.clients.ports.refusals import Refusal, code_of
from machines.clients.ports.snapshots import CopyInfo
from machines.flows.errands import IDLE, key_of, next_of
from machines.flows.keyed import PATIENT, calling, credentials_of
from machines.flows.publication import (
    Barred,
    Cause,
    ClearedUp,
    Declined,
    FoundImage,
    FoundSource,
    Given,
    Grant,
    Granted,
    Keep,
    Publication,
    Published,
    Remove,
    Removed,
    Revoke,
    Revoked,
    Show,
    Shown,
    Spawn,
    Spawned,
    Transfer,
)

LONG_MS = minutes(3)


def images_of(call: Call) -> Images:
    """The platform's images."""
    return call.resource(Images)  # type: ignore[type-abstract]


def _declined(error: ClientError, missing: Cause = "not_granted") -> Declined:
    """What a refusal is about; what is none is raised again."""
    cause: Cause
    if isinstance(error, NotFound):
        cause = missing
    elif isinstance(error, Unavailable) and error.kind == "concurrency":
        cause = "no_slot"
    elif code_of(error) in IDLE:
        cause = "source_idle"
    elif isinstance(error, Rejected):
        forbidden = isinstance(error, Refusal) and error.status == 403
        cause = "not_owner" if forbidden else "refused"
    else:
        raise error
    return Declined(cause=cause, detail=str(error))


@effect(idempotent=True, retry=PATIENT)
async def find(context: Publication, call: Call) -> FoundSource | FoundImage | Declined:
    """Whether an image is to be made, or is there and within reach."""
    if not context.image_id:
        return FoundSource()
    with calling():
        try:
            seen = await images_of(call).image(credentials_of(context), context.image_id)
        except NotFound as error:
            return _declined(error)
    return FoundImage(access=seen.access, visibility=seen.visibility)


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def publish(context: Publication, call: Call) -> Published | Declined:
    """Make it; the same key gives the same one."""
    with calling():
        try:
            made = await _publish(context, call)
        except ClientError as error:
            return _declined(error, missing="source_gone")
    return Published(image_id=made.image_id, visibility=made.visibility)


async def _publish(context: Publication, call: Call) -> ImageInfo:
    return await images_of(call).publish(
        credentials_of(context),
        source_type=context.source_type,
        source_id=context.source_id,
        name=context.name,
        description=context.description,
        key=key_of(call, "image"),
    )


# -- orders ---------------------------------------------------------------------------------------


def order_of(context: Publication) -> Any:
    """The next order, or what is to be done when there is none."""
    order = next_of(context.script, context.line)
    if order is None and context.then == "keep":
        return Keep()
    if order is None and context.then == "remove":
        return Remove() if context.access == "owned" else Keep()
    return order


@effect(retry=PATIENT)
async def heed(
    context: Publication, call: Call
) -> Show | Grant | Revoke | Transfer | Spawn | Remove | Keep | Declined | Again:
    """The owner's next order; without one, a look whether it is still there."""
    order: Show | Grant | Revoke | Transfer | Spawn | Remove | Keep | None = order_of(context)
    return order if order is not None else await _look(context, call)


@heed.reconcile
async def heed_again(
    context: Publication, call: Call
) -> Show | Grant | Revoke | Transfer | Spawn | Remove | Keep | Declined | Again:
    """The same read."""
    return await heed.perform(context, call)  # type: ignore[return-value]


@effect(retry=PATIENT)
async def heed_guest(context: Publication, call: Call) -> Spawn | Keep | Barred | Declined | Again:
    """A guest's next order; without one, a look whether it is still within reach."""
    order = order_of(context)
    if isinstance(order, Spawn | Keep):
        return order
    if order is not None:
        said = type(order).__name__
        return Barred(detail=f"{said}: image {context.image_id} belongs to another key")
    return await _look(context, call)


@heed_guest.reconcile
async def heed_guest_again(
    context: Publication, call: Call
) -> Spawn | Keep | Barred | Declined | Again:
    """The same read."""
    return await heed_guest.perform(context, call)  # type: ignore[return-value]


async def _look(context: Publication, call: Call) -> Declined | Again:
    with calling():
        try:
            await images_of(call).image(credentials_of(context), context.image_id)
        except NotFound as error:
            return _declined(error)
    return Again()


@effect(idempotent=True, retry=PATIENT)
async def show(context: Publication, call: Call) -> Shown | Declined:
    """Change who may use it."""
    with calling():
        try:
            seen = await images_of(call).set_visibility(
                credentials_of(context), context.image_id, context.asked
            )
        except ClientError as error:
            return _declined(error)
    return Shown(visibility=seen.visibility)


@effect(idempotent=True, retry=PATIENT)
async def grant(context: Publication, call: Call) -> Granted | Declined:
    """Let a key use it."""
    return await _set_trusted(context, call, trusted=True) or Granted()


@effect(idempotent=True, retry=PATIENT)
async def revoke(context: Publication, call: Call) -> Revoked | Declined:
    """Do not let a key use it."""
    return await _set_trusted(context, call, trusted=False) or Revoked()


async def _set_trusted(context: Publication, call: Call, *, trusted: bool) -> Declined | None:
    with calling():
        try:
            await images_of(call).set_trusted(
                credentials_of(context), context.image_id, context.receiver, trusted=trusted
            )
        except ClientError as error:
            return _declined(error)
    return None


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def spawn(context: Publication, call: Call) -> Spawned | Declined:
    """Make something of it; the same key gives the same one."""
    with calling():
        try:
            made = await _spawn(context, call)
        except ClientError as error:
            return _declined(error)
    return Spawned(copy=made)


async def _spawn(context: Publication, call: Call) -> CopyInfo:
    return await images_of(call).spawn(
        credentials_of(context),
        context.image_id,
        kind=context.wanted.kind,
        name=context.wanted.name,
        key=key_of(call, f"spawn{len(context.spawned)}"),
    )


@effect(retry=PATIENT)
async def transfer(context: Publication, call: Call) -> Given:
    """Give it away; a refusal leaves it ours."""
    with calling():
        await images_of(call).transfer(credentials_of(context), context.image_id, context.receiver)
    return Given()


@transfer.reconcile
async def was_given(context: Publication, call: Call) -> Given | NotDone:
    """Whether it is ours no more."""
    with calling():
        try:
            seen = await images_of(call).image(credentials_of(context), context.image_id)
        except NotFound:
            return Given()
    return NotDone() if seen.access == "owned" else Given()


# -- removing -------------------------------------------------------------------------------------


@effect(idempotent=True, retry=PATIENT)
async def remove(context: Publication, call: Call) -> Removed:
    """Delete it; somebody's lock is a refusal."""
    with calling():
        await images_of(call).remove(credentials_of(context), context.image_id)
    return Removed()


@effect(idempotent=True, retry=PATIENT)
async def undo_image(context: Publication, call: Call) -> Removed:
    """Delete what this run published, unless it is to be kept, or a lock keeps it."""
    if context.made and not context.keep:
        with calling():
            try:
                await images_of(call).remove(credentials_of(context), context.image_id)
            except Rejected as error:
                if code_of(error) != "locked":
                    raise
    return Removed()


@effect(idempotent=True, retry=PATIENT)
async def undo_spawns(context: Publication, call: Call) -> Removed:
    """End what this run spawned, unless it is to be kept."""
    with calling():
        for one in () if context.keep else context.spawned:
            await images_of(call).remove_spawn(credentials_of(context), one.kind, one.copy_id)
    return Removed()


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def clear_up(context: Publication, call: Call) -> ClearedUp:
    """Learn what may have been made by asking again under its key, and remove it."""
    images, credentials = images_of(call), credentials_of(context)
    with calling():
        try:
            if context.image_id:
                made = await _spawn(context, call)
                await images.remove_spawn(credentials, made.kind, made.copy_id)
            else:
                await images.remove(credentials, (await _publish(context, call)).image_id)
        except (NotFound, Rejected):
            return ClearedUp()
    return ClearedUp()
