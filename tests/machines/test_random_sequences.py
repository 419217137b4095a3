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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
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
from machines.clients.ports.executions import Artifact, Executions, Job, JobStatus
from machines.clients.ports.gift_cards import (
    CardRefused,
    CardStatus,
    GiftCards,
    KeyPrice,
    NewCard,
    PriceList,
    RedemptionStatus,
)
from machines.clients.ports.images import ImageInfo, Images, Visibility
from machines.clients.ports.introspection import (
    ClusterReport,
    Facilities,
    HealthReport,
    LanguageList,
    PoolReport,
    ShellList,
)
from machines.clients.ports.refusals import Refusal
from machines.clients.ports.services import Answer, ServiceInfo, Services
from machines.clients.ports.sessions import CellEnd, Sessions, SessionView
from machines.clients.ports.snapshots import CopyInfo, Kind, Restored, SnapshotInfo, Snapshots
from machines.clients.ports.tools import Package, Tools
from machines.flows import capture as snapshot
from machines.flows import deployment as service
from machines.flows import publication as image
from machines.flows.agent_plan import Plan
from machines.flows.canaries import Canaries, Canary
from machines.flows.capture import Capture
from machines.flows.code_run import CodeRun
from machines.flows.deployment import Deployment
from machines.flows.f01_discovery import Findings, Surroundings
from machines.flows.f03c_confirmation import Following
from machines.flows.f03w_wallet import SpendOrder
from machines.flows.f04_authentication import Proof
from machines.flows.f05_tool_install import TOOLS_COUNT
from machines.flows.gift_card import CardClaim, CardOrder
from machines.flows.inquiry import Inquiry
from machines.flows.layer import Layer
from machines.flows.money import Wallets
from machines.flows.publication import Publication
from machines.flows.purchase import Purchase
from machines.flows.session_run import SessionRun
from machines.flows.tool_calls import Installation
from machines.flows.trial import PROMISES, Trial, chosen
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


class Port:
    """Base of the ports: every answer, and every failure, is drawn.

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

    def refused(self, *codes: str) -> list[Exception]:
        """Refusals with these codes, which a platform may give; and that no slot is free."""
        found = [Refusal(one, code=one, status=self.one(409, 403)) for one in (*codes, "other")]
        return [*found, Unavailable("no slot", kind="concurrency")]


class Ports(Port):
    """Portal, gift cards, wallet, platform and surroundings in one."""

    # portal

    async def quotes(self) -> tuple[Quote, ...]:
        self.may_fail()
        tier, months = getattr(self.context, "tier", 1), getattr(self.context, "months", 1)
        wanted = Quote(tier, months, self.one(700, 0, 10**6), 7, 1)
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
        return Execution(
            stdout=self.one(*self.said(command)),
            stderr="",
            exit_code=self.one(0, 0, 0, 0, 1, -9),
            duration_ms=self.one(0, 7, INT64 - 1),
        )

    def said(self, command: str) -> list[str]:
        """What a sandbox may print to a flow's own command."""
        nonsense = ["", "{", "\ud800", "x" * 300_000]
        if isinstance(self.context, Installation):
            return [json.dumps(one) for one in _TOLD] + nonsense
        if isinstance(self.context, Trial):
            seen = PROMISES[chosen(self.context)]
            told = [seen, seen, {**seen, "dns": "open"}, dict.fromkeys(seen, "inconclusive")]
            return [
                json.dumps(
                    {"nonce": NONCE, "sights": {name: (how, "") for name, how in one.items()}}
                )
                for one in told
            ] + nonsense
        line = shlex.split(command.partition(";")[0])[1]
        good = f"{line}\n{json.dumps(self.one(*_PLACES))}\n"
        return [good, good, good, line, f"{line}\n{{", *nonsense]

    async def delete_session(self, credentials: Credentials, session_id: str) -> None:
        self.may_fail()

    async def languages(self, credentials: Credentials) -> tuple[str, ...]:
        self.may_fail()
        return self.one(("bash", "python"), ("bash",), ())

    # surroundings

    async def inspect(self) -> dict[str, Any]:
        self.may_fail()
        return self.one(*_PLACES)


