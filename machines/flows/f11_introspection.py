"""Flow 11, introspection: what is here, and what may I ask for?

::

    asking_health -> asking_limits -> asking_languages -> asking_shells
          -> asking_cluster -> asking_pools -> asking_prices -> complete | partial
                 (any) -- the second silence --> unreachable | partial

Each state asks one thing, with its own time limit.  Its answer is `told`, or it is `kept` because
the document that was given still holds a fresh one, or it is missing: `denied` by the platform, or
no answer (`given_up`, `too_late`).  A missing answer is a finding and no failure: the next question
is asked.  A key that is refused is told so once; what only a key may ask is then left out, prices
are for everybody.  The second silence ends the asking: it has cost its time twice, and whoever
does not answer twice is not there, or hardly.

==========  ===========================  ========================  =================
topic       says                         asked of                  fresh for
==========  ===========================  ========================  =================
health      can sandboxes be opened      `/health`                 `live_fresh_ms`
limits      tier, slots, requests/min    `/keys/validate`          `lists_fresh_ms`
languages   what runs now                `/languages`              `lists_fresh_ms`
shells      what a session may have      `/shells`                 `lists_fresh_ms`
cluster     room, all together           `/cluster`                `live_fresh_ms`
pools       room, by pool                `/pools`                  `live_fresh_ms`
prices      what the budget can buy      `/pricing-for-agents`     `lists_fresh_ms`
==========  ===========================  ========================  =================

Promise: at most five signed requests, of the seven a minute that the lowest tier has, and none for
what is fresh; whoever is over its rate is waited for, within the time of the question.  Every
answer carries the time at which it was given; an older one that could not be renewed stays, with
its age, beside the finding that it is missing.  Nothing is made, nothing is spent.

The outcome is a `CapabilityDocument`: hand its `known` to the next `Introspection`.

Source: flows.md f11; platform-api.md 1.8, 4, 10, 12, 14; paper, Flow 11.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Effect
from machines.flows.inquiry import (
    SILENCES_MAX,
    TOPICS,
    CapabilityDocument,
    Denied,
    GivenUp,
    Inquiry,
    Missing,
    Told,
    all_known,
    nothing_heard,
    silent,
    something_missing,
)
from machines.flows.inquiry_calls import (
    ask_cluster,
    ask_health,
    ask_languages,
    ask_limits,
    ask_pools,
    ask_prices,
    ask_shells,
)


def _asking(asks: Effect, **options: Any) -> State:
    """A question: one effect, given up or too late, with the same patience for all."""
    return State(
        effect=asks,
        on_exhausted="given_up",
        timeout="patience",
        on_timeout="too_late",
        **options,
    )


def _in_turn(*states: State) -> Any:
    """From each question to the next."""
    edges = states[0].to(states[1])
    for state, following in pairwise(states[1:]):
        edges |= state.to(following)
    return edges


def _unanswered(partial: State, unreachable: State, *states: State) -> Any:
    """From each question to the next, unless it was the second silence."""
    first, second, *others = states
    edges = first.to(second)
    edges |= second.to(unreachable, cond="nobody_is_there") | second.to(others[0])
    for state, following in pairwise(others):
        edges |= state.to(unreachable, cond="nobody_is_there")
        edges |= state.to(partial, cond="has_fallen_silent") | state.to(following)
    return edges | others[-1].to(unreachable, cond="nobody_is_there") | others[-1].to(partial)


class Introspection(Machine[Inquiry]):
    """Ask the platform what it can do; a partial answer is an answer."""

    payloads = (GivenUp,)

    asking_health = _asking(ask_health, initial=True)
    asking_limits = _asking(ask_limits)
    asking_languages = _asking(ask_languages)
    asking_shells = _asking(ask_shells)
    asking_cluster = _asking(ask_cluster)
    asking_pools = _asking(ask_pools)
    asking_prices = _asking(ask_prices)
    complete = State(final=True, invariant=all_known)
    partial = State(final=True, invariant=something_missing)
    unreachable = State(final=True, failure=True, invariant=nothing_heard)

    told = (
        _in_turn(
            asking_health, asking_limits, asking_languages, asking_shells, asking_cluster,
            asking_pools, asking_prices,
        )
        | asking_prices.to(partial, cond="lacks_something")
        | asking_prices.to(complete)
    )  # fmt: skip
    kept = (
        _in_turn(
            asking_health, asking_limits, asking_languages, asking_shells, asking_cluster,
            asking_pools, asking_prices,
        )
        | asking_prices.to(partial, cond="lacks_something")
        | asking_prices.to(complete)
    )  # fmt: skip
    denied = (
        asking_limits.to(asking_prices, cond="is_for_the_key")
        | _in_turn(
            asking_health, asking_limits, asking_languages, asking_shells, asking_cluster,
            asking_pools, asking_prices,
        )
        | asking_prices.to(partial)
    )  # fmt: skip
    given_up = _unanswered(
        partial, unreachable, asking_health, asking_limits, asking_languages, asking_shells,
        asking_cluster, asking_pools, asking_prices,
    )  # fmt: skip
    too_late = _unanswered(
        partial, unreachable, asking_health, asking_limits, asking_languages, asking_shells,
        asking_cluster, asking_pools, asking_prices,
    )  # fmt: skip

    def patience(self, context: Inquiry) -> int:
        """How long one question may take."""
        return context.asking_ms

    # -- guards ---------------------------------------------------------------------------------

    def lacks_something(self, context: Inquiry) -> bool:
        """A question before this last one has no answer."""
        return bool(context.missing)

    def is_for_the_key(self, event: Denied) -> bool:
        """It would be refused for every other question that takes a key."""
        return event.key_refused

    def has_fallen_silent(self, context: Inquiry) -> bool:
        """This is the second silence, and there was a word."""
        return context.heard > 0 and context.silences + 1 >= SILENCES_MAX

    def nobody_is_there(self, context: Inquiry) -> bool:
        """This is the second silence, and there was never a word."""
        return context.heard == 0 and context.silences + 1 >= SILENCES_MAX

    # -- actions --------------------------------------------------------------------------------

    def on_told(self, context: Inquiry, event: Told) -> Inquiry:
        """Keep the answer to this question; the others stay as they are."""
        answer = {event.topic: getattr(event.answer, event.topic)}
        return self.but(
            context,
            known=msgspec.structs.replace(context.known, **answer),
            asked=context.asked + 1,
            heard=context.heard + 1,
        )

    def on_kept(self, context: Inquiry) -> Inquiry:
        """Nobody was asked, so nobody was silent."""
        return self.but(context, asked=context.asked + 1)

    def on_denied(self, context: Inquiry, event: Denied) -> Inquiry:
        """A no is an answer, too; one for the key is for every question that takes one."""
        ended = context.asked + 1
        missing = [Missing(topic=TOPICS[context.asked], reason=event.reason)]
        if event.key_refused and TOPICS[context.asked] == "limits":
            ended = TOPICS.index("prices")
            left_out = TOPICS[context.asked + 1 : ended]
            missing += [
                Missing(topic=one, reason="not asked: the key is refused") for one in left_out
            ]
        return self.but(
            context,
            missing=(*context.missing, *missing),
            asked=ended,
            heard=context.heard + 1,
        )

    def on_given_up(self, context: Inquiry) -> Inquiry:
        """Keep that there was no answer; what went wrong stands in the journal."""
        return silent(context)

    def on_too_late(self, context: Inquiry) -> Inquiry:
        """Keep that there was no answer in time."""
        return silent(context)

    # -- contracts ------------------------------------------------------------------------------

    @requires(told)
    def answers_the_question(self, context: Inquiry, event: Told) -> bool:
        """The one that was asked, and no other."""
        given = [topic for topic in TOPICS if getattr(event.answer, topic) is not None]
        return given == [event.topic] == [TOPICS[context.asked]]

    @requires(kept)
    def something_is_kept(self, context: Inquiry) -> bool:
        """Only what is known can be fresh."""
        return getattr(context.known, TOPICS[context.asked]) is not None

    @ensures(told, kept, denied, given_up, too_late)
    def no_other_answer_is_touched(self, old: Inquiry, new: Inquiry) -> bool:
        """An answer changes one topic, a silence none: what was known stays, with its age."""
        return all(
            getattr(new.known, topic) == getattr(old.known, topic)
            for number, topic in enumerate(TOPICS)
            if number != old.asked or new.heard == old.heard
        )

    @ensures(told, kept, denied, given_up, too_late)
    def every_question_is_accounted_for(self, old: Inquiry, new: Inquiry) -> bool:
        """What was passed over without an answer is a finding of its own."""
        passed = TOPICS[old.asked : new.asked]
        found = [one.topic for one in new.missing[len(old.missing) :]]
        return bool(passed) and found in ([], list(passed))

    @invariant
    def each_topic_is_missed_once(self, context: Inquiry) -> bool:
        """A finding is said once."""
        topics = [one.topic for one in context.missing]
        return len(set(topics)) == len(topics) <= context.asked <= len(TOPICS)

    @invariant
    def nothing_beyond_the_budget(self, context: Inquiry) -> bool:
        """An offer that cannot be paid is none."""
        prices = context.known.prices
        return prices is None or all(
            0 <= one.price_cents <= prices.budget_cents for one in prices.offers
        )

    def output(self, context: Inquiry) -> CapabilityDocument:
        """What other machines plan with."""
        complete = context.asked == len(TOPICS) and not context.missing
        return CapabilityDocument(known=context.known, missing=context.missing, complete=complete)
