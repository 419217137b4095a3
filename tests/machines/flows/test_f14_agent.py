"""Agent: every branch by name over small children, and the plan over real HTTP.

`Town` is the outside: a place, a shop, and a platform that misbehaves as it is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from engine import Call, Context, Event, Machine, State, effect
from engine.clock import hours
from engine.ports import Query
from engine.secrets import Secret, SecretsCodec
from engine.testing import CrashPlan, Harness, ManualClock
from machines.clients.ports import (
    Credentials,
    NotFound,
    Platform,
    Portal,
    Quote,
    Record,
    Rejected,
    ReplyLost,
    SessionInfo,
    Unavailable,
)
from machines.clients.ports.sessions import CellEnd, SessionOrder, Sessions, SessionView
from machines.flows.agent_plan import (
    Cleared,
    Discovered,
    Ended,
    Frozen,
    Identity,
    KeyReceipt,
    Lost,
    NotOffered,
    Opened,
    Place,
    Plan,
    Priced,
    Proven,
    Provisioned,
    Ran,
    Woken,
)
from machines.flows.f14_agent import Agent
from persistence import open_store

SECRET = "unsb-sk-very-secret"
CODE = "tiger-castle-rainbow-sunset"


def plan(**changes: Any) -> Plan:
    return Plan(**({"currency": "LTC", "budget_cents": 700} | changes))


# -- the children -------------------------------------------------------------------------------


class Fate(Event, tag="fate"):
    """How a child ends: well, or in the state named."""

    state: str = ""


class Nothing(Context):
    """Nothing is asked."""


class Buying(Context, kw_only=True):
    """What any seller is asked for."""

    tier: int
    months: int
    budget_cents: int
    poll_ms: int
    currency: str = ""
    code: Secret[str] | None = None


class Key(Record):
    public_key: str
    secret_key: Secret[str]
    paid_cents: int


class Seen(Record):
    tools: tuple[str, ...]


class Known(Record):
    offset_ms: int


class Claim(Context):
    public_key: str
    secret_key: Secret[str]


@effect(idempotent=True)
async def meet(context: Any, call: Call) -> Fate:
    return Fate(state=call.resource(Town).fate_of(context))


class Discovery(Machine[Nothing]):
    """Where am I?"""

    inspecting = State(initial=True, effect=meet)
    capable = State(final=True)
    unaware = State(final=True, failure=True)
    fate = inspecting.to(unaware, cond="is_ill") | inspecting.to(capable)

    def is_ill(self, event: Fate) -> bool:
        return event.state == "unaware"

    def output(self, context: Nothing) -> Seen:
        return Seen(tools=("un",))


class Payment(Machine[Buying]):
    """A key for coins."""

    pricing = State(initial=True, effect=meet)
    completed = State(final=True)
    unfunded = State(final=True, failure=True)
    expired_unpaid = State(final=True, failure=True)
    fate = (
        pricing.to(unfunded, cond="is_short")
        | pricing.to(expired_unpaid, cond="is_late")
        | pricing.to(completed)
    )

    def is_short(self, event: Fate) -> bool:
        return event.state == "unfunded"

    def is_late(self, event: Fate) -> bool:
        return event.state == "expired_unpaid"

    def output(self, context: Buying) -> Key:
        return Key(public_key="unsb-pk-1", secret_key=Secret(SECRET), paid_cents=700)


class Redemption(Machine[Buying]):
    """A key for a card."""

    redeeming = State(initial=True, effect=meet)
    redeemed = State(final=True)
    unknown_code = State(final=True, failure=True)
    fate = redeeming.to(unknown_code, cond="is_unknown") | redeeming.to(redeemed)

    def is_unknown(self, event: Fate) -> bool:
        return event.state == "unknown_code"

    def output(self, context: Buying) -> Key:
        return Key(public_key="unsb-pk-1", secret_key=Secret(SECRET), paid_cents=700)


class Authentication(Machine[Claim]):
    """Does it work?"""

    verifying = State(initial=True, effect=meet)
    authenticated = State(final=True)
    rejected = State(final=True, failure=True)
    fate = verifying.to(rejected, cond="is_refused") | verifying.to(authenticated)

    def is_refused(self, event: Fate) -> bool:
        return event.state == "rejected"

    def output(self, context: Claim) -> Known:
        return Known(offset_ms=1_234)


# -- the outside --------------------------------------------------------------------------------


class Town:
    """`faults` holds, by call, errors of the next ones (`after`: done all the same)."""

    def __init__(self) -> None:
        self.fates: dict[str, str] = {}
        self.asked: list[Any] = []
        self.price_cents = 700
        self.live: dict[str, str] = {}
        self.made: Counter[str] = Counter()
        self.answers = {"x = 42": ("", 0), "print(x)": ("42\n", 0)}
        self.ran: dict[str, CellEnd] = {}
        self.faults: dict[str, list[tuple[Exception, bool]]] = {}

    def fate_of(self, context: Any) -> str:
        self.asked.append(context)
        return self.fates.pop(type(context).__name__, "")

    def fail(self, call: str, *errors: Exception, after: bool = False) -> None:
        self.faults.setdefault(call, []).extend((error, after) for error in errors)

    def _do(self, call: str, act: Callable[[], Any]) -> Any:
        waiting = self.faults.get(call)
        if waiting:
            error, after = waiting.pop(0)
            if after:
                act()
            raise error
        return act()

    def _own(self, credentials: Credentials) -> None:
        assert credentials.secret_key.reveal() == SECRET
        assert credentials.offset_ms == 1_234

    async def quotes(self) -> tuple[Quote, ...]:
        def act() -> tuple[Quote, ...]:
            return (
                Quote(
                    tier=1, months=1, price_cents=self.price_cents, requests_per_minute=7,
                    concurrency=1,
                ),
            )  # fmt: skip

        return self._do("quotes", act)

    def _view(self, session_id: str) -> SessionView:
        return SessionView(  # noqa: S604 - the name of a shell
            session_id=session_id, status=self.live.get(session_id, "terminated"),
            shell="python3", vcpu=1, expires_ms=0, idles_ms=0,
        )  # fmt: skip

    async def create(
        self, credentials: Credentials, order: SessionOrder, *, key: str
    ) -> SessionView:
        self._own(credentials)
        assert order.shell == "python3"

        def act() -> SessionView:
            self.made[key] += 1
            self.live.setdefault(f"s-{key}", "running")
            return self._view(f"s-{key}")

        return self._do("create", act)

    async def run(
        self, credentials: Credentials, session_id: str, command: str, *, timeout_ms: int, key: str
    ) -> CellEnd:
        self._own(credentials)

        def act() -> CellEnd:
            if session_id not in self.live:
                raise NotFound("gone")
            stdout, exit_code = self.answers[command]
            end = CellEnd(
                status="completed", stdout=stdout, stderr="", exit_code=exit_code, duration_ms=1
            )
            return self.ran.setdefault(key, end)

        return self._do("run", act)

    async def freeze(self, credentials: Credentials, session_id: str) -> SessionView:
        return self._do("freeze", lambda: self._become(session_id, "frozen"))

    async def unfreeze(self, credentials: Credentials, session_id: str) -> SessionView:
        return self._do("unfreeze", lambda: self._become(session_id, "running"))

    def _become(self, session_id: str, status: str) -> SessionView:
        if session_id not in self.live:
            raise NotFound("gone")
        self.live[session_id] = status
        return self._view(session_id)

    async def sessions(self, credentials: Credentials) -> tuple[SessionInfo, ...]:
        def act() -> tuple[SessionInfo, ...]:
            return tuple(SessionInfo(session_id=n, status=s) for n, s in self.live.items())

        return self._do("sessions", act)

    async def delete_session(self, credentials: Credentials, session_id: str) -> None:
        self._do("delete", lambda: self.live.pop(session_id, None))


class Story:
    """A town, and how a plan went in it."""

    def __init__(self) -> None:
        self.town = Town()
        self.clock = ManualClock()
        self.store = open_store("sqlite://")

    def harness(self, plan_: CrashPlan | None = None) -> Harness:
        return Harness(
            (Agent, Authentication, Discovery, Payment, Redemption),
            store=self.store,
            resources={
                Town: self.town,
                Portal: self.town,
                Platform: self.town,
                Sessions: self.town,
            },
            clock=self.clock,
            plan=plan_,
            secrets=SecretsCodec(bytes(32)),
        )

    async def go(self, context: Plan, *, dies_at: int | None = None) -> Any:
        for at in (dies_at, None) if dies_at is not None else (None,):
            harness = self.harness(CrashPlan(at=at))
            try:
                async with harness:
                    begun = await harness.app.start(Agent, context, key="the run")
                    await harness.until_idle()
                    return await self._told(harness, begun.run_id)
            except BaseException:
                if not harness.plan.dead:
                    raise
                self.clock.advance(20_000)
        raise AssertionError("it never came to an end")

    async def _told(self, harness: Harness, run_id: str) -> Any:
        outcome = await harness.app.outcome(run_id)
        journal = await harness.app.journal(run_id)
        passed = [e.target for i, e in enumerate(journal) if i == 0 or e.target != e.source]
        payments = len(await harness.app.runs(Query(machine="Payment")))
        return SimpleNamespace(
            state=outcome.state, status=outcome.status, context=outcome.context,
            output=outcome.output, passed=passed, payments=payments, last_error=outcome.last_error,
        )  # fmt: skip


@pytest.fixture
def story() -> Any:
    made = Story()
    yield made
    made.store.close()


WELL = [
    "discovering", "learning_prices", "provisioning", "proving", "opening", "executing",
    "freezing", "unfreezing", "executing_again", "ending", "done",
]  # fmt: skip


async def test_the_whole_plan_is_done(story: Any) -> None:
    told = await story.go(plan())
    assert told.passed == WELL
    assert told.output.public_key == "unsb-pk-1"
    assert (told.output.paid_cents, told.output.freezes) == (700, 1)
    assert told.output.second_stdout == "42\n"
    assert story.town.live == {}
    bought = story.town.asked[1]
    assert (bought.currency, bought.budget_cents, bought.code) == ("LTC", 700, None)


async def test_a_card_is_redeemed_instead_of_paying(story: Any) -> None:
    told = await story.go(plan(gift_code=Secret(CODE)))
    assert told.passed == WELL
    redeemed = story.town.asked[1]
    assert redeemed.code.reveal() == CODE and redeemed.budget_cents == 700


@pytest.mark.parametrize(
    ("child", "fate", "state"),
    [
        ("Nothing", "unaware", "incapable"),
        ("Buying", "unfunded", "unfunded"),
        ("Buying", "expired_unpaid", "not_provisioned"),
        ("Claim", "rejected", "unproven"),
    ],
)
async def test_a_child_that_fails_is_a_refusal_of_its_own(
    story: Any, child: str, fate: str, state: str
) -> None:
    story.town.fates[child] = fate
    told = await story.go(plan())
    assert (told.state, told.status) == (state, "failed")
    assert told.context.refusal
    assert not story.town.made
    assert told.context.paid_cents == (700 if state == "unproven" else 0)


async def test_a_card_that_is_refused(story: Any) -> None:
    story.town.fates["Buying"] = "unknown_code"
    told = await story.go(plan(gift_code=Secret(CODE)))
    assert (told.state, told.context.paid_cents) == ("card_refused", 0)
    assert told.context.refusal == "Redemption ended as unknown_code"


async def test_over_budget_is_unaffordable_and_nothing_is_bought(story: Any) -> None:
    told = await story.go(plan(budget_cents=699))
    assert (told.state, told.context.paid_cents) == ("unaffordable", 0)
    assert told.context.refusal == "the key costs 700 cents, over 699"
    assert len(story.town.asked) == 1


async def test_a_key_that_is_not_sold(story: Any) -> None:
    told = await story.go(plan(tier=33))
    assert told.state == "not_sold"
    assert told.context.refusal == "no key of tier 33 for 1 months is sold"


async def test_a_portal_that_never_answers_is_unpriced(story: Any) -> None:
    story.town.fail("quotes", *[Unavailable("down")] * 10_000)
    told = await story.go(plan())
    assert (told.state, told.context.refusal) == (
        "unpriced", "the portal told no prices in time",
    )  # fmt: skip


@pytest.mark.parametrize("call", ["quotes", "create", "run", "freeze", "unfreeze", "delete"])
@pytest.mark.parametrize("error", [Unavailable("down"), ReplyLost("no reply")])
async def test_what_fails_for_a_while_is_waited_out(
    story: Any, call: str, error: Exception
) -> None:
    story.town.fail(call, *[error] * 3, after=isinstance(error, ReplyLost))
    told = await story.go(plan())
    assert (told.state, story.town.live) == ("done", {})
    assert len(story.town.made) == 1


async def test_no_sandbox_is_left_when_no_reply_told_of_one(story: Any) -> None:
    story.town.fail("create", *[ReplyLost("no reply")] * 1_000, after=True)
    told = await story.go(plan())
    assert told.passed[-3:] == ["opening", "clearing_up", "no_sandbox"]
    assert (story.town.live, told.context.refusal) == ({}, "no reply")


async def test_no_sandbox_that_cannot_be_cleared_up_is_told(story: Any) -> None:
    story.town.fail("create", Rejected("no slot"))
    story.town.fail("sessions", Rejected("not now"))
    told = await story.go(plan())
    assert told.state == "no_sandbox"
    assert told.context.refusal == "no slot; clearing up failed: not now"


@pytest.mark.parametrize("command", ["x = 42", "print(x)"])
async def test_a_program_that_fails(story: Any, command: str) -> None:
    story.town.answers[command] = ("oops", 3)
    told = await story.go(plan())
    assert (told.state, story.town.live) == ("program_failed", {})
    assert told.context.refusal == "the program exited with 3"


async def test_a_sandbox_that_has_forgotten(story: Any) -> None:
    story.town.answers["print(x)"] = ("41\n", 0)
    told = await story.go(plan())
    assert (told.state, story.town.live) == ("forgotten", {})
    assert told.output.second_stdout == "41\n"


@pytest.mark.parametrize("call", ["freeze", "unfreeze"])
async def test_a_sandbox_that_will_not_freeze(story: Any, call: str) -> None:
    story.town.fail(call, Rejected("session_busy"))
    told = await story.go(plan())
    assert (told.state, story.town.live) == ("froze_not", {})
    assert told.context.refusal == "session_busy"


@pytest.mark.parametrize("call", ["run", "freeze", "unfreeze"])
async def test_a_sandbox_that_died_is_lost(story: Any, call: str) -> None:
    story.town.fail(call, NotFound("gone"))
    told = await story.go(plan())
    assert (told.state, story.town.live) == ("sandbox_lost", {})


async def test_a_program_that_is_never_run_is_stuck(story: Any) -> None:
    story.town.fail("run", Rejected("no"))
    told = await story.go(plan())
    assert (told.state, told.context.refusal, story.town.live) == ("stuck", "no", {})


async def test_a_program_that_is_overdue_is_stuck(story: Any) -> None:
    story.town.fail("run", *[Unavailable("down")] * 10_000)
    told = await story.go(plan(overdue_ms=20_000))
    assert (told.state, story.town.live) == ("stuck", {})
    assert told.context.refusal == "the program did not end in time"


async def test_a_program_without_an_end_is_stuck(story: Any) -> None:
    endless = CellEnd(status="timeout", stdout="", stderr="", exit_code=None, duration_ms=1)
    original = story.town.run

    async def run(*arguments: Any, **options: Any) -> CellEnd:
        await original(*arguments, **options)
        return endless

    story.town.run = run
    told = await story.go(plan())
    assert told.context.refusal == "the program was timeout, not run to its end"


async def test_a_sandbox_that_cannot_be_ended_stops_the_run_for_a_person(story: Any) -> None:
    story.town.fail("delete", Rejected("locked"))
    told = await story.go(plan())
    assert (told.state, told.status) == ("ending", "quarantined")
    assert "locked" in told.last_error


@pytest.mark.parametrize("at", range(1, 40, 3))
async def test_whatever_dies_one_key_and_no_sandbox_are_left(story: Any, at: int) -> None:
    told = await story.go(plan(), dies_at=at)
    assert (told.state, story.town.live) == ("done", {})
    assert (len(story.town.made), told.payments) == (1, 1)


async def test_secrets_are_in_no_text(story: Any, capsys: Any) -> None:
    story.town.answers["print(x)"] = ("41", 0)
    with capture_logs() as logs:
        told = await story.go(plan(gift_code=Secret(CODE)))
    shown = "".join(capsys.readouterr()) + repr(told) + repr(logs)
    assert SECRET not in shown and CODE not in shown


async def test_over_real_http_with_a_real_card_shop(embed: Any) -> None:
    """The effects over the embedded platform's wire; the children are the real machines."""
    embedded = await embed()
    told = await embedded.run(Agent, plan(budget_cents=100))
    assert (told.state, embedded.spends(), embedded.left()) == ("unaffordable", 0, {})
    misspelt = plan(gift_code=Secret("no-such-card-here"))
    told = await embedded.run(Agent, misspelt, key="another")
    assert (told.state, embedded.spends(), embedded.left()) == ("card_refused", 0, {})


