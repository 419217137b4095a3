"""What flow 8 asks of the platform.

Each call is harmless to repeat, but a redeploy: whether that was begun, the number of the
deployment tells.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from engine.clock import minutes
from engine.effects import Again, Call, NotDone, effect
from engine.errors import Transient
from machines.clients.ports import (
    ClientError,
    NotFound,
    Rejected,
    ReplyLost,
    Unavailable,
)
from machines.clients.ports.refusals import code_of
from machines.clients.ports.services import ServiceInfo, Services
from machines.flows.deployment import (
    Barred,
    Broke,
    Cause,
    ClearedUp,
    Created,
    Declined,
    Deployment,
    Destroy,
    EnvSet,
    FoundFrozen,
    FoundRunning,
    Freeze,
    Frozen,
    Gone,
    HandOver,
    Lock,
    LockSet,
    Ready,
    Redeploy,
    Redeployed,
    SetEnv,
    Thawed,
    Unfreeze,
    Unlock,
    Wake,
)
from machines.flows.errands import key_of, next_of
from machines.flows.keyed import PATIENT, calling, credentials_of

LONG_MS = minutes(2)
DEAD = ("failed", "stopped")
WHILE_FROZEN = (Unfreeze, Wake, Destroy, HandOver)

Heeded: TypeAlias = Destroy | HandOver | Barred | Broke | Declined | Again
HeededRunning: TypeAlias = Redeploy | Freeze | SetEnv | Lock | Unlock | FoundFrozen | Heeded
HeededFrozen: TypeAlias = Unfreeze | Wake | FoundRunning | Heeded
"""What comes of looking for the next order."""


def services_of(call: Call) -> Services:
    """The platform's services."""
    return call.resource(Services)  # type: ignore[type-abstract]


def _declined(error: ClientError) -> Declined:
    """What a refusal is about; what is none is raised again."""
    cause: Cause
    if isinstance(error, NotFound):
        cause = "gone"
    elif isinstance(error, Unavailable) and error.kind == "concurrency":
        cause = "no_slot"
    elif isinstance(error, Rejected):
        cause = "name_taken" if code_of(error) == "name_taken" else "refused"
    else:
        raise error
    return Declined(cause=cause, detail=str(error))


# -- making it, and waiting until it answers ------------------------------------------------------


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def create(context: Deployment, call: Call) -> Created | Declined:
    """Create it; the same key gives the same one."""
    with calling():
        try:
            made = await _create(context, call)
        except ClientError as error:
            return _declined(error)
    return Created(service_id=made.service_id, url=made.url, deployment=made.deployment)


async def _create(context: Deployment, call: Call) -> ServiceInfo:
    return await services_of(call).create(
        credentials_of(context),
        name=context.name,
        ports=context.ports,
        bootstrap=context.bootstrap,
        network_mode=context.network_mode,
        vcpu=context.vcpu,
        unfreeze_on_demand=context.unfreeze_on_demand,
        key=key_of(call, "service"),
    )


@effect(retry=PATIENT)
async def await_answer(context: Deployment, call: Call) -> Ready | Broke | Declined | Again:
    """Look whether it runs, and ask it something through the platform."""
    with calling():
        try:
            seen = await services_of(call).service(credentials_of(context), context.service_id)
        except NotFound as error:
            return _declined(error)
        if seen.state in DEAD:
            return Broke(detail=f"{seen.state}: {seen.reason or 'no reason given'}")
        if seen.state != "running":
            return Again()
        status = 0
        if context.ports and context.health_path:
            try:
                status = (await services_of(call).visit(seen.url, context.health_path)).status
            except (Unavailable, ReplyLost):
                return Again()
    if status >= 500:
        return Again()
    return Ready(url=seen.url, deployment=seen.deployment, http_status=status)


@await_answer.reconcile
async def await_answer_again(context: Deployment, call: Call) -> Ready | Broke | Declined | Again:
    """The same read."""
    return await await_answer.perform(context, call)  # type: ignore[return-value]


# -- orders ---------------------------------------------------------------------------------------


def _order(context: Deployment) -> Any:
    """The next order, or what is to be done when there is none."""
    order = next_of(context.script, context.line)
    if order is None and context.then == "destroy":
        return Destroy()
    if order is None and context.then == "hand_over":
        return HandOver()
    return order


def barred(context: Deployment, order: Any, *, frozen: bool) -> Barred | None:
    """Why an order of the script cannot be followed now, if it cannot."""
    if isinstance(order, Destroy) and context.locked:
        return Barred(cause="locked", detail=f"service {context.name} is locked: unlock it first")
    if isinstance(order, Wake) and not context.unfreeze_on_demand:
        return Barred(cause="out_of_turn", detail=f"{context.name} does not wake on demand")
    ways = isinstance(order, WHILE_FROZEN) if frozen else not isinstance(order, Unfreeze | Wake)
    if ways:
        return None
    said = type(order).__name__
    now = "frozen" if frozen else "running"
    return Barred(cause="out_of_turn", detail=f"{said}: service {context.name} is {now}")


async def _look(context: Deployment, call: Call) -> str | Broke | Declined:
    with calling():
        try:
            seen = await services_of(call).service(credentials_of(context), context.service_id)
        except NotFound as error:
            return _declined(error)
    if seen.state in DEAD:
        return Broke(detail=f"{seen.state}: {seen.reason or 'no reason given'}")
    return seen.state