class JobPorts(Port):
    """Executions."""

    def job_now(self, *likely: JobStatus) -> Job:
        status = self.one(*likely, "completed", "failed", "timeout", "cancelled")
        return Job(
            job_id="job-1",
            status=status,
            language=self.one("python", ""),
            stdout=self.one("out", "", "\x00" * 50_000),
            exit_code=self.one(0, 1, -9, None) if status in ("completed", "timeout") else None,
            artifacts=self.one((), (Artifact("a" * 200, 1, "hash"),) * 300),
            duration_ms=self.one(7, 0, INT64 - 1),
            error=self.one("", "killed"),
        )

    async def execute(self, credentials: Credentials, order: Any, *, key: str) -> Job:
        self.may_fail(*self.refused("unknown_language", "language_unavailable", "outcome_unknown"))
        return self.job_now()

    async def submit(self, credentials: Credentials, order: Any, *, key: str) -> Job:
        self.may_fail(*self.refused("sandbox_unavailable", "undetected_language"))
        return self.job_now("running", "pending", "running")

    async def job(self, credentials: Credentials, job_id: str) -> Job:
        self.may_fail()
        return self.job_now("completed", "running", "pending")

    async def cancel(self, credentials: Credentials, job_id: str) -> Job:
        self.may_fail()
        return self.job_now("cancelled", "cancelled", "running")


class SessionPorts(Port):
    """Sessions, of which one may be frozen or ended by others at any time."""

    def view(self, *likely: str) -> SessionView:
        self.may_fail(*self.refused("session_busy", "sandbox_unavailable"))
        return SessionView(  # noqa: S604 - the name of a shell
            session_id="s-1",
            status=self.one(*likely, *likely, "terminated", "running", "frozen", "starting"),
            shell="bash",
            vcpu=self.one(1, 8),
            expires_ms=self.now_ms + self.one(hours(1), 0, -1, hours(24)),
            idles_ms=self.now_ms + self.one(minutes(15), 0, -1, hours(24)),
            reason=self.one("", "expired", "deleted", "sandbox_died"),
        )

    async def create(self, credentials: Credentials, order: Any, *, key: str) -> SessionView:
        return self.view("running")

    async def look(self, credentials: Credentials, session_id: str) -> SessionView:
        return self.view("running", "frozen")

    async def run(
        self, credentials: Credentials, session_id: str, command: str, *, timeout_ms: int, key: str
    ) -> CellEnd:
        self.may_fail(*self.refused("session_busy", "outcome_unknown", "session_frozen"))
        status = self.one("completed", "completed", "timeout", "killed")
        return CellEnd(
            status=status,
            stdout=self.one("42\n", "", "é" * 9_000),
            stderr="",
            exit_code=self.one(0, 0, 1, None) if status == "completed" else None,
            duration_ms=self.one(7, 0, INT64 - 1),
        )

    async def freeze(self, credentials: Credentials, session_id: str) -> SessionView:
        return self.view("frozen")

    async def unfreeze(self, credentials: Credentials, session_id: str) -> SessionView:
        return self.view("running")

    async def extend(self, credentials: Credentials, session_id: str, seconds: int) -> SessionView:
        return self.view("running")

    async def boost(self, credentials: Credentials, session_id: str, vcpu: int) -> SessionView:
        return self.view("running")

    async def end(self, credentials: Credentials, session_id: str) -> SessionView:
        return self.view("terminated")


class ThingPorts(Port):
    """Services, snapshots and images: what is made once, changed, and removed."""

    def changed(self) -> None:
        self.may_fail(*self.refused("locked", "service_starting", "session_frozen"))

    async def set_locked(self, credentials: Credentials, it: str, *, locked: bool) -> None:
        self.changed()

    async def remove(self, credentials: Credentials, it: str) -> None:
        self.changed()

    def copied(self, kind: Kind) -> CopyInfo:
        self.changed()
        return CopyInfo(kind=kind, copy_id=f"copy-{self.number}", state="running")


