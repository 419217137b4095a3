"""Flow 8: a long-running program behind an address, from its creation to its end.

::

    creating ─► starting ─► running ─── redeploy ──► redeploying ─► starting ─► running
      │            │        │ │  ▲ └─── set_env, lock, unlock ─► setting_env, locking, unlocking
      │            │        │ │  └─ starting ◄──────────────────────────┐              └─► running
      │            │        │ └─ freeze ─► freezing ─► frozen ─ unfreeze, wake ─► thawing, waking
      │            │        ├─ broke ─► redeploying ─(too often)─► failed
      │            │        ├─ destroy ─► destroying ─► destroyed
      │            │        ├─ hand_over ─► handed_over
      │            │        └─ barred ─► locked, out_of_turn
      │            └─ broke ─► failed       never_answers ─► never_ready
      ├─ declined ─► name_taken, no_slot, refused
      └─ no_answer ─► clearing_up ─► unreachable, unresolved

Promise: a service counts as running when it has answered through the platform, and it has an
address only then.  A redeploy keeps the service, its address and its files; its number grows by
each deployment, so that a redeploy whose reply was lost is not made twice.  However often replies
are lost, there is one service.

The run owns the service: it is destroyed when the run fails or is cancelled, unless it was handed
over on purpose (`handed_over`).  A lock is stronger: what is locked was locked on purpose and is
destroyed by nobody (`locked`).

Source: platform-api.md 6; paper, Flow 8.
"""

from __future__ import annotations

from engine.clock import seconds
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from machines.flows.deployment import (
    Barred,
    Broke,
    Created,
    Declined,
    Deployment,
    Destroy,
    Freeze,
    HandOver,
    Lock,
    LockSet,
    NotClearedUp,
    Ready,
    Redeploy,
    Redeployed,
    ServiceReport,
    SetEnv,
    Unfreeze,
    Unlock,
    Wake,
)
from machines.flows.deployment_calls import (
    await_answer,
    clear_up,
    create,
    destroy,
    freeze,
    heed,
    heed_frozen,
    lock,
    redeploy,
    set_env,
    thaw,
    undo,
    unlock,
    wake,
)
from machines.flows.errands import NoAnswer, noted