@effect(retry=PATIENT)
async def heed(context: Deployment, call: Call) -> HeededRunning:
    """The next order for a running service; without one, a look whether it still runs."""
    order = _order(context)
    if order is not None:
        return barred(context, order, frozen=False) or order
    seen = await _look(context, call)
    if not isinstance(seen, str):
        return seen
    return FoundFrozen() if seen == "frozen" else Again()


@heed.reconcile
async def heed_again(context: Deployment, call: Call) -> HeededRunning:
    """The same read."""
    return await heed.perform(context, call)  # type: ignore[return-value]


@effect(retry=PATIENT)
async def heed_frozen(context: Deployment, call: Call) -> HeededFrozen:
    """The next order for a frozen service; without one, a look whether it is frozen still."""
    order = _order(context)
    if order is not None:
        return barred(context, order, frozen=True) or order
    seen = await _look(context, call)
    if not isinstance(seen, str):
        return seen
    return FoundRunning() if seen == "running" else Again()


@heed_frozen.reconcile
async def heed_frozen_again(context: Deployment, call: Call) -> HeededFrozen:
    """The same read."""
    return await heed_frozen.perform(context, call)  # type: ignore[return-value]


@effect(idempotent=True, retry=PATIENT)
async def freeze(context: Deployment, call: Call) -> Frozen | Declined:
    """Freeze it."""
    return await _changed(context, call, "freeze") or Frozen()


@effect(idempotent=True, retry=PATIENT)
async def thaw(context: Deployment, call: Call) -> Thawed | Declined:
    """Unfreeze it; a slot must be free."""
    return await _changed(context, call, "thaw") or Thawed()


@effect(idempotent=True, retry=PATIENT)
async def lock(context: Deployment, call: Call) -> LockSet | Declined:
    """Lock it."""
    return await _changed(context, call, "lock") or LockSet(locked=True)


@effect(idempotent=True, retry=PATIENT)
async def unlock(context: Deployment, call: Call) -> LockSet | Declined:
    """Unlock it."""
    return await _changed(context, call, "unlock") or LockSet(locked=False)


@effect(idempotent=True, retry=PATIENT)
async def set_env(context: Deployment, call: Call) -> EnvSet | Declined:
    """Write the vault; the same variables twice are the same."""
    return await _changed(context, call, "set_env") or EnvSet()


async def _changed(context: Deployment, call: Call, what: str) -> Declined | None:
    services, credentials = services_of(call), credentials_of(context)
    service_id = context.service_id
    with calling():
        try:
            if what in ("freeze", "thaw"):
                await services.set_frozen(credentials, service_id, frozen=what == "freeze")
            elif what in ("lock", "unlock"):
                await services.set_locked(credentials, service_id, locked=what == "lock")
            elif context.env is not None:
                await services.set_env(credentials, service_id, context.env)
        except ClientError as error:
            return _declined(error)
    return None


@effect(idempotent=True, retry=PATIENT)
async def wake(context: Deployment, call: Call) -> Thawed | Declined:
    """Visit it; the platform lets it go on for that."""
    path = context.health_path or "/"
    with calling():
        try:
            answer = await services_of(call).visit(context.url, path)
        except Unavailable as error:
            return _declined(error)
    if answer.status >= 500:
        raise Transient(f"the visit was answered {answer.status}")
    return Thawed()


@effect(retry=PATIENT, timeout_ms=LONG_MS)
async def redeploy(context: Deployment, call: Call) -> Redeployed | Declined:
    """Run its bootstrap again."""
    with calling():
        try:
            await services_of(call).redeploy(
                credentials_of(context), context.service_id, context.bootstrap
            )
            seen = await services_of(call).service(credentials_of(context), context.service_id)
        except ClientError as error:
            return _declined(error)
    return Redeployed(deployment=seen.deployment)


@redeploy.reconcile
async def was_redeployed(context: Deployment, call: Call) -> Redeployed | Declined | NotDone:
    """Whether there is a deployment that we do not know of."""
    with calling():
        try:
            seen = await services_of(call).service(credentials_of(context), context.service_id)
        except NotFound as error:
            return _declined(error)
    return Redeployed(deployment=seen.deployment) if _is_newer(seen, context) else NotDone()


def _is_newer(seen: ServiceInfo, context: Deployment) -> bool:
    return seen.deployment > context.deployment


# -- ending it ------------------------------------------------------------------------------------


@effect(idempotent=True, retry=PATIENT)
async def destroy(context: Deployment, call: Call) -> Gone:
    """End it; somebody's lock is a refusal."""
    with calling():
        await services_of(call).destroy(credentials_of(context), context.service_id)
    return Gone()


@effect(idempotent=True, retry=PATIENT)
async def undo(context: Deployment, call: Call) -> Gone:
    """End what this run made, unless a lock keeps it."""
    if context.service_id:
        with calling():
            try:
                await services_of(call).destroy(credentials_of(context), context.service_id)
            except Rejected as error:
                if code_of(error) != "locked":
                    raise
    return Gone()


@effect(idempotent=True, retry=PATIENT, timeout_ms=LONG_MS)
async def clear_up(context: Deployment, call: Call) -> ClearedUp:
    """Learn what may have been made by asking again under its key, and end it."""
    with calling():
        try:
            made = await _create(context, call)
        except (NotFound, Rejected):
            return ClearedUp()
        await services_of(call).destroy(credentials_of(context), made.service_id)
    return ClearedUp()
