"""Introspection: over the embedded platform, and every branch by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import hours, minutes
from engine.secret import Secret
from engine.secrets import SecretsCodec
from engine.testing import Harness, ManualClock
from machines.clients.ports import (
    KeyInfo,
    Platform,
    Portal,
    Quote,
    Rejected,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.introspection import (
    ClusterReport,
    Facilities,
    HealthReport,
    LanguageList,
    PoolReport,
    ShellList,
)
from machines.flows.f11_introspection import Introspection
from machines.flows.inquiry import (
    TOPICS,
    CapabilityDocument,
    Denied,
    GivenUp,
    Inquiry,
    Kept,
    Known,
    Limits,
    Missing,
    Names,
    Prices,
    Told,
)
from machines.flows.inquiry_calls import compared, is_fresh
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.fake import FakeBackend
from persistence.store import open_store

SECRET = "unsb-sk-aaaaa-bbbbb-ccccc-ddddd"
STATES = [f"asking_{topic}" for topic in TOPICS]
NOBODY = "not asked: nobody answers"


def _inquiry(credentials: Any = None, **changes: Any) -> Inquiry:
    fields: dict[str, Any] = {
        "public_key": credentials.public_key if credentials else "unsb-pk-1",
        "secret_key": credentials.secret_key if credentials else Secret(SECRET),
    }
    return Inquiry(**(fields | changes))


# -- the embedded platform ------------------------------------------------------------------------


async def test_a_whole_document_and_then_the_same_from_memory(embed: Any) -> None:
    """Of a tier-1 key, which has seven requests a minute: five, and then none."""
    world = await embed()
    key = world.key(tier=1)
    story = await world.run(Introspection, _inquiry(key, budget_cents=5_000))
    assert story.passed == [*STATES, "complete"]
    document = story.output
    assert document.complete and document.runs("python") and document.has_room()
    assert not document.runs("cobol")
    known = document.known
    assert (known.limits.tier, known.limits.slots, known.limits.requests_per_minute) == (1, 1, 7)
    assert "bash" in known.shells.names
    assert (known.prices.quotes, known.prices.cheapest_cents) == (160, 700)
    assert document.best_offer(3).price_cents == 3_906  # two tiers of $19.53
    assert document.best_offer(24) is None
    assert await _requests(world, key) == 5
    again = await world.run(
        Introspection, _inquiry(key, budget_cents=5_000, known=known), key="again"
    )
    assert (again.state, again.context.heard, again.output.known) == ("complete", 0, known)
    assert await _requests(world, key) == 5
    assert (world.left(), world.spends()) == ({}, 0)


async def _requests(world: Any, key: Any) -> int:
    with world.context.database.reading() as sql:
        return int(
            sql.scalar("SELECT count(*) FROM api_request WHERE public_key = :k", k=key.public_key)
        )


async def test_a_rate_that_is_used_up_is_waited_for(embed: Any) -> None:
    world = await embed()
    key = world.key(tier=1)
    for _ in range(6):
        await world.clients.platform.sessions(key)
    began_ms = world.clock.now_ms()
    story = await world.run(Introspection, _inquiry(key))
    assert story.state == "complete"
    assert 30_000 < world.clock.now_ms() - began_ms <= 75_000


async def test_a_machine_that_cannot_isolate_gives_a_partial_answer(embed: Any) -> None:
    refusal = SandboxUnavailable("no user namespaces", "allow them")
    world = await embed(FakeBackend(refusal))
    story = await world.run(Introspection, _inquiry(world.key(), budget_cents=700))
    assert story.state == "partial"
    assert [one.topic for one in story.output.missing] == ["languages", "shells"]
    assert "no user namespaces" in story.output.known.health.problem
    assert not story.output.has_room()


async def test_a_key_that_is_refused_is_refused_once(embed: Any) -> None:
    world = await embed()
    wrong = _inquiry(world.key(), secret_key=Secret("unsb-sk-wrong"), budget_cents=700)
    story = await world.run(Introspection, wrong)
    assert story.passed == ["asking_health", "asking_limits", "asking_prices", "partial"]
    assert {one.topic for one in story.output.missing} == set(TOPICS) - {"health", "prices"}
    assert story.output.missing[0].reason == "the key is refused: invalid_signature"
    assert story.output.best_offer(1).tier == 1
    assert "unsb-sk-wrong" not in repr(story)


# -- a platform that is told what to do -----------------------------------------------------------


class Answering(SimpleNamespace):
    """Portal, platform and facilities; `errors[topic]`, the last one for ever."""

    def __init__(self) -> None:
        super().__init__(errors={}, calls=[], quoted=[_quote(1, 1, 700)], key=_key())

    def _called(self, topic: str) -> None:
        self.calls.append(topic)
        waiting = self.errors.get(topic)
        error = (waiting.pop(0) if len(waiting) > 1 else waiting[0]) if waiting else None
        if error is not None:
            raise error

    async def health(self) -> HealthReport:
        self._called("health")
        return HealthReport(status="ok")

    async def validate_key(self, _credentials: Any, **_options: Any) -> KeyInfo:
        self._called("limits")
        return self.key

    async def languages(self, _credentials: Any) -> LanguageList:
        self._called("languages")
        return LanguageList(languages=("python",))

    async def shells(self, _credentials: Any) -> ShellList:
        self._called("shells")
        return ShellList(shells=("bash",))

    async def cluster(self, _credentials: Any) -> ClusterReport:
        self._called("cluster")
        return ClusterReport(mode="on_demand", available=2, allocated=1)

    async def pools(self, _credentials: Any) -> tuple[PoolReport, ...]:
        self._called("pools")
        return tuple(PoolReport(pool_id=name, total=3, available=2) for name in "ab")

    async def quotes(self) -> Any:
        self._called("prices")
        return tuple(self.quoted)


def _quote(tier: int, months: int, price_cents: int) -> Quote:
    return Quote(tier=tier, months=months, price_cents=price_cents,
                 requests_per_minute=7 * tier, concurrency=1)  # fmt: skip


def _key(**changes: Any) -> KeyInfo:
    fields = {"valid": True, "public_key": "pk", "tier": 1, "requests_per_minute": 7,
              "concurrency": 1}  # fmt: skip
    return KeyInfo(**(fields | changes))


@pytest.fixture
def told() -> Answering:
    return Answering()


async def _run(told: Answering, **changes: Any) -> Any:
    resources = {Platform: told, Facilities: told, Portal: told}
    store, clock = open_store("sqlite://"), ManualClock()
    async with Harness(
        [Introspection], store=store, resources=resources, clock=clock,
        secrets=SecretsCodec(bytes(32)),
    ) as harness:  # fmt: skip
        run_id = (await harness.app.start(Introspection, _inquiry(**changes))).run_id
        await harness.until_idle(horizon_ms=hours(24))
        outcome = await harness.app.outcome(run_id)
        journal = await harness.app.journal(run_id)
    store.close()
    passed = [entry.target for entry in journal]
    return SimpleNamespace(
        state=outcome.state, status=outcome.status, context=outcome.context,
        output=outcome.output, passed=passed, now_ms=clock.now_ms(),
    )  # fmt: skip


async def test_complete(told: Answering) -> None:
    story = await _run(told)
    assert (story.state, story.output.missing) == ("complete", ())
    assert told.calls == list(TOPICS)
    assert story.output.known.pools.available == 4
    assert (story.output.known.pools.allocated, story.output.best_offer(1)) == (2, None)


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("error", [Unavailable("down"), ReplyLost("cut"), Rejected("400: no")])
async def test_one_missing_answer_is_a_finding(
    told: Answering, topic: str, error: Exception
) -> None:
    told.errors[topic] = [error]
    story = await _run(told)
    assert (story.state, story.status) == ("partial", "completed")
    reason = "400: no" if isinstance(error, Rejected) else "no answer"
    assert story.output.missing == (Missing(topic=topic, reason=reason),)
    assert getattr(story.output.known, topic) is None
    assert set(told.calls) == set(TOPICS)


async def test_a_platform_that_stays_unable_has_answered(told: Answering) -> None:
    told.errors = {
        topic: [Unavailable("503: no sandbox", kind="not_ready")] for topic in ("shells", "pools")
    }
    story = await _run(told)
    assert [one.reason for one in story.output.missing] == ["503: no sandbox"] * 2
    assert told.calls.count("shells") == 3


@pytest.mark.parametrize("topic", TOPICS)
async def test_a_platform_that_is_down_for_a_while_is_waited_for(
    told: Answering, topic: str
) -> None:
    told.errors[topic] = [Unavailable("down"), ReplyLost("cut"), None]
    assert (await _run(told)).state == "complete"


async def test_each_question_has_its_own_time(told: Answering) -> None:
    told.errors["languages"] = [Unavailable("429", kind="rate_limit", retry_after_ms=hours(1))]
    story = await _run(told, asking_ms=minutes(1))
    assert [one.topic for one in story.output.missing] == ["languages"]


async def test_nobody_is_there(told: Answering) -> None:
    told.errors = {topic: [Unavailable("down")] for topic in TOPICS}
    story = await _run(told)
    assert (story.state, story.status) == ("unreachable", "failed")
    assert story.passed == ["asking_health", "asking_limits", "unreachable"]
    assert [one.reason for one in story.output.missing] == ["no answer"] * 2 + [NOBODY] * 5


async def test_nobody_is_there_and_what_is_known_stays_known(told: Answering) -> None:
    known = (await _run(told)).output.known
    told.errors = {topic: [Unavailable("down")] for topic in TOPICS}
    story = await _run(told, known=known, lists_fresh_ms=0, live_fresh_ms=0)
    assert (story.state, story.output.known) == ("unreachable", known)


@pytest.mark.parametrize("number", range(2, 7))
async def test_it_falls_silent_in_the_middle(told: Answering, number: int) -> None:
    told.errors = {topic: [Unavailable("down")] for topic in TOPICS[number - 1 :]}
    story = await _run(told)
    assert (story.state, story.context.heard) == ("partial", number - 1)
    assert [one.topic for one in story.output.missing] == list(TOPICS[number - 1 :])
    assert story.output.known.health is not None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"valid": False, "reason": "expired"}, "the key is refused: expired"),
        ({"valid": False, "reason": None}, "the key is refused: not valid"),
        ({"tier": 0}, "a limit of the key is 0, expected 1 at least"),
        ({"concurrency": 0}, "a limit of the key is 0, expected 1 at least"),
        ({"requests_per_minute": -1}, "a limit of the key is -1, expected 1 at least"),
    ],
)
async def test_a_key_that_is_good_for_nothing(told: Answering, answer: Any, reason: str) -> None:
    told.key = _key(**answer)
    story = await _run(told)
    assert (story.state, story.output.missing[0].reason) == ("partial", reason)
    assert (story.passed[2] == "asking_prices") is ("refused" in reason)


async def test_a_key_that_is_refused_later_costs_only_that_answer(told: Answering) -> None:
    told.errors["shells"] = [Unauthorized("401", reason="suspended")]
    story = await _run(told)
    assert [one.reason for one in story.output.missing] == ["the key is refused: suspended"]


async def test_a_portal_without_prices(told: Answering) -> None:
    told.quoted = []
    story = await _run(told)
    assert story.output.missing == (Missing(topic="prices", reason="the portal offers nothing"),)


async def test_the_secret_is_in_no_text(told: Answering, capsys: Any) -> None:
    told.errors["limits"] = [Unauthorized("401", reason="invalid_signature")]
    story = await _run(told)
    assert SECRET not in "".join(capsys.readouterr()) + repr(story)


# -- freshness and prices -------------------------------------------------------------------------

LIMITS = Known(limits=Limits(at_ms=1_000, tier=1, slots=1, requests_per_minute=7))


@pytest.mark.parametrize(
    ("now_ms", "fresh"), [(999, False), (1_000, True), (1_499, True), (1_500, False)]
)
def test_an_answer_has_an_age(now_ms: int, fresh: bool) -> None:
    assert is_fresh(_inquiry(known=LIMITS, lists_fresh_ms=500), "limits", now_ms) is fresh


def test_loads_are_old_before_lists() -> None:
    room = {"available": 1, "allocated": 0, "at_ms": 0}
    known = msgspec.convert({"cluster": room, "shells": {"at_ms": 0, "names": []}}, Known)
    inquiry = _inquiry(known=known)
    assert is_fresh(inquiry, "shells", minutes(59)) and is_fresh(inquiry, "cluster", 59_999)
    assert not is_fresh(inquiry, "shells", hours(1)) and not is_fresh(inquiry, "cluster", 60_000)


def test_prices_are_for_one_budget() -> None:
    prices = Prices(at_ms=0, budget_cents=5, quotes=1, cheapest_cents=1, offers=())
    assert is_fresh(_inquiry(known=Known(prices=prices), budget_cents=5), "prices", 0)
    assert not is_fresh(_inquiry(known=Known(prices=prices), budget_cents=6), "prices", 0)


@given(
    prices=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 9)),
                    min_size=1, max_size=8, unique_by=lambda one: one[:2]),
    budget=st.integers(0, 9),
)  # fmt: skip
def test_offers_are_the_highest_that_can_be_paid(prices: Any, budget: int) -> None:
    found = compared([_quote(*one) for one in prices], _inquiry(budget_cents=budget), 0)
    for months in (1, 3):
        payable = [tier for tier, m, cents in prices if m == months and cents <= budget]
        offers = [one.tier for one in found.offers if one.months == months]
        assert offers == ([max(payable)] if payable else [])


def test_a_document_without_answers_promises_nothing_it_does_not_know() -> None:
    empty = CapabilityDocument(known=Known(), missing=(), complete=False)
    assert (empty.runs("python"), empty.best_offer(1), empty.has_room()) == (False, None, True)
    full = msgspec.convert({"cluster": {"at_ms": 0, "available": 0, "allocated": 9}}, Known)
    assert not CapabilityDocument(known=full, missing=(), complete=False).has_room()


# -- any sequence of events -----------------------------------------------------------------------

ANSWERS = {
    "limits": LIMITS,
    "shells": Known(shells=Names(at_ms=0, names=())),
}


def _answer(context: Inquiry) -> Any:
    """The one that fits, as far as there is one here."""
    topic = TOPICS[min(context.asked, 6)]
    return Told(topic=topic, answer=ANSWERS[topic]) if topic in ANSWERS else Denied(reason="no")


EVENTS = st.one_of(
    st.just("too_late"),
    st.just(_answer),
    st.just(Kept()),
    st.builds(Told, topic=st.sampled_from(TOPICS), answer=st.sampled_from([*ANSWERS.values()])),
    st.builds(Denied, reason=st.just("no"), key_refused=st.booleans()),
    st.builds(GivenUp, effect=st.just("x"), reason=st.just("down"), attempts=st.just(1)),
)
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, hours(1))), max_size=9)


@settings(max_examples=25)
@given(steps=STEPS, known=st.sampled_from([Known(), LIMITS]))
def test_the_table_does_what_the_library_does(library_agrees: Any, steps: Any, known: Any) -> None:
    fitting = [step for step in steps if not callable(step[0])]
    library_agrees(Introspection, _inquiry(known=known), fitting)


@settings(max_examples=100)
@given(steps=STEPS, known=st.sampled_from([Known(), LIMITS]))
def test_contracts_hold_whatever_happens(walk: Any, steps: Any, known: Any) -> None:
    for run in walk(Introspection, _inquiry(known=known), steps):
        missing = {one.topic for one in run.context.missing}
        assert len(missing) == len(run.context.missing)
        if run.state == "unreachable":
            assert (run.context.heard, run.context.asked) == (0, len(TOPICS))
        if run.state == "partial":
            assert missing