class ServicePorts(ThingPorts):
    """Services, which others freeze, and which fail."""

    def info(self, *likely: str) -> ServiceInfo:
        self.may_fail(*self.refused("name_taken"))
        return ServiceInfo(
            service_id="svc-1",
            name="name",
            state=self.one(*likely, "running", "frozen", "failed", "stopped", "starting"),
            reason=self.one("", "sandbox_died"),
            url="http://name.on.here/",
            locked=False,
            deployment=self.context.deployment + self.one(1, 0),
        )

    async def create(self, credentials: Credentials, **wanted: Any) -> ServiceInfo:
        return self.info("starting")

    async def service(self, credentials: Credentials, service_id: str) -> ServiceInfo:
        return self.info("running", "running", "frozen")

    async def set_frozen(self, credentials: Credentials, service_id: str, *, frozen: bool) -> None:
        self.changed()

    async def set_env(self, credentials: Credentials, service_id: str, env: Secret[str]) -> None:
        self.changed()

    async def redeploy(self, credentials: Credentials, service_id: str, bootstrap: str) -> None:
        self.changed()

    async def visit(self, url: str, path: str) -> Answer:
        self.may_fail()
        return Answer(status=self.one(200, 404, 502), text="")

    async def destroy(self, credentials: Credentials, service_id: str) -> None:
        self.changed()


class SnapshotPorts(ThingPorts):
    """Snapshots."""

    async def take(self, credentials: Credentials, **wanted: Any) -> SnapshotInfo:
        self.may_fail(*self.refused("restore_in_progress", "session_frozen"))
        return self.snapshot_now()

    async def snapshot(self, credentials: Credentials, snapshot_id: str) -> SnapshotInfo:
        self.may_fail()
        return self.snapshot_now()

    def snapshot_now(self) -> SnapshotInfo:
        return SnapshotInfo(
            snapshot_id="snap-1",
            status="ready",
            source_type=self.context.source_type,
            source_id=self.one(self.context.source_id, "its id"),
            level=self.one("files", "files+vars", "full", ""),
            lost=self.one((), ("sockets",)),
            locked=False,
            size_bytes=self.one(7, 0),
        )

    async def restore(self, credentials: Credentials, snapshot_id: str) -> Restored:
        self.may_fail(*self.refused("restore_in_progress", "session_not_running"))
        return Restored(self.context.source_type, self.context.taken_of, "files")

    async def clone(self, credentials: Credentials, it: str, **wanted: Any) -> CopyInfo:
        return self.copied(wanted["kind"])

    async def remove_copy(self, credentials: Credentials, kind: Kind, copy_id: str) -> None:
        self.may_fail()


class ImagePorts(ThingPorts):
    """Images, of this key and of others."""

    def image_now(self, visibility: Visibility) -> ImageInfo:
        return ImageInfo(
            image_id="image-1",
            owner_key="pk",
            access=self.one("owned", "owned", "shared", "public"),
            visibility=visibility,
            level="files",
            locked=False,
            trusted=(),
        )

    async def publish(self, credentials: Credentials, **wanted: Any) -> ImageInfo:
        self.may_fail(*self.refused("session_frozen", "service_not_running"))
        return self.image_now("private")

    async def image(self, credentials: Credentials, image_id: str) -> ImageInfo:
        self.may_fail()
        return self.image_now(self.one("private", "unlisted", "public"))

    async def set_visibility(
        self, credentials: Credentials, image_id: str, visibility: Visibility
    ) -> ImageInfo:
        self.changed()
        return self.image_now(visibility)

    async def set_trusted(
        self, credentials: Credentials, image_id: str, public_key: str, *, trusted: bool
    ) -> None:
        self.changed()

    async def transfer(self, credentials: Credentials, image_id: str, public_key: str) -> None:
        self.changed()

    async def spawn(self, credentials: Credentials, it: str, **wanted: Any) -> CopyInfo:
        return self.copied(wanted["kind"])

    async def remove_spawn(self, credentials: Credentials, kind: Kind, copy_id: str) -> None:
        self.may_fail()


