"""Random lives of every machine: any event at any time, over a world that answers at random.

Hypothesis sends legal, illegal, repeated, late and reordered events, pauses, resumes, cancels,
moves the clock and kills the process anywhere.  Effects are answered in one of two ways:

- *honest*: the effect's own code runs over ports that answer, and fail, at random.  What comes out
  could really come, so the machine's own contracts must never break (`Life.explained`).
- *wild*: besides, any event of the effect's return annotation with any content, and forged events
  from outside.  Then a contract may break, which sets the run aside with the evidence.

In both the engine's promises hold after every step: see `Life.sound`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as live

from engine import Again, NotDone, OutcomeUnknown, Permanent, Transient
from engine.clock import hours, minutes
from engine.effects import Call, Effect
from engine.errors import BadPayload, KeyConflict, UnknownEvent
from engine.events import Event
from engine.journal import fold, replay
from engine.ports import Query
from engine.run import Run
from engine.secrets import Secret, SecretsCodec
from engine.testing import Crash, CrashPlan, Harness, ManualClock
from engine.worker import LEASE_MS
from machines.app import MACHINES
from machines.clients.ports import (
    BroadcastRefused,
    Credentials,
    Currency,
    Execution,
    InsufficientFunds,
    Invoice,
    KeyInfo,
    NotFound,
    PaymentStatus,
    Platform,
    Portal,
    Quote,
    Rejected,
    ReplyLost,
    SessionInfo,
    Sighting,
    SignedTransaction,
    Unauthorized,
    Unavailable,
    WalletLocked,
)
from machines.clients.ports.gift_cards import (
    CardRefused,
    CardStatus,
    GiftCards,
    KeyPrice,
    NewCard,
    PriceList,
    RedemptionStatus,
)
from machines.flows.f01_discovery import Findings, Surroundings
from machines.flows.f03c_confirmation import Following
from machines.flows.f03w_wallet import SpendOrder
from machines.flows.f04_authentication import Proof
from machines.flows.gift_card import CardClaim, CardOrder
from machines.flows.layer import Layer
from machines.flows.money import Wallets
from machines.flows.purchase import Purchase
from persistence import open_store

Draw = Callable[[st.SearchStrategy[Any]], Any]
INT64 = 2**63
CALLS_PER_STEP = 8
"""So many answers the world gives in one step; then it is too busy, so that every step ends."""

MOVING = {"pending", "running", "waiting", "quarantined"}
"""Statuses between which bookkeeping moves a run without a transition."""


# -- any value of a type ------------------------------------------------------------------------


def values_of(kind: Any, near: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values of a type that payloads are made of; those in `near` of that very type are likely."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(one, near) for one in arguments])
    if origin is tuple:
        return st.lists(values_of(arguments[0], near), max_size=2).map(tuple)
    if origin is Secret:
        return values_of(arguments[0], near).map(Secret)
    if kind in _PLAIN:
        known = [one for one in near if type(one) is kind]
        return st.one_of(st.sampled_from(known), _PLAIN[kind]) if known else _PLAIN[kind]
    if issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        fields = {name: values_of(hints[name], near) for name in kind.__struct_fields__}
        known = [one for one in near if type(one) is kind]
        anything = st.builds(kind, **fields)
        return st.one_of(st.sampled_from(known), anything) if known else anything
    return st.sampled_from(kind)


_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.one_of(st.sampled_from([0, 1, -1, 700, INT64 - 1, -INT64]), st.integers(-9, 99)),
    str: st.text("aé\n{\x00", max_size=4),
    bool: st.booleans(),
    type(None): st.none(),
}


def parts_of(value: Any) -> Iterator[Any]:
    """A struct's plain values and structs, all the way down: what others are likely to name."""
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from parts_of(getattr(value, name))
    elif isinstance(value, tuple):
        for one in value:
            yield from parts_of(one)
    elif type(value) in (int, str):
        yield value


