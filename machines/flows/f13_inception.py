"""Flow 13, inception: a sandbox that buys a sandbox, and again, as deep as the money goes.

::

    inside_sandbox -> discover_tools -> fetch_pricing -> create_invoice -> send_payment
         (child: Discovery)               (child: Payment, followed by its milestones)
    -> poll_confirmation -> receive_keys -> prove_identity -> install_tools -> create_child
                                            (child: Authentication)
    -> execute_in_child --+--> descend --> release_child -> done | cut_short
         |                |    (child: Inception, depth + 1)
         |                +--> release_child          (the deepest layer)
         +--> bury_child -> create_child              (the sandbox died with its platform)

    create_child -- given up --> clear_up -> no_slot  (an attempt whose reply was lost may have
                                                       made a sandbox: none is left behind)

The ten named states are the paper's (Flow 13).  One run is one layer.  What a layer executes in
its child sandbox is the inspection that the next layer's Discovery weighs: the next layer knows
where it is from evidence gathered there.  No key is handed down; every layer buys its own.

The same command tries to make a sandbox beside the child, from inside it.  In `semitrusted`
chains it has this layer's key and must get one, through the platform's proxy (a slot more: tier
5); in `zerotrust` ones it has neither key nor network, and the report says how that failed.

Bounds, each with a refusal of its own: `too_deep`, `unaffordable` (the subtree's budget, in
cents), `no_slot` (concurrency), and latency, which is measured and reported.

Promise: every layer has a key of its own and paid for it once; a sandbox that was created is
owned by a live run or has been destroyed, whatever crashed in between.
"""

from __future__ import annotations

from typing import Any

from engine.clock import hours
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.table import Child
from machines.flows.layer import (
    DEPTH_MAX,
    LOST_MAX,
    PAYMENT_MILESTONES,
    Bought,
    Created,
    Discovered,
    Equipped,
    EquippedNot,
    Executed,
    ExecutionFailed,
    ExecutionGivenUp,
    InnerEnded,
    Layer,
    LayerReport,
    Layers,
    NoSlot,
    NotClearedUp,
    PaymentMoved,
    Proven,
)
from machines.flows.layer_calls import (
    Sibling,
    clear_sessions,
    create_session,
    delete_session,
    equip,
    inspect_child,
    is_answer,
    sibling_of,
    split_answer,
    why_not_answered,
)


def released(context: Layer) -> bool:
    """No sandbox is left behind."""
    return context.session_id == ""