class Service(Machine[Deployment]):
    """Create one service, prove that it answers, obey orders, and destroy it in the end."""

    payloads = (NoAnswer, NotClearedUp)

    creating = State(initial=True, effect=create, compensation=undo, on_exhausted="no_answer")
    starting = State(
        effect=await_answer,
        every="pause",
        timeout="readiness",
        on_timeout="never_answers",
        on_exhausted="no_answer",
        invariant="is_silent",
    )
    running = State(
        effect=heed,
        every="pause",
        timeout="attention",
        on_timeout="nobody_asks",
        on_exhausted="no_answer",
        invariant="has_an_address",
        milestone=True,
    )
    setting_env = State(effect=set_env, on_exhausted="no_answer")
    locking = State(effect=lock, on_exhausted="no_answer")
    unlocking = State(effect=unlock, on_exhausted="no_answer")
    freezing = State(effect=freeze, on_exhausted="no_answer", invariant="is_silent")
    frozen = State(
        effect=heed_frozen,
        every="pause",
        timeout="attention",
        on_timeout="nobody_asks",
        on_exhausted="no_answer",
        invariant="is_silent",
        milestone=True,
    )
    thawing = State(effect=thaw, on_exhausted="no_answer", invariant="is_silent")
    waking = State(effect=wake, on_exhausted="no_answer", invariant="is_silent")
    redeploying = State(effect=redeploy, on_exhausted="no_answer", invariant="is_silent")
    destroying = State(
        effect=destroy, undoes="creating", on_exhausted="no_answer", invariant="is_silent"
    )
    clearing_up = State(effect=clear_up, on_exhausted="not_cleared_up", cancellable=False)
    destroyed = State(final=True, invariant="is_nowhere")
    handed_over = State(final=True, invariant="is_there")
    failed = State(final=True, failure=True)
    never_ready = State(final=True, failure=True)
    name_taken = State(final=True, failure=True)
    no_slot = State(final=True, failure=True)
    gone = State(final=True, failure=True)
    refused = State(final=True, failure=True)
    locked = State(final=True, failure=True, invariant="is_locked")
    out_of_turn = State(final=True, failure=True)
    not_destroyed = State(final=True, failure=True)
    unreachable = State(final=True, failure=True)
    unresolved = State(final=True, failure=True)

    created = creating.to(starting)
    ready = starting.to(running)
    never_answers = starting.to(never_ready)
    broke = (
        starting.to(failed)
        | running.to(redeploying, cond="may_restart", on="count_restart")
        | running.to(failed)
        | frozen.to(failed)
    )
    redeploy = running.to(redeploying)
    freeze = running.to(freezing)
    set_env = running.to(setting_env)
    lock = running.to(locking)
    unlock = running.to(unlocking)
    unfreeze = frozen.to(thawing)
    wake = frozen.to(waking)
    destroy = running.to(destroying) | frozen.to(destroying)
    hand_over = running.to(handed_over) | frozen.to(handed_over)
    barred = (
        running.to(locked, cond="is_about_the_lock")
        | running.to(out_of_turn)
        | frozen.to(locked, cond="is_about_the_lock")
        | frozen.to(out_of_turn)
    )
    nobody_asks = (
        running.to(handed_over, cond="is_locked")
        | running.to(destroying)
        | frozen.to(handed_over, cond="is_locked")
        | frozen.to(destroying)
    )
    found_frozen = running.to(frozen)
    found_running = frozen.to(starting)
    frozen_now = freezing.to(frozen)
    thawed = thawing.to(starting) | waking.to(starting)
    env_set = setting_env.to(running)
    lock_set = locking.to(running) | unlocking.to(running)
    redeployed = redeploying.to(starting)
    destroyed_now = destroying.to(destroyed)
    declined = (
        creating.to(name_taken, cond="has_no_name")
        | creating.to(no_slot, cond="has_no_slot")
        | creating.to(refused)
        | starting.to(gone)
        | running.to(gone)
        | frozen.to(gone)
        | freezing.to(gone, cond="has_no_service")
        | freezing.to(refused)
        | thawing.to(gone, cond="has_no_service")
        | thawing.to(no_slot, cond="has_no_slot")
        | thawing.to(refused)
        | waking.to(no_slot)
        | redeploying.to(gone, cond="has_no_service")
        | redeploying.to(no_slot, cond="has_no_slot")
        | redeploying.to(refused)
        | setting_env.to(gone, cond="has_no_service")
        | setting_env.to(refused)
        | locking.to(gone)
        | unlocking.to(gone)
    )
    no_answer = (
        creating.to(clearing_up)
        | destroying.to(not_destroyed)
        | starting.to(unreachable)
        | running.to(unreachable)
        | setting_env.to(unreachable)
        | locking.to(unreachable)
        | unlocking.to(unreachable)
        | freezing.to(unreachable)
        | frozen.to(unreachable)
        | thawing.to(unreachable)
        | waking.to(unreachable)
        | redeploying.to(unreachable)
    )
    cleared_up = clearing_up.to(unreachable)
    not_cleared_up = clearing_up.to(unresolved)

    def pause(self, context: Deployment) -> int:
        return seconds(context.poll_seconds)

    def attention(self, context: Deployment) -> int:
        return seconds(context.attended_seconds)

    def readiness(self, context: Deployment) -> int:
        return seconds(context.ready_seconds)

    # -- guards ---------------------------------------------------------------------------------

    def may_restart(self, context: Deployment) -> bool:
        """It has not failed too often, and there is something to run."""
        return context.restarts < context.restarts_max and bool(context.bootstrap)

    def is_about_the_lock(self, event: Barred) -> bool:
        return event.cause == "locked"

    def has_no_name(self, event: Declined) -> bool:
        return event.cause == "name_taken"

    def has_no_slot(self, event: Declined) -> bool:
        return event.cause == "no_slot"

    def has_no_service(self, event: Declined) -> bool:
        return event.cause == "gone"

    # -- actions --------------------------------------------------------------------------------

    def on_created(self, context: Deployment, event: Created) -> Deployment:
        return self.but(
            context, service_id=event.service_id, url=event.url, deployment=event.deployment
        )

    def on_ready(self, context: Deployment, event: Ready) -> Deployment:
        return self.but(
            context, url=event.url, deployment=event.deployment, http_status=event.http_status
        )

    def on_enter_running(self, context: Deployment) -> Deployment:
        return self.but(context, address=context.url)

    def on_exit_running(self, context: Deployment) -> Deployment:
        return self.but(context, address="")

    def count_restart(self, context: Deployment) -> Deployment:
        return self.but(context, restarts=context.restarts + 1)

    def on_broke(self, context: Deployment, event: Broke) -> Deployment:
        return self.but(context, reason=event.detail)

    def on_redeploy(self, context: Deployment, event: Redeploy) -> Deployment:
        """A bootstrap that is given is the one from now on."""
        bootstrap = event.bootstrap or context.bootstrap
        return self.but(noted(context, event), bootstrap=bootstrap)

    def on_redeployed(self, context: Deployment, event: Redeployed) -> Deployment:
        return self.but(context, deployment=event.deployment, reason="")

    def on_freeze(self, context: Deployment, event: Freeze) -> Deployment:
        return noted(context, event)

    def on_unfreeze(self, context: Deployment, event: Unfreeze) -> Deployment:
        return noted(context, event)

    def on_wake(self, context: Deployment, event: Wake) -> Deployment:
        return noted(context, event)

    def on_lock(self, context: Deployment, event: Lock) -> Deployment:
        return noted(context, event)

    def on_unlock(self, context: Deployment, event: Unlock) -> Deployment:
        return noted(context, event)

    def on_destroy(self, context: Deployment, event: Destroy) -> Deployment:
        return noted(context, event)

    def on_hand_over(self, context: Deployment, event: HandOver) -> Deployment:
        return noted(context, event)

    def on_set_env(self, context: Deployment, event: SetEnv) -> Deployment:
        """Keep what is to be written, until it is."""
        return self.but(noted(context, event), env=event.env)

    def on_env_set(self, context: Deployment) -> Deployment:
        return self.but(context, env=None)

    def on_lock_set(self, context: Deployment, event: LockSet) -> Deployment:
        return self.but(context, locked=event.locked)

    def on_thawed(self, context: Deployment) -> Deployment:
        return self.but(context, thaws=context.thaws + 1)

    def on_found_running(self, context: Deployment) -> Deployment:
        return self.but(context, thaws=context.thaws + 1)

    def on_barred(self, context: Deployment, event: Barred) -> Deployment:
        return self.but(context, reason=event.detail)

    def on_never_answers(self, context: Deployment) -> Deployment:
        return self.but(context, reason=f"no answer within {context.ready_seconds} s")

    def on_declined(self, context: Deployment, event: Declined) -> Deployment:
        return self.but(context, reason=event.detail)

    def on_destroyed_now(self, context: Deployment) -> Deployment:
        return self.but(context, service_id="")

    # The journal has the words of the last refusal.
    def on_no_answer(self, context: Deployment, event: NoAnswer) -> Deployment:
        return self.but(context, reason=f"{event.effect} was given up")

    def on_not_cleared_up(self, context: Deployment, event: NotClearedUp) -> Deployment:
        """Keep that something may live on."""
        return self.but(context, reason=f"{context.reason}, and so was {event.effect}")

    # -- contracts ------------------------------------------------------------------------------

    @requires(ready)
    def did_answer(self, event: Ready) -> bool:
        """Through the platform, and not with an error of the server's."""
        return event.http_status < 500

    @requires(destroy)
    def is_not_locked(self, context: Deployment) -> bool:
        """What was locked on purpose is unlocked on purpose, first."""
        return not context.locked

    @requires(wake)
    def wakes_on_demand(self, context: Deployment) -> bool:
        """A visit alone does not wake the others."""
        return context.unfreeze_on_demand

    @ensures(redeployed)
    def is_a_new_deployment(self, old: Deployment, new: Deployment) -> bool:
        """The same service, begun once more."""
        return new.deployment > old.deployment and new.service_id == old.service_id

    @ensures(lock_set)
    def lock_is_as_asked(self, new: Deployment, event: LockSet) -> bool:
        return new.locked == event.locked

    @invariant
    def only_what_is_there_is_locked(self, context: Deployment) -> bool:
        return not context.locked or bool(context.service_id)

    @invariant
    def restarts_are_bounded(self, context: Deployment) -> bool:
        return context.restarts <= context.restarts_max

    def has_an_address(self, context: Deployment) -> bool:
        return bool(context.address) and bool(context.service_id)

    def is_silent(self, context: Deployment) -> bool:
        """Nobody is sent to what does not answer."""
        return not context.address

    def is_nowhere(self, context: Deployment) -> bool:
        return not context.service_id and not context.address

    def is_there(self, context: Deployment) -> bool:
        return bool(context.service_id)

    def is_locked(self, context: Deployment) -> bool:
        return context.locked

    def output(self, context: Deployment) -> ServiceReport:
        """What there is now, and what became of it."""
        return ServiceReport(
            service_id=context.service_id,
            url=context.url if context.service_id else "",
            deployments=context.deployment,
            restarts=context.restarts,
            locked=context.locked,
            reason=context.reason,
        )
