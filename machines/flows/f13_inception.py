"""Flow 13, inception: a sandbox that buys a sandbox, and again, as deep as the money goes.

::

    inside_sandbox -> discover_tools -> fetch_pricing
         (child: Discovery)                |   |   |
         +------------- coins -------------+   |   +--------- the card's code ----------+
         v                                     | the chain's one key                    v
    create_invoice -> send_payment             |                                  redeem_card
      -> poll_confirmation -> receive_keys     |                           (child: Redemption)
       (child: Payment, by its milestones)     v                                        |
         |      |       +--- flat ---> prove_identity (child: Authentication)           |
         |      v nested, the first              |                                      v
         |    buy_card (child: GiftCard)         |          a layer that died here: end_orphans
         +------+--------------------------------+--------------------------------------+
                v
    install_tools -> create_child -- nested --> equip_child (child: ToolInstall)
                      ^      | flat                  |     |
         bury_child --+      v                       |     +--> bury_child
              ^---- execute_in_child <---------------+          (the sandbox died)
                             |  nested: an engine inside is attended until it has told
                             |  flat: an inspection; descend (child: Inception, depth + 1)
                             v
                      release_child -> settle_card (where a card was bought)
                             +-------------+--> done | cut_short | execution_refused | ...

    create_child -- given up --> clear_up -> no_slot  (an attempt whose reply was lost may have
                                                       made a sandbox: none is left behind)

The ten named states are the paper's (Flow 13).  One run is one layer.

*Nested* (`semitrusted`, the default): this very product is installed in the sandbox, and the next
layer is an engine there, with a database of its own, which looks around where it really is. No key
and no wallet is handed down: the first layer buys one gift card worth all keys below, and the four
words travel on the standard input of the engine, which redeems a key of its own and passes them
on. A key that was just bought or redeemed has been proven by a signed call: at tier 1 there are
seven in a minute, and a nested layer needs the other six. The engine in the deepest sandbox finds
that it is too deep: the turtles stop there.

*Flat* (`zerotrust`, or `one_key`): what runs in such a sandbox reaches nothing, and its try says
so.  The next layer is a run beside this one; it weighs the evidence gathered in the sandbox, and
buys its own key with coins, or shares the first one (`one_key`).

Bounds, each with a refusal of its own before anything is spent: `too_deep`, `unaffordable` (the
subtree's keys at the quoted price), `too_few_slots`, `too_slow` (500 ms a layer are expected; what
is measured counts).

Promise: every layer has a key of its own and paid for it once; a sandbox that was created is
owned by a live run or has been destroyed, whatever crashed in between; what is left on the card is
known at the end.
"""

from __future__ import annotations

from engine.clock import hours, seconds
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.table import Child
from machines.flows.layer import (
    DEPTH_MAX,
    LOST_MAX,
    PAYMENT_MILESTONES,
    Layer,
    Layers,
    expected_ms,
)
from machines.flows.layer_actions import LayerActions
from machines.flows.layer_calls import (
    clear_sessions,
    create_session,
    delete_session,
    equip,
    fetch_prices,
    is_answer,
    read_balance,
    run_in_child,
)
from machines.flows.layer_children import (
    authentication_for,
    card_for,
    discovery_for,
    installation_for,
    is_gone,
    next_layer_for,
    purchase_for,
    redemption_for,
)
from machines.flows.layer_events import (
    Bought,
    CardBought,
    Discovered,
    Executed,
    Furnished,
    PaymentMoved,
    Priced,
    Proven,
    Redeemed,
)
from machines.flows.layer_report import report_of


def released(context: Layer) -> bool:
    """No sandbox is left behind."""
    return context.session_id == ""