def answers_of(function: Any) -> list[Any]:
    """The types that an effect's function may return, by its annotation."""
    kind = get_type_hints(function)["return"]
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


# -- a world that answers at random -------------------------------------------------------------


Luck = Literal["always", "mostly", "never"]


class Ports:
    """Portal, wallet, platform and surroundings in one: every answer, and every failure, is drawn.

    What a port says is likely to fit the `context` of whoever asks, and it never says what its
    Protocol rules out: a transaction pays what was asked, a txid is new.  With luck, calls go well:
    the first option of `one` is the one that leads on.
    """

    def __init__(self, draw: Draw, luck: Luck, context: Any, number: int, now_ms: int) -> None:
        self.draw, self.luck, self.context = draw, luck, context
        self.number, self.now_ms = number, now_ms

    def one(self, *options: Any) -> Any:
        if self.luck == "always" or (self.luck == "mostly" and self.draw(_QUARTER) > 0):
            return options[0]
        return self.draw(st.sampled_from(options))

    def may_fail(self, *own: Exception) -> None:
        """One call in four fails, without luck."""
        if not self.one(True, True, True, False):
            raise self.draw(st.sampled_from([
                Unavailable("busy", retry_after_ms=self.one(None, 0, 1_000, hours(1))),
                ReplyLost("cut off"),
                Rejected("wrong"),
                NotFound("no such thing"),
                Unauthorized("401", reason=self.one(*_REASONS), server_ms=self.moment()),
                ConnectionResetError("not translated"),
                *own,
            ]))  # fmt: skip

    def moment(self) -> int | None:
        return self.one(self.now_ms + 400_000, None, self.now_ms, self.now_ms + hours(300), 0)

    # portal

    async def quotes(self) -> tuple[Quote, ...]:
        self.may_fail()
        wanted = Quote(self.context.tier, self.context.months, self.one(700, 0, 10**6), 7, 1)
        return self.one((wanted,), (), (Quote(2, 3, 700, 7, 1), wanted))

    async def create_invoice(
        self, *, tier: int, months: int, currency: Currency, refund_address: str, key: str
    ) -> Invoice:
        self.may_fail()
        return Invoice(
            invoice_id=key,
            currency=self.one(currency, currency, currency, Currency.BTC),
            address=self.one("shop", "shop", "shop", refund_address, ""),
            amount_atomic=self.one(1_000_003, 100, 1, 0),
            price_cents=self.one(*[self.context.price_cents] * 4, 1),
            tier=tier,
            months=self.one(months, months, months, months + 1),
            expires_ms=self.now_ms + self.one(hours(1), 0, minutes(30), hours(90)),
            confirmations_required=self.one(1, 0, 20),
        )

    async def payment_status(self, invoice_id: str) -> PaymentStatus:
        self.may_fail()
        due = self.context.due_atomic
        fresh = f"pk-{self.number}"
        key, shown = self.one((fresh, Secret("sk")), (fresh, None), (None, None))
        return PaymentStatus(
            invoice_id=invoice_id,
            status=self.one(
                "completed", "pending", "partial", "confirming", "expired", "refund_pending",
                "refunded",
            ),
            received_atomic=self.one(due, 0, due - 1, due * 95 // 100, due // 2, due + 1),
            due_atomic=due,
            confirmations=self.one(0, 3, 30),
            expires_ms=self.context.invoice.expires_ms,
            server_ms=self.now_ms,
            public_key=key,
            secret_key=shown,
        )  # fmt: skip

    async def regenerate_secret(self, invoice_id: str) -> Credentials:
        self.may_fail()
        return Credentials("pk", Secret(self.one("sk2", "sk3")))

    # gift cards

    async def prices(self) -> PriceList:
        self.may_fail()
        tier, months = getattr(self.context, "tier", 1), getattr(self.context, "months", 1)
        wanted = KeyPrice(tier, months, self.one(700, 0, 10**6))
        limits = self.one((700, 10**7), (0, 0), (0, 10**7))
        return PriceList(*limits, prices=self.one((wanted,), ()))

    async def create(
        self, *, amount_cents: int, currency: Currency, key: str, **wanted: Any
    ) -> NewCard:
        self.may_fail()
        invoice = Invoice(
            invoice_id=key,
            currency=self.one(currency, currency, currency, Currency.BTC),
            address=self.one("shop", "shop", "shop", wanted["refund_address"], ""),
            amount_atomic=self.one(1_000_003, 100, 1, 0),
            price_cents=self.one(*[amount_cents] * 4, 1),
            tier=0,
            months=0,
            expires_ms=self.now_ms + self.one(hours(1), 0, minutes(30), hours(90)),
            confirmations_required=self.one(1, 0, 20),
        )
        return NewCard(
            card_id=f"card-{self.number}",
            code=self.one(Secret("four-words"), None),
            amount_cents=self.one(*[amount_cents] * 4, 1),
            invoice=invoice,
        )

    async def card(self, card_id: str) -> CardStatus:
        self.may_fail()
        amount = getattr(self.context, "amount_cents", 700)
        left = self.one(amount, 0, amount // 2, amount + 1)
        return CardStatus(
            card_id=card_id,
            standing=self.one("active", "exhausted", "unpaid", "expired", "reversed"),
            amount_cents=amount,
            balance_cents=left,
            taken_cents=self.one(amount - left, amount - left, amount - left, 0),
            pending=self.one(0, 1),
        )

    async def redeem(self, code: Secret[str], **wanted: Any) -> RedemptionStatus:
        why = ("unknown_code", "unpaid", "expired", "reversed", "too_little", "denied", "other")
        self.may_fail(*(CardRefused("no", reason=one) for one in why))  # type: ignore[arg-type]
        return self.redemption_now("redeem-1")

    async def redemption(self, redemption_id: str) -> RedemptionStatus:
        self.may_fail()
        return self.redemption_now(redemption_id)

    def redemption_now(self, redemption_id: str) -> RedemptionStatus:
        standing = self.one("redeemed", "pending_approval", "denied")
        key, shown = self.one(("pk", Secret("sk")), ("pk", None))
        done = standing == "redeemed"
        return RedemptionStatus(
            redemption_id=redemption_id,
            standing=standing,
            price_cents=self.one(*[self.context.price_cents] * 4, 1),
            balance_cents=self.one(700, 0),
            public_key=key if done else None,
            secret_key=shown if done else None,
        )

    async def regenerate(self, redemption_id: str) -> Credentials:
        self.may_fail()
        return Credentials("pk", Secret(self.one("sk2", "sk3")))

    # wallet

    def __getitem__(self, currency: Currency) -> Ports:
        return self

    @property
    def currency(self) -> Currency:
        return self.context.currency

    async def new_address(self, label: str) -> str:
        self.may_fail(WalletLocked("locked"))
        return "home"

    async def balance_atomic(self) -> int:
        self.may_fail()
        amount = self.context.amount_atomic
        return self.one(10 * amount, 0, amount, amount + 1)

    async def build(self, *, address: str, amount_atomic: int) -> SignedTransaction:
        self.may_fail(
            WalletLocked("locked"), InsufficientFunds("short"), BroadcastRefused("refused")
        )
        return SignedTransaction(
            txid=f"tx-{self.number}",
            payload=Secret("bytes"),
            inputs=(f"in-{self.number}",),
            fee_atomic=self.one(0, 0, 1_000, 10**15),
            amount_atomic=amount_atomic,
            address=address,
        )

    async def release(self, transaction: SignedTransaction) -> None:
        self.may_fail(WalletLocked("locked"))

    async def broadcast(self, transaction: SignedTransaction) -> None:
        self.may_fail(WalletLocked("locked"), BroadcastRefused("refused"))

    async def look(self, transaction: SignedTransaction) -> Sighting:
        self.may_fail()
        where = self.one("mined", "unseen", "mempool", "mined", "conflicted")
        deep = self.one(30, 1, 2, 5) if where == "mined" else self.one(30, 0, 1)
        return Sighting(
            where=where,
            confirmations=deep if where in ("mined", "conflicted") else 0,
            block_hash=self.one("b1", "b1", "b2", None) if where == "mined" else None,
        )

    async def received_atomic(self, address: str, *, confirmations: int) -> int:
        self.may_fail()
        base = self.context.refund_base_atomic
        return self.one(base * 91 // 100, 0, base, base * 91 // 100 - 1)

    async def unlock(self, passphrase: Secret[str], *, seconds: int) -> None:
        self.may_fail(WalletLocked("wrong passphrase"))

    # platform

    async def healthy(self) -> bool:
        self.may_fail()
        return self.one(True, True, False)

    async def validate_key(self, credentials: Credentials, *, offset_ms: int = 0) -> KeyInfo:
        stale = Unauthorized("401", reason="invalid_timestamp", server_ms=self.moment())
        self.may_fail(stale, stale, stale, stale)
        return KeyInfo(
            valid=self.one(True, True, True, False),
            public_key=credentials.public_key,
            tier=1,
            requests_per_minute=7,
            concurrency=1,
            reason=self.one(*_REASONS, None),
            server_ms=self.moment(),
        )

    async def create_session(
        self, credentials: Credentials, *, shell: str, network_mode: str, ttl_seconds: int, key: str
    ) -> SessionInfo:
        self.may_fail()
        return SessionInfo(session_id=f"s-{key}", status="running")

    async def sessions(self, credentials: Credentials) -> tuple[SessionInfo, ...]:
        self.may_fail()
        return self.one((SessionInfo(session_id="s-1", status="running"),), ())

    async def execute(
        self, credentials: Credentials, session_id: str, command: str, *, key: str
    ) -> Execution:
        self.may_fail()
        line = shlex.split(command.partition(";")[0])[1]
        good = f"{line}\n{json.dumps(self.one(*_PLACES))}\n"
        return Execution(
            stdout=self.one(good, good, good, line, "", f"{line}\n{{", "x" * 300_000),
            stderr="",
            exit_code=self.one(0, 0, 0, 0, 1, -9),
            duration_ms=self.one(0, 7, INT64 - 1),
        )

    async def delete_session(self, credentials: Credentials, session_id: str) -> None:
        self.may_fail()

    async def languages(self, credentials: Credentials) -> tuple[str, ...]:
        self.may_fail()
        return self.one(("bash", "python"), ("bash",), ())

    # surroundings

    async def inspect(self) -> dict[str, Any]:
        self.may_fail()
        return self.one(*_PLACES)


_QUARTER = st.integers(0, 3)
_REASONS = ("invalid_key", "invalid_signature", "invalid_timestamp", "expired", "suspended", "odd")
_FIRST = {"user": 4026531837, "pid": 4026531836, "uts": 4026531838, "ipc": 4026531839}
_PLACES: tuple[dict[str, Any], ...] = (
    {"namespaces": _FIRST, "hypervisor": False, "kernel_threads": True},
    {
        "namespaces": {**_FIRST, "user": 7, "pid": 8},
        "uid_map": [[0, 1000, 1]],
        "interfaces": ["lo"],
        "memory_limit_bytes": 268435456,
        "pids_limit": 128,
        "commands": {"un": "/usr/bin/un"},
    },
    {"commands": {"un": "/usr/bin/un"}},
    {},
    {"namespaces": "not evidence"},
)


class World:
    """How effects are answered; `draw` is Hypothesis' and changes with every rule."""

    def __init__(self, *, wild: bool) -> None:
        self.wild = wild
        self.draw: Draw = lambda strategy: None
        self.luck: Luck = "always"
        self.left = 0
        self.count = 0

    def listen(self, data: st.DataObject) -> None:
        self.draw, self.left = data.draw, CALLS_PER_STEP
        self.luck = data.draw(st.sampled_from(["never", "mostly", "always"]))

    async def perform(self, effect: Effect, context: Any, call: Call) -> Event | Again | None:
        """Whatever may come of a call."""
        return await self._answer(effect.perform, context, call)

    async def reconcile(
        self, effect: Effect, context: Any, call: Call
    ) -> Event | Again | NotDone | None:
        """Whatever may come of asking."""
        return await self._answer(effect.ask, context, call)

    async def _answer(self, function: Any, context: Any, call: Call) -> Any:
        if self.left <= 0:
            raise Transient("the world is busy")
        self.left -= 1
        self.count += 1
        how = "ports"
        if self.luck != "always":
            how = self.draw(st.sampled_from(["ports"] * 8 + ["error"] + ["any"] * 3 * self.wild))
        if how == "ports":
            return await function(context, self._over_ports(context, call))
        if how == "error":
            raise self.draw(st.sampled_from([Transient("x"), Permanent("x"), OutcomeUnknown("x")]))
        near = tuple(parts_of(context))
        kind = self.draw(st.sampled_from([Again, *answers_of(function)]))
        return kind() if kind in (Again, NotDone) else self.draw(values_of(kind, near))

    def _over_ports(self, context: Any, call: Call) -> Call:
        ports = Ports(self.draw, self.luck, context, self.count, call.now_ms)
        resources = dict.fromkeys((GiftCards, Portal, Platform, Surroundings, Wallets), ports)
        return Call(
            run_id=call.run_id,
            key=call.key,
            attempt=call.attempt,
            now_ms=call.now_ms,
            resources=resources,
        )


class Process(Harness):
    """A harness whose effects reach another world.

    Every life begins with the same run id: keys, jitter and the order of the runs hang on it.
    """

    def __init__(self, life: Life, plan: CrashPlan) -> None:
        super().__init__(
            MACHINES,
            store=life.store,
            clock=life.clock,
            plan=plan,
            calls=life.world,
            secrets=life.secrets,
            new_id=lambda now_ms: "r0",
        )


# -- where lives begin --------------------------------------------------------------------------

_coins = st.sampled_from(list(Currency))
_polls = st.sampled_from([1, 500, 14_000])
_secrets = st.sampled_from([None, Secret("passphrase")])
_transaction = SignedTransaction("tx-0", Secret("bytes"), ("in-0",), 1_000, 5_000, "shop")
_evidence = st.sampled_from([None, "", "{", *(json.dumps(place) for place in _PLACES)])
BEGINNINGS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "Authentication": lambda now_ms: st.builds(
        Proof,
        public_key=st.just("pk"),
        secret_key=st.just(Secret("sk")),
        proven_before=st.booleans(),
        offset_ms_max=st.sampled_from([0, hours(24)]),
        timeout_ms=st.sampled_from([minutes(10), hours(9), 0]),
    ),
    "Confirmation": lambda now_ms: st.builds(
        Following,
        currency=_coins,
        transaction=st.just(_transaction),
        required=st.sampled_from([3, 20, 1]),
        poll_ms=_polls,
        stall_ms=st.sampled_from([minutes(30), 1]),
        since_ms=st.just(now_ms),
        give_up_ms=st.sampled_from([now_ms + hours(72), now_ms + hours(1), 0]),
        passphrase=_secrets,
    ),
    "Discovery": lambda now_ms: st.builds(
        Findings,
        evidence=_evidence,
        require_sandbox=st.booleans(),
        probes_max=st.sampled_from([0, 1, 15]),
    ),
    "GiftCard": lambda now_ms: st.builds(
        CardOrder,
        amount_cents=st.sampled_from([700, 5_000, 0]),
        currency=_coins,
        budget_cents=st.sampled_from([5_000, 700, 0]),
        amount_atomic_max=st.sampled_from([None, None, None, 0]),
        watch=st.booleans(),
        passphrase=_secrets,
        poll_ms=_polls,
        silence_ms=st.sampled_from([hours(1), hours(9), 0]),
        watch_ms=st.sampled_from([hours(1), hours(9), 0]),
    ),
    "Inception": lambda now_ms: st.builds(
        Layer,
        depth=st.sampled_from([1, 1, 1, 2, 8]),
        max_depth=st.sampled_from([2, 1, 3, 8]),
        currency=_coins.map(lambda coin: coin.value),
        budget_cents=st.sampled_from([1_400, 700, 9_999, 0]),
        poll_ms=_polls,
        inspection=st.one_of(st.none(), _evidence),
    ),
    "Payment": lambda now_ms: st.builds(
        Purchase,
        tier=st.sampled_from([1, 32]),
        months=st.sampled_from([1, 12]),
        currency=_coins,
        budget_cents=st.sampled_from([700, 701, 10**7, 0]),
        amount_atomic_max=st.sampled_from([None, None, None, 0]),
        passphrase=_secrets,
        poll_ms=_polls,
        cut_ms=st.sampled_from([None, 0]),
        silence_ms=st.sampled_from([hours(1), hours(9), 0]),
        settle_ms=st.sampled_from([hours(24), hours(9), 0]),
    ),
    "Redemption": lambda now_ms: st.builds(
        CardClaim,
        code=st.just(Secret("four-words")),
        tier=st.sampled_from([1, 32]),
        months=st.sampled_from([1, 12]),
        budget_cents=st.sampled_from([700, 10**7, 0]),
        redemption_key=st.sampled_from(["", "earlier"]),
        card_id=st.sampled_from(["", "card"]),
        poll_ms=_polls,
        approval_ms=st.sampled_from([hours(72), hours(1), 0]),
        settle_ms=st.sampled_from([hours(24), hours(9), 0]),
        silence_ms=st.sampled_from([hours(1), hours(9), 0]),
    ),
    "Spend": lambda now_ms: st.builds(
        SpendOrder,
        currency=_coins,
        address=st.just("shop"),
        amount_atomic=st.sampled_from([1, 5_000]),
        pay_by_ms=st.sampled_from([now_ms + hours(2), now_ms + minutes(5), now_ms, 0]),
        confirmations=st.sampled_from([1, 30]),
        poll_ms=_polls,
        fee_atomic_max=st.sampled_from([1_000, 0]),
        passphrase=_secrets,
    ),
}


CHILDHOOD = {"Discovery": 2, "Inception": 40, "Payment": 9, "Spend": 1}
CHILDHOOD |= {"Authentication": 0, "Confirmation": 0, "GiftCard": 12, "Redemption": 3}
"""How many calls at most go well before anything else happens, so that it happens at any stage."""


# -- lives --------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """One run of `name` and all its children; whatever may happen to them happens."""

    name: ClassVar[str]
    wild: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = open_store("sqlite://")
        self.clock = ManualClock()
        self.secrets = SecretsCodec(b"r" * 32)
        self.world = World(wild=self.wild)
        self.process = Process(self, CrashPlan())
        self.sent: list[tuple[str, str, str, Event | None]] = []
        self.ended: dict[str, Run] = {}
        self.looked_at: dict[str, tuple[int, str, int]] = {}
        self.forged: set[str] = set()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.store.close()
        self.runner.close()

    def runs(self) -> list[str]:
        """Ids, oldest first."""
        return [s.run.run_id for s in reversed(self.store.runs.select(Query(limit=1_000)))]

    def pick(self, data: st.DataObject) -> Run:
        run_id = data.draw(st.sampled_from(self.runs()))
        return self.do(self.process.app.get(run_id))

    # -- what may happen ------------------------------------------------------------------------

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.context = data.draw(BEGINNINGS[self.name](self.clock.now_ms()))
        self.do(self.process.app.open())
        assert self.do(self.process.app.start(self.name, self.context, key="life")).created
        self.grow_up(data.draw(st.integers(0, CHILDHOOD[self.name])))

    def grow_up(self, calls: int) -> None:
        """So many calls go well first."""
        self.world.left = calls
        for _ in range(2 * calls):
            if self.world.left > 0 and self.skip():
                self.do(self.process.app.settle())

    def skip(self) -> bool:
        """Move the clock to what is due next; False when nothing will be."""
        versions = frozenset(t.fingerprint for t in self.process.app.tables.values())
        due_ms = self.store.runs.next_due_ms(versions)
        if due_ms is not None:
            self.clock.advance_to(due_ms)
            self.do(self.process.app.open())
        return due_ms is not None

    @rule()
    def start_again(self) -> None:
        assert not self.do(self.process.app.start(self.name, self.context, key="life")).created

    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        """Move what is due."""
        self.world.listen(data)
        self.do(self.process.app.settle())

    @rule(data=st.data(), boundary=st.integers(1, 12), after=st.booleans())
    def work_and_die(self, data: st.DataObject, boundary: int, after: bool) -> None:
        """The process dies at the n-th boundary from here; another one comes after its lease."""
        self.world.listen(data)
        plan = self.process.plan
        plan.at = len(plan.passed) + boundary
        try:
            self.do(self.process.app.settle())
        except Crash:
            self.process = Process(self, CrashPlan())
            self.wait(LEASE_MS + 1)
        plan.at = None

    @rule(data=st.data(), times=st.integers(1, 6))
    def live_on(self, data: st.DataObject, times: int) -> None:
        """Move what is due, and then what falls due next, a few times."""
        self.world.listen(data)
        for _ in range(times):
            self.do(self.process.app.settle())
            self.skip()

    @rule(duration_ms=st.sampled_from([0, 1, 15_000, minutes(40), hours(80), -5_000]))
    def wait(self, duration_ms: int) -> None:
        """Time goes by, or is set back."""
        self.clock.advance(duration_ms)
        self.do(self.process.app.open())

    @rule(data=st.data(), verb=st.sampled_from(["pause", "resume", "resume", "cancel"]))
    def control(self, data: st.DataObject, verb: str) -> None:
        run = self.pick(data)
        app = self.process.app
        receipt = self.do(getattr(app, verb)(run.run_id))
        if data.draw(st.booleans()):
            self.do(app.apply(receipt))

    @rule(data=st.data(), key=st.integers(0, 9).map(str), at_once=st.booleans())
    def send(self, data: st.DataObject, key: str, at_once: bool) -> None:
        """Any event with any content, early or late; honest worlds forge only what is refused."""
        run = self.pick(data)
        table = self.process.app.tables[run.machine]
        event = data.draw(st.sampled_from(table.events))
        if not self.world.wild and (run.state, event) in table.edges:
            return
        at_once = at_once or not self.world.wild
        payload = None
        if event in table.payloads:
            payload = data.draw(values_of(table.payloads[event], tuple(parts_of(run.context))))
        self.sent.append((run.run_id, key, event, payload))
        self.forged.add(run.run_id)
        self.deliver(self.sent[-1], at_once=at_once)

    @rule(data=st.data(), at_once=st.booleans())
    def send_again(self, data: st.DataObject, at_once: bool) -> None:
        if self.sent:
            self.deliver(data.draw(st.sampled_from(self.sent)), at_once=at_once)

    def deliver(self, one: tuple[str, str, str, Event | None], *, at_once: bool) -> None:
        run_id, key, event, payload = one
        first = next((s for s in self.sent if s[:2] == (run_id, key)), None)
        app, known = self.process.app, self.store.inbox.receipt(run_id, key)
        quiet = not self.store.inbox.waiting(run_id)
        before: Run = self.do(app.get(run_id))
        try:
            receipt = self.do(app.send(run_id, payload or event, key=key))
        except KeyConflict:
            assert first is not None and first[2:] != (event, payload)
            return
        assert receipt.duplicate == (known is not None)
        if not at_once:
            return
        receipt = self.do(app.apply(receipt))
        after: Run = self.do(app.get(run_id))
        if known is not None and known.status != "accepted":
            assert (receipt.status, receipt.seq) == (known.status, known.seq)
        if receipt.status == "applied":
            entry = self.do(app.journal(run_id))[receipt.seq - 1]
            assert (entry.event, entry.payload) == (event, payload)
        elif receipt.status == "rejected":
            assert receipt.reason
            assert receipt.seq is None
            if quiet and not before.cancel_requested and known is None:
                held = {"held_from": None, "last_error": None, "status": before.status}
                assert after.but(**held) == before.but(**held), "a rejection changes nothing"

    @rule(data=st.data())
    def send_nonsense(self, data: st.DataObject) -> None:
        """An event nobody knows, or one with another's payload: refused before it is stored."""
        run = self.pick(data)
        app, table = self.process.app, self.process.app.tables[run.machine]
        waiting = self.store.inbox.waiting(run.run_id)
        with pytest.raises(UnknownEvent, match="has no event 'levitate'"):
            self.do(app.send(run.run_id, "levitate", key="n1"))
        event = data.draw(st.sampled_from(sorted(table.payloads)))
        with pytest.raises(BadPayload, match=table.payloads[event].__name__):
            self.do(app.send(run.run_id, event, key="n2"))
        assert self.store.inbox.waiting(run.run_id) == waiting

    # -- what must hold -------------------------------------------------------------------------

    @invariant()
    def sound(self) -> None:
        assert self.store.inspector.findings() == []
        for stored in self.store.runs.select(Query(limit=1_000)):
            run_id, seen = stored.run.run_id, (stored.run.seq, stored.run.status, stored.fence)
            if self.looked_at.get(run_id) != seen:
                self.looked_at[run_id] = seen
                self.sound_run(run_id)

    def sound_run(self, run_id: str) -> None:
        app = self.process.app
        run: Run = self.do(app.get(run_id))
        table, entries = app.tables[run.machine], self.do(app.journal(run_id))
        folded = fold(entries)
        assert (folded.seq, folded.state, folded.context) == (run.seq, run.state, run.context)
        assert folded.status == run.status or {folded.status, run.status} <= MOVING
        assert replay(table, entries) == []
        assert run.state in table.places
        if run_id in self.ended:
            assert run == self.ended[run_id], "a run that has ended moved"
        if run.terminal:
            self.ended[run_id] = run
        if run.status == "quarantined":
            self.explained(run)

    def explained(self, run: Run) -> None:
        """A run that is set aside says why; our own contracts broke only in a wild world."""
        assert run.last_error
        broken = any(sign in run.last_error for sign in _OWN_FAULTS)
        assert not broken or self.world.wild, (run.machine, run.state, run.last_error)


_OWN_FAULTS = ("ensures ", "invariant ", " raised ", "cannot begin", "returned None")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Rendering log lines costs more than the steps do."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("wild", [False, True], ids=["honest", "wild"])
@pytest.mark.parametrize("name", sorted(BEGINNINGS))
@pytest.mark.timeout(3_600)
def test_any_life_is_sound(name: str, wild: bool) -> None:
    kind = type(f"{name}Life", (Life,), {"name": name, "wild": wild})
    live(kind, settings=settings(max_examples=max(settings.default.max_examples // 4, 10)))


def test_every_machine_has_a_life() -> None:
    assert sorted(BEGINNINGS) == sorted(machine.__name__ for machine in MACHINES)
