"""Flow 14, the agent: the paper's whole algorithm as one plan, the same from any framework.

::

    discovering -> learning_prices -> provisioning -> proving -> opening -> executing -> freezing
     (child:          |                (child: Payment,  (child:    |          |            |
      Discovery)      |                 or Redemption    Authenti-  |          |            v
       |              |                 with a card)     cation)    |          |        unfreezing
       v              v                    |                |       v          |            |
    incapable     not_sold,             unfunded,        unproven  clearing_up |            v
                  unaffordable,         card_refused,               |          | executing_again
                  unpriced              not_provisioned             v          v            |
                                                                 no_sandbox   ending <------+
                                                                               |
       done, program_failed, froze_not, forgotten, sandbox_lost, stuck <-------+

Five frameworks drive it (`machines.agents`): whatever they call a tool, the journal of a plan is
the same but for ids, times, addresses and amounts.

Promise: at most one key is bought, for no more than `budget_cents`; what the first program left is
there after the freeze, or the run says that it is not; whatever ends the run, its sandbox is ended
first.  A sandbox of which no reply told is found by its key and ended (`clearing_up`); one that
the platform will not end stops the run for a person (it is quarantined in `ending`).

Source: paper, Phases 1 to 4 and 6; flows.md f14.
"""

from __future__ import annotations

from typing import Any

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.table import Child
from machines.flows.agent_calls import (
    clear_sessions,
    end_session,
    freeze,
    learn_price,
    open_session,
    run_first,
    run_second,
    unfreeze,
)
from machines.flows.agent_plan import (
    AgentReport,
    Discovered,
    NotCleared,
    NotFrozen,
    NotOpened,
    NotRun,
    Opened,
    Plan,
    Priced,
    Proven,
    Provisioned,
    Ran,
)


def released(context: Plan) -> bool:
    """No sandbox is left behind."""
    return context.session_id == ""


def remembered(context: Plan) -> bool:
    """The sandbox was frozen, and knows afterwards what it knew before."""
    return released(context) and context.freezes == 1 and is_expected(context)


def is_expected(context: Plan) -> bool:
    """The second program printed what the first had left."""
    return context.second_stdout.strip() == context.expected