class HostPorts(Port):
    """What the API host says of itself; this host's canaries; the running code."""

    async def health(self) -> HealthReport:
        self.may_fail()
        return HealthReport(status="ok", problem=self.one("", "no isolation"))

    async def languages(self, credentials: Credentials) -> LanguageList:
        self.may_fail()
        return LanguageList(languages=self.one(("bash", "python"), ()))

    async def shells(self, credentials: Credentials) -> ShellList:
        self.may_fail()
        return ShellList(shells=self.one(("bash",), ()))

    async def cluster(self, credentials: Credentials) -> ClusterReport:
        self.may_fail()
        return ClusterReport(mode="single", available=self.one(8, 0), allocated=self.one(0, 8))

    async def pools(self, credentials: Credentials) -> tuple[PoolReport, ...]:
        self.may_fail()
        return self.one((PoolReport("p", 8, 3), PoolReport("q", 1, 8)), ())

    async def network_mode(self, credentials: Credentials, session_id: str) -> str:
        self.may_fail()
        return self.one(chosen(self.context), "zerotrust", "semitrusted", "terminated", "odd")

    @asynccontextmanager
    async def placed(self) -> AsyncIterator[Canary]:
        if not self.one(True, True, True, False):
            raise OSError("no port")
        yield Canary(
            port=1,
            socket="canary",
            token="token",
            nonce=NONCE,
            places={},
            process=(1, 1),
            namespaces={},
            hits=self.one(0, 0, 2),
        )

    async def package(self) -> Package:
        if not self.one(True, True, True, False):
            raise Rejected("no source")
        return Package("turtles.whl", "1", "digest", "RECORD", "record digest")

    async def proof(self, salt: str) -> str:
        return "proof"


NONCE = "nonce"
_TOLD: tuple[dict[str, Any], ...] = (
    _WELL := {
        "digest": "digest",
        "proof": "proof",
        "python": "3.11.7",
        "kept": False,
        "record": "record digest",
        "version": "1",
        "tools": TOOLS_COUNT,
        "path": "/root/.turtles/bin/turtles",
    },
    _WELL,
    _WELL | {"digest": "another"},
    _WELL | {"proof": "another"},
    _WELL | {"tools": 0},
    _WELL | {"record": "another"},
    _WELL | {"damaged": ["a.py"]},
    {"refused": "disk_full", "reason": "full"},
    {"refused": "odd", "reason": "\x00"},
)
_PORTS: dict[Any, type[Port]] = {
    **dict.fromkeys((GiftCards, Portal, Platform, Surroundings, Wallets), Ports),
    **dict.fromkeys((Facilities, Canaries, Tools), HostPorts),
    Executions: JobPorts,
    Images: ImagePorts,
    Services: ServicePorts,
    Sessions: SessionPorts,
    Snapshots: SnapshotPorts,
}
"""Who answers for which resource."""
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
        def over(port: type[Port]) -> Port:
            return port(self.draw, self.luck, context, self.count, call.now_ms)

        resources = {noun: over(port) for noun, port in _PORTS.items()}
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
_key = {"public_key": st.just("pk"), "secret_key": st.just(Secret("sk"))}
_attended = {**_key, "attended_seconds": st.sampled_from([24 * 3600, 0])}


def _scripts(*orders: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(orders), max_size=4).map(tuple)