# -- any sequence of events ---------------------------------------------------------------------

TEXT = st.sampled_from(["", "42", "42\n", "41"])
EVENTS = st.one_of(
    st.sampled_from(["nobody_answers", "overdue"]),
    st.builds(Priced, price_cents=st.integers(0, 800)),
    st.builds(Opened, session_id=st.just("s")),
    st.builds(Ran, stdout=TEXT, exit_code=st.integers(0, 1)),
    st.sampled_from([NotOffered(), Cleared(), Frozen(), Woken(), Lost(), Ended()]),
)


def _ended(kind: Any, output: Any) -> Any:
    return kind(run_id="c", machine="M", state="s", succeeded=True, output=output)


KEY = KeyReceipt(public_key="pk", secret_key=Secret("sk"), paid_cents=700)
WAY = [
    _ended(Discovered, Place(tools=())),
    Priced(price_cents=700),
    _ended(Provisioned, KEY),
    _ended(Proven, Identity(offset_ms=0)),
    Opened(session_id="s"),
]
STEPS = st.builds(
    lambda far, more: [*((event, 1) for event in WAY[:far]), *more],
    st.integers(0, len(WAY)),
    st.lists(st.tuples(EVENTS, st.integers(0, hours(1))), max_size=8),
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_the_table_does_what_the_library_does(library_agrees: Any, steps: Any) -> None:
    library_agrees(Agent, plan(), steps)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_contracts_hold_whatever_happens(walk: Any, steps: Any) -> None:
    for run in walk(Agent, plan(), steps):
        assert run.context.session_id == "" or run.context.secret_key is not None
        assert run.state != "done" or run.context.second_stdout.strip() == "42"
