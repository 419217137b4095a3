"""What a platform may answer a `Service`, for its verification.

Four runs: one without a script, whose service is frozen and thawed by others, and fails; one that
writes a variable, redeploys, freezes and thaws; one that locks, tries to destroy, and may be told
to unlock; one that freezes and is woken by a visit, or asks for what cannot be then.
What one of them is refused, the others are not: that would tell nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
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
    ServiceOrder,
    SetEnv,
    Thawed,
    Unfreeze,
    Unlock,
    Wake,
)
from machines.flows.deployment_calls import barred
from machines.flows.errands import next_of
from machines.flows.f08_service import Service

SERVICE, URL = "service", "http://name.on.here/"
POLL_SECONDS, TIME_SECONDS = 2, 1
CAUSES: dict[str, tuple[Cause, ...]] = {
    "creating": ("name_taken", "no_slot", "refused"),
    "freezing": ("gone", "refused"),
    "thawing": ("gone", "no_slot", "refused"),
    "waking": ("no_slot",),
    "redeploying": ("gone", "no_slot", "refused"),
    "setting_env": ("gone", "refused"),
}
"""What a platform may refuse where; elsewhere only the service can be gone."""
ALONE = ("creating", "starting", "running", "frozen")
"""Refused to the run without a script; the others get past these."""
CHANGES = ("redeploy", "freeze", "thaw", "wake", "lock", "unlock", "set_env")


class OfService(Environment):
    """A platform that does what it is asked, or says why not."""

    machine = Service
    scope = Scope(contexts=4, messages=0, cancels=False, attempts=2)

    def contexts(self) -> Iterator[Deployment]:
        """See the module."""
        yield context()
        yield context(SetEnv(env=Secret("A=1")), Redeploy(), Freeze(), Unfreeze(), then="hand_over")
        yield context(Lock(), Destroy())
        yield context(Freeze(), Wake(), unfreeze_on_demand=True, then="destroy")

    # -- the platform ---------------------------------------------------------------------------

    @payloads("created")
    def services(self) -> Iterator[Created]:
        """The first deployment of it."""
        yield Created(service_id=SERVICE, url=URL, deployment=1)

    @payloads("ready")
    def answers(self, context: Deployment) -> Iterator[Ready]:
        """It answers."""
        yield Ready(url=URL, deployment=context.deployment, http_status=200)

    @payloads("broke")
    def failures(self, context: Deployment) -> Iterator[Broke]:
        """The program ends; to the run without a script."""
        if not context.script and not context.thaws:
            yield Broke(detail="failed")

    @payloads("found_frozen")
    def frozen_by_others(self, context: Deployment) -> Iterator[FoundFrozen]:
        """Once, and not after it failed."""
        if is_fresh(context):
            yield FoundFrozen()

    @payloads("found_running")
    def thawed_by_others(self, context: Deployment) -> Iterator[FoundRunning]:
        """A visitor came."""
        if not context.script:
            yield FoundRunning()

    @payloads("frozen_now")
    def freezes(self) -> Iterator[Frozen]:
        """It stands still."""
        yield Frozen()

    @payloads("thawed")
    def thaws(self) -> Iterator[Thawed]:
        """It goes on."""
        yield Thawed()

    @payloads("env_set")
    def vaults(self) -> Iterator[EnvSet]:
        """It is written."""
        yield EnvSet()

    @payloads("lock_set")
    def locks(self, state: str) -> Iterator[LockSet]:
        """As asked."""
        yield LockSet(locked=state == "locking")

    @payloads("redeployed")
    def deployments(self, context: Deployment) -> Iterator[Redeployed]:
        """One more."""
        yield Redeployed(deployment=context.deployment + 1)

    @payloads("destroyed_now")
    def ends(self) -> Iterator[Gone]:
        """It is gone."""
        yield Gone()

    @payloads("cleared_up")
    def clearings(self) -> Iterator[ClearedUp]:
        """Nothing is left."""
        yield ClearedUp()

    @payloads("declined")
    def refusals(self, context: Deployment, state: str) -> Iterator[Declined]:
        """Every cause there is, where it can be."""
        if state in ALONE and not is_fresh(context):
            return
        for cause in CAUSES.get(state, ("gone",)):
            yield Declined(cause=cause, detail=cause)

    # -- orders ---------------------------------------------------------------------------------

    @payloads("redeploy")
    def to_redeploy(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """When it is its turn; so are the others."""
        yield from turn(context, state, Redeploy)

    @payloads("freeze")
    def to_freeze(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """Also as a message, when it is locked."""
        yield from turn(context, state, Freeze)
        if context.locked:
            yield Freeze()

    @payloads("unfreeze")
    def to_unfreeze(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """See above."""
        yield from turn(context, state, Unfreeze)

    @payloads("wake")
    def to_wake(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """See above."""
        yield from turn(context, state, Wake)

    @payloads("set_env")
    def to_set_env(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """See above."""
        yield from turn(context, state, SetEnv)

    @payloads("lock")
    def to_lock(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """See above."""
        yield from turn(context, state, Lock)

    @payloads("unlock")
    def to_unlock(self, context: Deployment) -> Iterator[ServiceOrder]:
        """As a message, to what is locked."""
        if context.locked:
            yield Unlock()

    @payloads("destroy")
    def to_destroy(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """Also as a message, to the run without a script."""
        yield from turn(context, state, Destroy)
        if is_fresh(context):
            yield Destroy()

    @payloads("hand_over")
    def to_hand_over(self, context: Deployment, state: str) -> Iterator[ServiceOrder]:
        """Also as a message, to the run without a script, while its service is frozen."""
        yield from turn(context, state, HandOver)
        if is_fresh(context) and state == "frozen":
            yield HandOver()

    @payloads("barred")
    def barriers(self, context: Deployment, state: str) -> Iterator[Barred]:
        """What cannot be now; of the last run, as if its script asked for something else."""
        found = barred(context, order_of(context), frozen=state == "frozen")
        if found is not None:
            yield found
        elif context.unfreeze_on_demand:
            yield Barred(cause="out_of_turn", detail="out of turn")

    # -- what must hold, by the ledger of the outside -------------------------------------------

    @always
    def one_service(self, done: Sequence[Done]) -> bool:
        """Whatever was lost on the way."""
        return len({one.key for one in done if one.effect == "create"}) <= 1

    @always
    def nothing_is_left_behind(
        self, status: str, state: str, context: Deployment, done: Sequence[Done]
    ) -> bool:
        """When a run ends otherwise than by handing it over, it has asked for its end.

        Or says that it does not know whether there is one.
        """
        if status not in ("completed", "failed", "cancelled") or (
            state in ("handed_over", "unresolved")
        ):
            return True
        names = {one.effect for one in done}
        made = any(isinstance(one.event, Created) for one in done)
        return not made or bool(names & {"destroy", "undo", "clear_up"})

    @always
    def a_destroyed_one_is_left_alone(self, done: Sequence[Done]) -> bool:
        """Nothing is asked of what is gone."""
        names = [one.effect for one in done]
        destroyed = names.index("destroy") if "destroy" in names else len(names)
        return not set(names[destroyed:]) & set(CHANGES)

    @always
    def runs_because_it_answered(
        self, state: str, context: Deployment, done: Sequence[Done]
    ) -> bool:
        """An address is what somebody has got an answer from."""
        told = {one.event.url for one in done if isinstance(one.event, Ready)}
        return not context.address or (state == "running" and context.address in told)

    @always
    def ends_for_the_cause_given(
        self, state: str, context: Deployment, done: Sequence[Done]
    ) -> bool:
        """What a run says was refused, was refused."""
        if state not in ("name_taken", "no_slot", "gone", "refused"):
            return True
        given = {one.event.cause for one in done if isinstance(one.event, Declined)}
        return state in given and context.reason == state

    @always
    def a_written_secret_is_forgotten(self, state: str, context: Deployment) -> bool:
        """The vault has it; the run keeps it no longer than it must."""
        return state != "running" or context.env is None

    @sometimes
    def is_redeployed_by_itself(self, state: str, context: Deployment) -> bool:
        """It failed, and runs again."""
        return state == "running" and context.restarts == 1

    @sometimes
    def is_woken_by_a_visit(self, state: str, done: Sequence[Done]) -> bool:
        """What freezing with wake is for."""
        return state == "running" and any(one.effect == "wake" for one in done)

    @sometimes
    def is_given_up_in_doubt(self, state: str, done: Sequence[Done]) -> bool:
        """The service was made, and nobody said so."""
        return state == "unreachable" and any(isinstance(one.event, Created) for one in done)


def context(*script: ServiceOrder, **changes: Any) -> Deployment:
    """A first context with orders."""
    fields: dict[str, Any] = {
        "public_key": "key",
        "secret_key": Secret("secret"),
        "name": "name",
        "ports": (80,),
        "bootstrap": "run",
        "poll_seconds": POLL_SECONDS,
        "attended_seconds": TIME_SECONDS,
        "ready_seconds": TIME_SECONDS,
        "restarts_max": 1,
        "script": script,
    }
    return Deployment(**(fields | changes))


def is_fresh(context: Deployment) -> bool:
    """The run without a script, before anything happened to its service."""
    return not (context.script or context.restarts or context.thaws)


def order_of(context: Deployment) -> Any:
    """The next order of the script; the last is what `then` says."""
    order = next_of(context.script, context.line)
    if order is None:
        order = {"destroy": Destroy(), "hand_over": HandOver()}.get(context.then)
    return order


def turn(context: Deployment, state: str, kind: type[ServiceOrder]) -> Iterator[ServiceOrder]:
    """The next order, if it is of that kind and can be followed."""
    order = order_of(context)
    if isinstance(order, kind) and barred(context, order, frozen=state == "frozen") is None:
        yield order