BEGINNINGS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "Agent": lambda now_ms: st.builds(
        Plan,
        currency=_coins.map(lambda coin: coin.value),
        budget_cents=st.sampled_from([700, 5_000, 0]),
        gift_code=st.sampled_from([None, Secret("four-words")]),
        poll_ms=_polls,
        overdue_ms=st.sampled_from([minutes(30), 0]),
        silence_ms=st.sampled_from([hours(1), 0]),
    ),
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
    "Execution": lambda now_ms: st.builds(
        CodeRun,
        **_key,
        code=st.sampled_from(["print(42)", ""]),
        language=st.sampled_from(["python", "", "nonesuch"]),
        mode=st.sampled_from(["async", "sync"]),
        ttl_seconds=st.sampled_from([60, 1, 0, 901]),
        slot_attempts=st.sampled_from([1, 30]),
        submit_ms=st.sampled_from([minutes(30), 0]),
        grace_ms=st.sampled_from([minutes(1), 0]),
    ),
    "Image": lambda now_ms: st.builds(
        Publication,
        **_attended,
        source_id=st.just("source"),
        image_id=st.sampled_from(["", "image-1"]),
        script=_scripts(
            image.Show(visibility="public"),
            image.Grant(to_key="guest"),
            image.Revoke(from_key="guest"),
            image.Transfer(to_key="guest"),
            image.Spawn(),
            image.Remove(),
        ),
        then=st.sampled_from(["keep", "remove", "wait"]),
        keep=st.booleans(),
    ),
    "Introspection": lambda now_ms: st.builds(
        Inquiry,
        **_key,
        budget_cents=st.sampled_from([700, 0]),
        asking_ms=st.sampled_from([minutes(1), 0]),
    ),
    "Service": lambda now_ms: st.builds(
        Deployment,
        **_attended,
        name=st.just("name"),
        ports=st.sampled_from([(80,), ()]),
        unfreeze_on_demand=st.booleans(),
        ready_seconds=st.sampled_from([180, 0]),
        restarts_max=st.sampled_from([3, 0]),
        script=_scripts(
            service.Freeze(),
            service.Unfreeze(),
            service.Wake(),
            service.Redeploy(),
            service.SetEnv(env=Secret("A=1")),
            service.Lock(),
            service.Unlock(),
        ),
        then=st.sampled_from(["destroy", "hand_over", "wait"]),
    ),
    "Session": lambda now_ms: st.builds(
        SessionRun,
        **_key,
        cells=st.sampled_from([("x = 42", "print(x)"), (), ("",)]),
        end_after=st.booleans(),
        vcpu=st.sampled_from([1, 8, 9]),
        slot_attempts=st.sampled_from([1, 30]),
    ),
    "Snapshot": lambda now_ms: st.builds(
        Capture,
        **_attended,
        source_type=st.sampled_from(["session", "service"]),
        source_id=st.just("source"),
        least_level=st.sampled_from(["files", "full"]),
        script=_scripts(
            snapshot.Restore(),
            snapshot.Clone(),
            snapshot.Lock(),
            snapshot.Unlock(),
            snapshot.Remove(),
        ),
        then=st.sampled_from(["keep", "remove", "wait"]),
        keep=st.booleans(),
    ),
    "ToolInstall": lambda now_ms: st.builds(
        Installation,
        **_key,
        session_id=st.just("s-1"),
        digest=st.sampled_from(["", "digest", "another"]),
        timeout_ms=st.sampled_from([minutes(10), 0]),
    ),
    "Trust": lambda now_ms: st.builds(
        Trial,
        **_key,
        trust=st.sampled_from(["least", "zerotrust", "semitrusted"]),
        needs_platform=st.booleans(),
        keep=st.booleans(),
        opening_ms=st.sampled_from([minutes(10), 0]),
        probing_ms=st.sampled_from([minutes(5), 0]),
    ).filter(lambda trial: trial.trust != "zerotrust" or not trial.needs_platform),
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
CHILDHOOD |= {"Agent": 24, "Execution": 3, "Image": 6, "Introspection": 7, "Service": 8}
CHILDHOOD |= {"Session": 4, "Snapshot": 6, "ToolInstall": 5, "Trust": 4}
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