class Inception(LayerActions, Machine[Layer]):
    """One layer of sandboxes all the way down."""

    inside_sandbox = State(
        initial=True, child="look_around", on_child="discovered", on_child_moved="looked"
    )
    discover_tools = State(follows_child=True, on_child="discovered")
    fetch_pricing = State(effect=fetch_prices, on_exhausted="unpriced")
    create_invoice = State(
        child="purchase",
        on_child="bought",
        on_child_moved="payment_moved",
        on_parent_end="cancel",
    )
    send_payment = State(follows_child=True, on_child="bought", on_child_moved="payment_moved")
    poll_confirmation = State(follows_child=True, on_child="bought", on_child_moved="payment_moved")
    receive_keys = State(follows_child=True, on_child="bought")
    redeem_card = State(child="redemption", on_child="redeemed")
    prove_identity = State(child="authentication", on_child="proven")
    end_orphans = State(effect=clear_sessions, on_exhausted="not_cleared_up")
    buy_card = State(child="card", on_child="card_bought")
    install_tools = State(effect=equip, on_exhausted="equipped_not")
    create_child = State(
        effect=create_session, compensation=delete_session, on_exhausted="no_slot_left"
    )
    clear_up = State(effect=clear_sessions, on_exhausted="not_cleared_up", cancellable=False)
    equip_child = State(child="installation", on_child="furnished")
    execute_in_child = State(
        effect=run_in_child,
        every=seconds(1),
        on_exhausted="execution_given_up",
        timeout=hours(1),
        on_timeout="execution_stuck",
    )
    bury_child = State(effect=delete_session, undoes="create_child")
    descend = State(child="next_layer", on_child="inner_ended")
    release_child = State(effect=delete_session, undoes="create_child")
    settle_card = State(effect=read_balance, on_exhausted="not_settled", cancellable=False)
    done = State(final=True, invariant=released)
    too_deep = State(final=True, failure=True)
    unaware = State(final=True, failure=True)
    unpriceable = State(final=True, failure=True)
    unaffordable = State(final=True, failure=True)
    too_few_slots = State(final=True, failure=True)
    too_slow = State(final=True, failure=True)
    payment_failed = State(final=True, failure=True)
    card_refused = State(final=True, failure=True)
    unproven = State(final=True, failure=True)
    no_card = State(final=True, failure=True)
    no_tools = State(final=True, failure=True, invariant=released)
    no_slot = State(final=True, failure=True)
    execution_refused = State(final=True, failure=True, invariant=released)
    cut_short = State(final=True, failure=True, invariant=released)
    unsettled = State(final=True, failure=True, invariant=released)

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
    priced = (
        fetch_pricing.to(too_few_slots, cond="lacks_slots")
        | fetch_pricing.to(  # turtles: ignore[V005] one bound after the other
            unaffordable, cond="lacks_budget", on="note_cost"
        )
        | fetch_pricing.to(  # turtles: ignore[V005] one bound after the other
            too_slow, cond="would_be_too_slow"
        )
        | fetch_pricing.to(  # turtles: ignore[V005] the bounds come first
            prove_identity, cond="shares_a_key"
        )
        | fetch_pricing.to(  # turtles: ignore[V005] the bounds come first
            redeem_card, cond="was_given_a_card"
        )
        | fetch_pricing.to(create_invoice)
    )
    unpriced = fetch_pricing.to(unpriceable)
    payment_moved = (
        create_invoice.to(send_payment, cond="reached_paying")
        | send_payment.to(poll_confirmation, cond="reached_confirming")
        | poll_confirmation.to(receive_keys, cond="reached_settling")
    )
    bought = (
        receive_keys.to(buy_card, cond="succeeded and needs_a_card")
        | receive_keys.to(  # turtles: ignore[V005] a card comes first
            install_tools, cond="succeeded and is_nested"
        )
        | receive_keys.to(prove_identity, cond="succeeded")
        | create_invoice.to(unaffordable, cond="lacked_money")
        | send_payment.to(unaffordable, cond="lacked_money")
        | create_invoice.to(payment_failed)
        | send_payment.to(payment_failed)
        | poll_confirmation.to(payment_failed)
        | receive_keys.to(payment_failed)
    )
    redeemed = (
        redeem_card.to(end_orphans, cond="succeeded and may_have_lived_before")
        | redeem_card.to(install_tools, cond="succeeded")
        | redeem_card.to(card_refused)
    )
    proven = prove_identity.to(install_tools, cond="succeeded") | prove_identity.to(unproven)
    card_bought = buy_card.to(install_tools, cond="succeeded") | buy_card.to(no_card)
    equipped = install_tools.to(create_child)
    equipped_not = install_tools.to(no_tools)
    created = create_child.to(equip_child, cond="is_nested") | create_child.to(execute_in_child)
    no_slot_left = create_child.to(clear_up)
    cleared_up = (
        end_orphans.to(install_tools)
        | clear_up.to(settle_card, cond="bought_a_card")
        | clear_up.to(no_slot)
    )
    not_cleared_up = (
        end_orphans.to(no_slot)
        | clear_up.to(settle_card, cond="bought_a_card")
        | clear_up.to(no_slot)
    )
    furnished = (
        equip_child.to(execute_in_child, cond="succeeded")
        | equip_child.to(bury_child, cond="died_and_may_live", on="note_no_tool")
        | equip_child.to(release_child, on="note_no_tool")
    )
    executed = execute_in_child.to(  # turtles: ignore[V007] greetings are not small values
        descend, cond="goes_deeper"
    ) | execute_in_child.to(release_child)
    inner_moved = execute_in_child.to.itself()
    inner_told = execute_in_child.to(release_child)
    inner_odd = execute_in_child.to(release_child)
    child_lost = execute_in_child.to(bury_child, cond="may_live") | (
        execute_in_child.to(release_child)
    )
    execution_given_up = execute_in_child.to(release_child)
    execution_failed = execute_in_child.to(release_child)
    execution_stuck = execute_in_child.to(release_child)
    inner_ended = descend.to(release_child)
    let_go = (
        bury_child.to(create_child)
        | release_child.to(settle_card, cond="bought_a_card")
        | release_child.to(  # turtles: ignore[V005] the card comes first
            no_tools, cond="found_no_tools"
        )
        | release_child.to(  # turtles: ignore[V005] the card comes first
            execution_refused, cond="was_refused"
        )
        | release_child.to(  # turtles: ignore[V005] the card comes first
            cut_short, cond="fell_short"
        )
        | release_child.to(done)
    )
    settled = (
        settle_card.to(no_slot, cond="found_no_slot")
        | settle_card.to(no_tools, cond="found_no_tools")
        | settle_card.to(execution_refused, cond="was_refused")
        | settle_card.to(cut_short, cond="fell_short")
        | settle_card.to(done)
    )
    not_settled = settle_card.to(unsettled)

    # -- children -------------------------------------------------------------------------------

    def look_around(self, context: Layer) -> Child:
        """Discovery, of this process or of the evidence from inside the parent's sandbox."""
        return discovery_for(context)

    def purchase(self, context: Layer) -> Child:
        """One key of this layer's own, for coins."""
        return purchase_for(context)

    def redemption(self, context: Layer) -> Child:
        """One key of this layer's own, from the card."""
        return redemption_for(context)

    def authentication(self, context: Layer) -> Child:
        """The proof that the key works."""
        return authentication_for(context)

    def card(self, context: Layer) -> Child:
        """A card worth the keys of all layers below."""
        return card_for(context)

    def installation(self, context: Layer) -> Child:
        """This product, in the sandbox."""
        return installation_for(context)

    def next_layer(self, context: Layer) -> Child:
        """The same, one layer down, beside this run."""
        return next_layer_for(context)

    # -- guards ---------------------------------------------------------------------------------

    def succeeded(
        self, event: Discovered | Bought | Redeemed | Proven | CardBought | Furnished
    ) -> bool:
        """The child reached its purpose and reports it."""
        return event.succeeded and event.output is not None

    def below_the_bound(self, context: Layer) -> bool:
        """This layer is deeper than was asked for, or than anybody may ask for."""
        return context.depth > min(context.max_depth, DEPTH_MAX)

    def lacks_slots(self, context: Layer, event: Priced) -> bool:
        """The key cannot hold as many sandboxes at once as it would have to."""
        return context.slots > event.concurrency

    def lacks_budget(self, context: Layer, event: Priced) -> bool:
        """The keys from here down cost more than may be spent."""
        return context.keys_to_pay * event.price_cents > context.budget_cents

    def would_be_too_slow(self, context: Layer) -> bool:
        """What was measured above and is expected from here down is over the bound."""
        return bool(context.latency_ms_max) and expected_ms(context) > context.latency_ms_max

    def shares_a_key(self, context: Layer) -> bool:
        """The chain lives on one key, and this is not the layer that buys it."""
        return bool(context.public_key)

    def was_given_a_card(self, context: Layer) -> bool:
        """Somebody further up pays."""
        return context.card_code is not None

    def reached_paying(self, event: PaymentMoved) -> bool:
        """An invoice is open."""
        return event.state == PAYMENT_MILESTONES[0]

    def reached_confirming(self, event: PaymentMoved) -> bool:
        """The coins are on their way."""
        return event.state == PAYMENT_MILESTONES[1]

    def reached_settling(self, event: PaymentMoved) -> bool:
        """The payment is deep enough."""
        return event.state == PAYMENT_MILESTONES[2]

    def lacked_money(self, event: Bought) -> bool:
        """The price is over the budget, or the wallet is short."""
        return event.state in ("over_budget", "unfunded")

    def may_have_lived_before(self, context: Layer) -> bool:
        """A layer of this place died with its sandbox, and may have left one of its own."""
        return context.incarnation > 0

    def needs_a_card(self, context: Layer) -> bool:
        """Layers inside this one's sandbox will need keys, and nobody pays for them yet."""
        return context.nested and context.layers_below > 0 and context.card_code is None

    def bought_a_card(self, context: Layer) -> bool:
        """This layer pays for those below it."""
        return bool(context.card_id)

    def is_nested(self, context: Layer) -> bool:
        """The next layer will be an engine inside."""
        return context.nested

    def died_and_may_live(self, context: Layer, event: Furnished) -> bool:
        """The sandbox is gone, and not every one so far has died."""
        return is_gone(event) and context.lost + 1 < LOST_MAX

    def may_live(self, context: Layer) -> bool:
        """Not every sandbox so far has died."""
        return context.lost + 1 < LOST_MAX

    def goes_deeper(self, context: Layer, event: Executed) -> bool:
        """This layer's own greeting came back, and there is a layer below this one."""
        return context.layers_below > 0 and is_answer(context, event.stdout)

    def found_no_slot(self, context: Layer) -> bool:
        """There was no sandbox to be had."""
        return context.ending == "no_slot"

    def found_no_tools(self, context: Layer) -> bool:
        """The product could not be installed in the sandbox."""
        return context.ending == "no_tools"

    def was_refused(self, context: Layer) -> bool:
        """What was to be executed did not answer as it should."""
        return context.ending == "execution_refused"

    def fell_short(self, context: Layer) -> bool:
        """A layer below did not reach the bottom."""
        return context.ending == "cut_short"

    # -- contracts ------------------------------------------------------------------------------

    @requires(bought)
    def never_more_than_the_budget(self, context: Layer, event: Bought) -> bool:
        """The subtree's money is a hard bound."""
        return event.output is None or event.output.paid_cents <= context.budget_cents

    @ensures(bought, redeemed)
    def a_key_was_paid_for(self, new: Layer) -> bool:
        """No key for nothing, and no payment without its transactions or its redemption."""
        return not new.public_key or (new.paid_cents > 0 and len(new.txids) > 0)

    @ensures(redeemed)
    def the_card_paid_the_price(self, new: Layer) -> bool:
        """Neither more nor less than was quoted."""
        return not new.public_key or new.paid_cents == new.price_cents

    @ensures(card_bought)
    def the_card_is_worth_the_subtree(self, new: Layer) -> bool:
        """One key for each layer below, and no more."""
        return not new.card_id or new.card_cents == new.layers_below * new.price_cents

    @ensures(inner_ended, inner_told)
    def keys_are_pairwise_different(self, new: Layer) -> bool:
        """Every layer holds a key of its own, unless all were to share one."""
        keys = [new.public_key, *(layer.public_key for layer in new.inner)]
        return len(set(keys)) == (1 if new.one_key else len(keys))

    @ensures(inner_ended, inner_told)
    def subtree_within_budget(self, new: Layer) -> bool:
        """All layers from here down together."""
        return new.paid_cents + sum(x.paid_cents for x in new.inner) <= new.budget_cents

    @ensures(settled)
    def a_card_never_grows(self, new: Layer) -> bool:
        """What is left was on it."""
        return 0 <= new.card_left_cents <= new.card_cents

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
        return report_of(context)