class Inception(Machine[Layer]):
    """One layer of sandboxes all the way down."""

    inside_sandbox = State(
        initial=True, child="look_around", on_child="discovered", on_child_moved="looked"
    )
    discover_tools = State(follows_child=True, on_child="discovered")
    fetch_pricing = State(
        child="purchase",
        on_child="bought",
        on_child_moved="payment_moved",
        on_parent_end="cancel",
    )
    create_invoice = State(follows_child=True, on_child="bought", on_child_moved="payment_moved")
    send_payment = State(follows_child=True, on_child="bought", on_child_moved="payment_moved")
    poll_confirmation = State(follows_child=True, on_child="bought", on_child_moved="payment_moved")
    receive_keys = State(follows_child=True, on_child="bought")
    prove_identity = State(child="authentication", on_child="proven")
    install_tools = State(effect=equip, on_exhausted="equipped_not")
    create_child = State(
        effect=create_session, compensation=delete_session, on_exhausted="no_slot_left"
    )
    clear_up = State(effect=clear_sessions, on_exhausted="not_cleared_up", cancellable=False)
    execute_in_child = State(
        effect=inspect_child,
        on_exhausted="execution_given_up",
        timeout=hours(1),
        on_timeout="execution_stuck",
    )
    bury_child = State(effect=delete_session, undoes="create_child")
    descend = State(child="next_layer", on_child="inner_ended")
    release_child = State(effect=delete_session, undoes="create_child")
    done = State(final=True, invariant=released)
    too_deep = State(final=True, failure=True)
    unaware = State(final=True, failure=True)
    unaffordable = State(final=True, failure=True)
    payment_failed = State(final=True, failure=True)
    unproven = State(final=True, failure=True)
    no_tools = State(final=True, failure=True)
    no_slot = State(final=True, failure=True)
    execution_refused = State(final=True, failure=True)
    cut_short = State(final=True, failure=True, invariant=released)

    looked = inside_sandbox.to(discover_tools)
    discovered = (
        inside_sandbox.to(  # turtles: ignore[V006] `looked` comes before success
            unaware, unless="succeeded"
        )
        | discover_tools.to(unaware, unless="succeeded")
        | discover_tools.to(  # turtles: ignore[V005] failure comes first
            too_deep, cond="below_the_bound"
        )
        | discover_tools.to(fetch_pricing)
    )
    payment_moved = (
        fetch_pricing.to(create_invoice, cond="reached_invoicing")
        | create_invoice.to(send_payment, cond="reached_paying")
        | send_payment.to(poll_confirmation, cond="reached_confirming")
        | poll_confirmation.to(receive_keys, cond="reached_settling")
    )
    bought = (
        receive_keys.to(prove_identity, cond="succeeded")
        | fetch_pricing.to(unaffordable, cond="lacked_money")
        | create_invoice.to(unaffordable, cond="lacked_money")
        | send_payment.to(unaffordable, cond="lacked_money")
        | fetch_pricing.to(payment_failed)
        | create_invoice.to(payment_failed)
        | send_payment.to(payment_failed)
        | poll_confirmation.to(payment_failed)
        | receive_keys.to(payment_failed)
    )
    proven = prove_identity.to(install_tools, cond="succeeded") | prove_identity.to(unproven)
    equipped = install_tools.to(create_child)
    equipped_not = install_tools.to(no_tools)
    created = create_child.to(execute_in_child)
    no_slot_left = create_child.to(clear_up)
    cleared_up = clear_up.to(no_slot)
    not_cleared_up = clear_up.to(no_slot)
    executed = (
        execute_in_child.to(execution_refused, unless="answers")
        | execute_in_child.to(  # turtles: ignore[V005] no answer, no descent
            descend, cond="goes_deeper"
        )
        | execute_in_child.to(release_child)
    )
    child_lost = execute_in_child.to(bury_child, cond="may_live") | (
        execute_in_child.to(execution_refused)
    )
    execution_given_up = execute_in_child.to(execution_refused)
    execution_failed = execute_in_child.to(execution_refused)
    execution_stuck = execute_in_child.to(execution_refused)
    inner_ended = descend.to(release_child)
    let_go = (
        bury_child.to(create_child)
        | release_child.to(cut_short, cond="fell_short")
        | release_child.to(done)
    )

    # -- children -------------------------------------------------------------------------------

    def look_around(self, context: Layer) -> Child:
        """Discovery, of this process or of the evidence from inside the parent's sandbox."""
        return Child("Discovery", {"evidence": context.inspection})

    def purchase(self, context: Layer) -> Child:
        """One key of this layer's own."""
        return Child(
            "Payment",
            {
                "tier": context.tier,
                "months": context.months,
                "currency": context.currency,
                "budget_cents": context.budget_cents,
                "poll_ms": context.poll_ms,
            },
        )

    def authentication(self, context: Layer) -> Child:
        """The proof that the new key works."""
        fields: dict[str, Any] = {
            "public_key": context.public_key,
            "secret_key": context.secret_key,
        }
        return Child("Authentication", fields)

    def next_layer(self, context: Layer) -> Child:
        """The same, one layer down, with what is left of the budget."""
        _, inspection = split_answer(context.stdout)
        return Child(
            "Inception",
            {
                "depth": context.depth + 1,
                "max_depth": context.max_depth,
                "currency": context.currency,
                "budget_cents": context.budget_cents - context.paid_cents,
                "tier": context.tier,
                "months": context.months,
                "poll_ms": context.poll_ms,
                "inspection": inspection,
                "session_ttl_seconds": context.session_ttl_seconds,
                "network_mode": context.network_mode,
            },
        )

    # -- guards ---------------------------------------------------------------------------------

    def succeeded(self, event: Discovered | Bought | Proven) -> bool:
        """The child reached its purpose and reports it."""
        return event.succeeded and event.output is not None

    def below_the_bound(self, context: Layer) -> bool:
        """This layer is deeper than was asked for, or than anybody may ask for."""
        return context.depth > min(context.max_depth, DEPTH_MAX)

    def reached_invoicing(self, event: PaymentMoved) -> bool:
        """A price was accepted."""
        return event.state == PAYMENT_MILESTONES[0]

    def reached_paying(self, event: PaymentMoved) -> bool:
        """An invoice is open."""
        return event.state == PAYMENT_MILESTONES[1]

    def reached_confirming(self, event: PaymentMoved) -> bool:
        """The coins are on their way."""
        return event.state == PAYMENT_MILESTONES[2]

    def reached_settling(self, event: PaymentMoved) -> bool:
        """The payment is deep enough."""
        return event.state == PAYMENT_MILESTONES[3]

    def lacked_money(self, event: Bought) -> bool:
        """The price is over the budget, or the wallet is short."""
        return event.state in ("over_budget", "unfunded")

    def answers(self, context: Layer, event: Executed) -> bool:
        """What came back is this layer's own greeting."""
        return is_answer(context, event.stdout)

    def may_live(self, context: Layer) -> bool:
        """Not every sandbox so far has died."""
        return context.lost + 1 < LOST_MAX

    def goes_deeper(self, context: Layer) -> bool:
        """There is a layer below this one."""
        return context.depth < context.max_depth

    def fell_short(self, context: Layer) -> bool:
        """A layer below did not reach the bottom."""
        return bool(context.refusal)

    # -- actions --------------------------------------------------------------------------------

    def on_discovered(self, context: Layer, event: Discovered) -> Layer:
        """Keep what the place is."""
        if event.output is None or not event.succeeded:
            return self.but(context, refusal="discovery found no way to orchestrate")
        return self.but(
            context,
            awareness=event.output.awareness,
            profile=event.output.profile,
            tools=event.output.tools,
        )

    def on_bought(self, context: Layer, event: Bought) -> Layer:
        """Keep the key, or why there is none."""
        if event.output is None or not event.succeeded:
            return self.but(context, refusal=f"the purchase ended as {event.state}")
        return self.but(
            context,
            public_key=event.output.public_key,
            secret_key=event.output.secret_key,
            paid_cents=event.output.paid_cents,
            txids=event.output.txids,
        )

    def on_proven(self, context: Layer, event: Proven) -> Layer:
        """Keep what the key allows."""
        if event.output is None or not event.succeeded:
            return self.but(context, refusal=f"the new key is {event.state}")
        return self.but(
            context, offset_ms=event.output.offset_ms, concurrency=event.output.concurrency
        )

    def on_equipped(self, context: Layer, event: Equipped) -> Layer:
        """Keep the digest of what goes into the child."""
        return self.but(context, tool_digest=event.digest)

    def on_equipped_not(self, context: Layer, event: EquippedNot) -> Layer:
        """Keep why."""
        return self.but(context, refusal=event.reason)

    def on_created(self, context: Layer, event: Created) -> Layer:
        """Keep which sandbox is ours."""
        return self.but(context, session_id=event.session_id, last_session_id=event.session_id)

    def on_no_slot_left(self, context: Layer, event: NoSlot) -> Layer:
        """Keep why."""
        return self.but(context, refusal=event.reason)

    def on_not_cleared_up(self, context: Layer, event: NotClearedUp) -> Layer:
        """Keep that a sandbox may live on."""
        return self.but(context, refusal=f"{context.refusal}; clearing up failed: {event.reason}")

    def on_executed(self, context: Layer, event: Executed) -> Layer:
        """Keep what the child said, if it is an answer."""
        if not is_answer(context, event.stdout):
            return self.but(context, refusal=why_not_answered(context, event.stdout))
        return self.but(context, stdout=event.stdout, latency_ms=event.latency_ms)

    def on_child_lost(self, context: Layer) -> Layer:
        """Count the dead."""
        lost = context.lost + 1
        if lost < LOST_MAX:
            return self.but(context, lost=lost)
        return self.but(context, lost=lost, refusal=f"{lost} sandboxes died, one after another")

    def on_execution_given_up(self, context: Layer, event: ExecutionGivenUp) -> Layer:
        """Keep why."""
        return self.but(context, refusal=event.reason)

    def on_execution_failed(self, context: Layer, event: ExecutionFailed) -> Layer:
        """Keep how it failed."""
        return self.but(context, refusal=f"the command in the child exited {event.exit_code}")

    def on_execution_stuck(self, context: Layer) -> Layer:
        """Keep that it never ended."""
        return self.but(context, refusal="the command in the child did not end in time")

    def on_inner_ended(self, context: Layer, event: InnerEnded) -> Layer:
        """Keep the reports from below."""
        inner = event.output.layers if event.output else ()
        refusal = ""
        if not event.succeeded or event.output is None or not event.output.complete:
            below = event.output.refusal if event.output else ""
            refusal = f"layer {context.depth + 1} ended as {event.state}: {below}"
        return self.but(context, inner=inner, refusal=refusal)

    def on_let_go(self, context: Layer) -> Layer:
        """The sandbox is nobody's any more."""
        return self.but(context, session_id="")

    def on_enter_too_deep(self, context: Layer) -> Layer:
        """Say which bound."""
        bound = min(context.max_depth, DEPTH_MAX)
        return self.but(context, refusal=f"depth {context.depth} is below the bound {bound}")

    # -- contracts ------------------------------------------------------------------------------

    @requires(bought)
    def never_more_than_the_budget(self, context: Layer, event: Bought) -> bool:
        """The subtree's money is a hard bound."""
        return event.output is None or event.output.paid_cents <= context.budget_cents

    @ensures(bought)
    def a_key_was_paid_for(self, new: Layer) -> bool:
        """No key for nothing, and no payment without its transactions."""
        return not new.public_key or (new.paid_cents > 0 and len(new.txids) > 0)

    @ensures(inner_ended)
    def keys_are_pairwise_different(self, new: Layer) -> bool:
        """Every layer holds a key of its own."""
        keys = [new.public_key, *(layer.public_key for layer in new.inner)]
        return len(set(keys)) == len(keys)

    @ensures(inner_ended)
    def subtree_within_budget(self, new: Layer) -> bool:
        """All layers from here down together."""
        return new.paid_cents + sum(x.paid_cents for x in new.inner) <= new.budget_cents

    @requires(created)
    def one_sandbox_at_a_time(self, context: Layer) -> bool:
        """A layer owns at most one child sandbox."""
        return context.session_id == ""

    @ensures(executed)
    def the_child_answered(self, new: Layer) -> bool:
        """What comes back is this layer's own greeting, with evidence behind it."""
        return bool(new.refusal) or is_answer(new, new.stdout)

    @invariant
    def depth_counts_from_one(self, context: Layer) -> bool:
        """Otherwise a chain could be longer than its bound."""
        return context.depth >= 1

    @invariant
    def a_sandbox_needs_a_key(self, context: Layer) -> bool:
        """No sandbox without a key that was paid for."""
        return context.session_id == "" or context.secret_key is not None

    def output(self, context: Layer) -> Layers:
        """This layer's report and those from below."""
        told = sibling_of(context.stdout) if context.stdout else Sibling()
        own = LayerReport(
            depth=context.depth,
            public_key=context.public_key,
            paid_cents=context.paid_cents,
            txids=context.txids,
            session_id=context.last_session_id,
            stdout=split_answer(context.stdout)[0],
            latency_ms=context.latency_ms,
            awareness=context.awareness,
            profile=context.profile,
            sibling=told.sibling,
            no_sibling=told.reason,
        )
        layers = (own, *context.inner) if context.public_key else context.inner
        complete = not context.refusal and bool(context.stdout)
        return Layers(layers=layers, complete=complete, refusal=context.refusal)