class Agent(Machine[Plan]):
    """Get a sandbox for itself, use it, freeze it, wake it, and leave nothing behind."""

    discovering = State(initial=True, child="look_around", on_child="discovered")
    learning_prices = State(effect=learn_price, timeout="silence", on_timeout="nobody_answers")
    provisioning = State(child="key_source", on_child="provisioned")
    proving = State(child="authentication", on_child="proven")
    opening = State(effect=open_session, compensation=end_session, on_exhausted="not_opened")
    clearing_up = State(effect=clear_sessions, on_exhausted="not_cleared", cancellable=False)
    executing = State(
        effect=run_first, on_exhausted="not_run", timeout="program_time", on_timeout="overdue"
    )
    freezing = State(effect=freeze, on_exhausted="not_frozen")
    unfreezing = State(effect=unfreeze, on_exhausted="not_frozen")
    executing_again = State(
        effect=run_second, on_exhausted="not_run", timeout="program_time", on_timeout="overdue"
    )
    ending = State(effect=end_session, undoes="opening", cancellable=False)
    done = State(final=True, invariant=remembered)
    incapable = State(final=True, failure=True)
    not_sold = State(final=True, failure=True, invariant="paid_nothing")
    unaffordable = State(final=True, failure=True, invariant="paid_nothing")
    unpriced = State(final=True, failure=True, invariant="paid_nothing")
    unfunded = State(final=True, failure=True, invariant="paid_nothing")
    card_refused = State(final=True, failure=True, invariant="paid_nothing")
    not_provisioned = State(final=True, failure=True, invariant="paid_nothing")
    unproven = State(final=True, failure=True)
    no_sandbox = State(final=True, failure=True, invariant=released)
    program_failed = State(final=True, failure=True, invariant=released)
    froze_not = State(final=True, failure=True, invariant=released)
    forgotten = State(final=True, failure=True, invariant=released)
    sandbox_lost = State(final=True, failure=True, invariant=released)
    stuck = State(final=True, failure=True, invariant=released)

    discovered = discovering.to(learning_prices, cond="is_capable") | (
        discovering.to(incapable, on="note_incapable")
    )
    priced = learning_prices.to(provisioning, cond="affordable") | learning_prices.to(unaffordable)
    not_offered = learning_prices.to(not_sold)
    nobody_answers = learning_prices.to(unpriced)
    provisioned = (
        provisioning.to(proving, cond="has_a_key")
        | provisioning.to(  # turtles: ignore[V005] a key is a key
            card_refused, cond="had_a_card"
        )
        | provisioning.to(  # turtles: ignore[V005] a card's lack of money is the card's
            unfunded, cond="lacked_money"
        )
        | provisioning.to(not_provisioned)
    )
    proven = proving.to(opening, cond="is_proven") | proving.to(unproven)
    opened = opening.to(executing)
    not_opened = opening.to(clearing_up)
    cleared = clearing_up.to(no_sandbox)
    not_cleared = clearing_up.to(no_sandbox)
    ran = (
        executing.to(freezing, cond="went_well", on="note_first")
        | executing.to(ending, on="note_failure")
        | executing_again.to(ending, cond="went_well", on="compare")
        | executing_again.to(ending, on="note_failure")
    )
    not_run = executing.to(ending) | executing_again.to(ending)
    overdue = executing.to(ending) | executing_again.to(ending)
    frozen = freezing.to(unfreezing)
    woken = unfreezing.to(executing_again)
    not_frozen = freezing.to(ending) | unfreezing.to(ending)
    lost = (
        executing.to(ending)
        | freezing.to(ending)
        | unfreezing.to(ending)
        | executing_again.to(ending)
    )
    ended = (
        ending.to(program_failed, cond="its_program_failed")
        | ending.to(froze_not, cond="it_froze_not")
        | ending.to(forgotten, cond="it_forgot")
        | ending.to(sandbox_lost, cond="it_was_lost")
        | ending.to(stuck, cond="it_was_stuck")
        | ending.to(done)
    )

    def silence(self, context: Plan) -> int:
        return context.silence_ms

    def program_time(self, context: Plan) -> int:
        return context.overdue_ms

    # -- children -------------------------------------------------------------------------------

    def look_around(self) -> Child:
        """Discovery of this very place."""
        return Child("Discovery", {})

    def key_source(self, context: Plan) -> Child:
        """A key for coins, or for a card; either keeps to this run's budget."""
        wanted: dict[str, Any] = {
            "tier": context.tier,
            "months": context.months,
            "budget_cents": context.budget_cents,
            "poll_ms": context.poll_ms,
        }
        if context.gift_code is not None:
            return Child("Redemption", {**wanted, "code": context.gift_code})
        return Child("Payment", {**wanted, "currency": context.currency})

    def authentication(self, context: Plan) -> Child:
        """The proof that the new key works."""
        fields = {"public_key": context.public_key, "secret_key": context.secret_key}
        return Child("Authentication", fields)

    # -- guards ---------------------------------------------------------------------------------

    def is_capable(self, event: Discovered) -> bool:
        return event.succeeded and event.output is not None

    def affordable(self, context: Plan, event: Priced) -> bool:
        return event.price_cents <= context.budget_cents

    def has_a_key(self, event: Provisioned) -> bool:
        return event.succeeded and event.output is not None

    def had_a_card(self, context: Plan) -> bool:
        return context.gift_code is not None

    def lacked_money(self, event: Provisioned) -> bool:
        return event.state in ("over_budget", "unfunded")

    def is_proven(self, event: Proven) -> bool:
        return event.succeeded and event.output is not None

    def went_well(self, event: Ran) -> bool:
        return event.exit_code == 0

    def its_program_failed(self, context: Plan) -> bool:
        return context.trouble == "program_failed"

    def it_froze_not(self, context: Plan) -> bool:
        return context.trouble == "not_frozen"

    def it_forgot(self, context: Plan) -> bool:
        return context.trouble == "forgotten"

    def it_was_lost(self, context: Plan) -> bool:
        return context.trouble == "lost"

    def it_was_stuck(self, context: Plan) -> bool:
        return context.trouble == "stuck"

    # -- actions --------------------------------------------------------------------------------

    def note_incapable(self, context: Plan) -> Plan:
        return self.but(context, refusal="discovery found no way to orchestrate")

    def on_priced(self, context: Plan, event: Priced) -> Plan:
        if self.affordable(context, event):
            return self.but(context, price_cents=event.price_cents)
        refusal = f"the key costs {event.price_cents} cents, over {context.budget_cents}"
        return self.but(context, price_cents=event.price_cents, refusal=refusal)

    def on_not_offered(self, context: Plan) -> Plan:
        refusal = f"no key of tier {context.tier} for {context.months} months is sold"
        return self.but(context, refusal=refusal)

    def on_nobody_answers(self, context: Plan) -> Plan:
        return self.but(context, refusal="the portal told no prices in time")

    def on_provisioned(self, context: Plan, event: Provisioned) -> Plan:
        if event.output is None or not event.succeeded:
            return self.but(context, refusal=f"{event.machine} ended as {event.state}")
        return self.but(
            context,
            public_key=event.output.public_key,
            secret_key=event.output.secret_key,
            paid_cents=event.output.paid_cents,
        )

    def on_proven(self, context: Plan, event: Proven) -> Plan:
        if event.output is None or not event.succeeded:
            return self.but(context, refusal=f"the new key is {event.state}")
        return self.but(context, offset_ms=event.output.offset_ms)

    def on_not_opened(self, context: Plan, event: NotOpened) -> Plan:
        return self.but(context, refusal=event.reason)

    def on_not_cleared(self, context: Plan, event: NotCleared) -> Plan:
        return self.but(context, refusal=f"{context.refusal}; clearing up failed: {event.reason}")

    def on_opened(self, context: Plan, event: Opened) -> Plan:
        return self.but(context, session_id=event.session_id, last_session_id=event.session_id)

    def note_first(self, context: Plan, event: Ran) -> Plan:
        return self.but(context, first_stdout=event.stdout)

    def note_failure(self, context: Plan, event: Ran) -> Plan:
        refusal = f"the program exited with {event.exit_code}"
        return self.but(context, trouble="program_failed", refusal=refusal)

    def compare(self, context: Plan, event: Ran) -> Plan:
        after = self.but(context, second_stdout=event.stdout)
        if is_expected(after):
            return after
        return self.but(
            after, trouble="forgotten", refusal=f"expected {context.expected!r} after the freeze"
        )

    def on_not_run(self, context: Plan, event: NotRun) -> Plan:
        return self.but(context, trouble="stuck", refusal=event.reason)

    def on_overdue(self, context: Plan) -> Plan:
        return self.but(context, trouble="stuck", refusal="the program did not end in time")

    def on_woken(self, context: Plan) -> Plan:
        return self.but(context, freezes=context.freezes + 1)

    def on_not_frozen(self, context: Plan, event: NotFrozen) -> Plan:
        return self.but(context, trouble="not_frozen", refusal=event.reason)

    def on_lost(self, context: Plan) -> Plan:
        return self.but(context, trouble="lost", refusal="the sandbox is gone")

    def on_ended(self, context: Plan) -> Plan:
        return self.but(context, session_id="")

    # -- contracts ------------------------------------------------------------------------------

    @requires(priced)
    def is_a_price(self, event: Priced) -> bool:
        """Nothing is sold for nothing."""
        return event.price_cents > 0

    @requires(provisioned)
    def within_budget(self, context: Plan, event: Provisioned) -> bool:
        """The child had this run's budget, and kept to it."""
        return event.output is None or 0 < event.output.paid_cents <= context.budget_cents

    @ensures(opened)
    def the_sandbox_has_a_name(self, new: Plan) -> bool:
        """What has none cannot be ended."""
        return new.session_id != ""

    @ensures(ended)
    def nothing_is_left(self, old: Plan, new: Plan) -> bool:
        """And what was ended is remembered."""
        return new.session_id == "" and new.last_session_id == old.session_id

    @invariant
    def a_sandbox_needs_a_key(self, context: Plan) -> bool:
        """No sandbox without a key that was paid for."""
        return context.session_id == "" or (
            context.secret_key is not None and context.paid_cents > 0
        )

    @invariant
    def freezes_once(self, context: Plan) -> bool:
        """The plan has one freeze."""
        return context.freezes <= 1

    def paid_nothing(self, context: Plan) -> bool:
        """No key was bought."""
        return context.paid_cents == 0 and context.secret_key is None

    def output(self, context: Plan) -> AgentReport | None:
        if not context.public_key:
            return None
        return AgentReport(
            public_key=context.public_key,
            paid_cents=context.paid_cents,
            session_id=context.last_session_id,
            first_stdout=context.first_stdout,
            second_stdout=context.second_stdout,
            freezes=context.freezes,
        )
