"""A small world for the flows: a chain, a wallet, a portal and a platform, on a manual clock.

The chain is the truth: a dict of transactions, a mempool, a list of blocks.  Blocks come by the
clock.  Every port can be told to misbehave: `fail("broadcast", error)` raises before anything
happens, `fail("broadcast", error, after=True)` once it has happened (a reply that got lost).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.clock import hours, minutes, seconds
from engine.decide import Decision, Violation, begin, decide
from engine.definition import Oracle
from engine.events import event_id
from engine.ports import Query
from engine.run import Run
from engine.secret import Secret
from engine.secrets import SecretsCodec
from engine.table import compile_table
from engine.testing import CrashPlan, Harness, ManualClock
from machines.clients.ports import (
    BroadcastRefused,
    Credentials,
    Currency,
    InsufficientFunds,
    Invoice,
    KeyInfo,
    NotFound,
    PaymentStatus,
    Platform,
    Portal,
    Quote,
    Sighting,
    SignedTransaction,
    Unauthorized,
    WalletLocked,
)
from machines.flows.f03_payment import Payment
from machines.flows.f03c_confirmation import Confirmation, Following
from machines.flows.f03w_wallet import Spend, SpendOrder
from machines.flows.f04_authentication import Authentication
from machines.flows.money import FEE_ATOMIC_MAX, Wallets
from machines.flows.purchase import Purchase
from persistence.store import open_store

MACHINES = (Authentication, Confirmation, Payment, Spend)
FEE_ATOMIC = 1_000
DUE_ATOMIC = 1_000_003  # odd, so that 9 % does not divide
PRICE_CENTS = 700


class Faulty:
    """What the ports share: faults waiting for their call, and a count of the calls."""

    def __init__(self) -> None:
        self.faults: dict[str, list[tuple[Exception, bool]]] = {}
        self.calls: dict[str, int] = {}

    def fail(self, method: str, *errors: Exception, after: bool = False, times: int = 1) -> None:
        """The next calls of `method` fail, one error each."""
        self.faults.setdefault(method, []).extend((e, after) for e in errors for _ in range(times))

    def _call(self, method: str, act: Callable[[], Any]) -> Any:
        self.calls[method] = self.calls.get(method, 0) + 1
        waiting = self.faults.get(method)
        if not waiting:
            return act()
        error, after = waiting.pop(0)
        if after:
            act()
        raise error


@dataclass
class Tx:
    """A transaction: which coins it spends, what it pays to whom."""

    txid: str
    inputs: tuple[str, ...]
    outputs: dict[str, int]
    seen_ms: int


@dataclass
class FakeChain:
    """Transactions, a mempool and blocks; `catch_up` mines what the clock has passed."""

    clock: ManualClock
    block_ms: int = minutes(1)
    frozen: bool = False
    transactions: dict[str, Tx] = field(default_factory=dict)
    mempool: list[str] = field(default_factory=list)
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)
    agenda: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    due_ms: int = 0
    salt: int = 0
    peak: int = 0
    final: int = 6

    def __post_init__(self) -> None:
        self.due_ms = self.clock.now_ms() + self.block_ms

    def later(self, duration_ms: int, action: Callable[[], None]) -> None:
        """Do something once the clock has moved so far."""
        self.agenda.append((self.clock.now_ms() + duration_ms, action))

    def catch_up(self) -> None:
        """Let happen what should have happened by now."""
        now_ms = self.clock.now_ms()
        for entry in [one for one in self.agenda if one[0] <= now_ms]:
            self.agenda.remove(entry)
            entry[1]()
        while self.due_ms <= now_ms:
            self.due_ms += self.block_ms
            if not self.frozen:
                self.mine()

    def mine(self, count: int = 1) -> None:
        """Blocks with everything that waits."""
        for _ in range(count):
            self.salt += 1
            self.blocks.append((f"block-{self.salt}", self.mempool))
            self.mempool = []
        self.peak = max(self.peak, len(self.blocks))

    def reorganise(self, depth: int, *, lose: bool = False) -> None:
        """Undo blocks; what was in them waits again, or is lost.

        What was once `final` blocks deep is never undone: that is what the depth is chosen for.
        """
        for _ in range(depth):
            if len(self.blocks) <= self.peak - self.final + 1 or not self.blocks:
                return
            _, txids = self.blocks.pop()
            self.mempool = [*([] if lose else txids), *self.mempool]

    def evict(self) -> None:
        """The mempool forgets everything."""
        self.mempool = []

    def accept(self, tx: Tx) -> None:
        """Take a transaction, unless an input is gone."""
        if self.depth(tx.txid) is not None:
            return
        if self.rival(tx) is not None:
            raise BroadcastRefused("-25: bad-txns-inputs-missingorspent")
        self.transactions.setdefault(tx.txid, tx)
        self.mempool.append(tx.txid)

    def steal(self, tx: Tx | SignedTransaction, *, mined: bool) -> None:
        """Another transaction spends the first input; ours falls out, unless it is final."""
        if any(tx.txid in txids for _, txids in self.blocks[: max(self.peak - self.final + 1, 0)]):
            return
        if self.rival(tx) is not None:
            return
        self.mempool = [txid for txid in self.mempool if txid != tx.txid]
        for _, txids in self.blocks:
            if tx.txid in txids:
                txids.remove(tx.txid)
        self.salt += 1
        rival = Tx(f"rival-{self.salt}", tx.inputs[:1], {"thief": 1}, self.clock.now_ms())
        self.transactions[rival.txid] = rival
        self.mempool.append(rival.txid)
        if mined:
            self.mine()

    def depth(self, txid: str) -> int | None:
        """Confirmations; 0 in the mempool; None when nobody has it."""
        for index, (_, txids) in enumerate(self.blocks):
            if txid in txids:
                return len(self.blocks) - index
        return 0 if txid in self.mempool else None

    def block_of(self, txid: str) -> str | None:
        """The hash of the block that holds it."""
        return next((name for name, txids in self.blocks if txid in txids), None)

    def known(self) -> list[Tx]:
        """Everything in mempool or chain."""
        txids = [*self.mempool, *(txid for _, block in self.blocks for txid in block)]
        return [self.transactions[txid] for txid in txids]

    def rival(self, tx: Tx | SignedTransaction) -> Tx | None:
        """Who else spends one of its inputs."""
        return next(
            (
                other
                for other in self.known()
                if other.txid != tx.txid and set(other.inputs) & set(tx.inputs)
            ),
            None,
        )

    def paid_to(self, address: str, *, confirmations: int = 0) -> list[tuple[Tx, int]]:
        """Who pays an address, with the depth."""
        found = [(tx, self.depth(tx.txid) or 0) for tx in self.known() if address in tx.outputs]
        return [(tx, depth) for tx, depth in found if depth >= confirmations]

    def total(self, address: str, *, confirmations: int = 0) -> int:
        """What an address has received."""
        return sum(
            tx.outputs[address] for tx, _ in self.paid_to(address, confirmations=confirmations)
        )


class FakeWallet(Faulty):
    """A wallet of many coins of one chain."""

    def __init__(self, currency: Currency, chain: FakeChain) -> None:
        super().__init__()
        self._currency = currency
        self.chain = chain
        self.coins: dict[str, int] = {f"coin-{n}": 2 * DUE_ATOMIC for n in range(20)}
        self.reserved: set[str] = set()
        self.built: list[SignedTransaction] = []
        self.built_ms: list[int] = []
        self.handed_out: list[str] = []
        self.passphrase: str | None = None
        self.unlocked = True

    @property
    def currency(self) -> Currency:
        return self._currency

    def lock(self, passphrase: str) -> None:
        """From now on it needs its passphrase."""
        self.passphrase, self.unlocked = passphrase, False

    async def new_address(self, label: str) -> str:
        return self._call("new_address", lambda: f"ours-{label}")

    async def balance_atomic(self) -> int:
        return self._call("balance_atomic", lambda: sum(self._free().values()))

    def _free(self) -> dict[str, int]:
        spent = {one for tx in self.chain.known() for one in tx.inputs}
        return {c: a for c, a in self.coins.items() if c not in spent | self.reserved}

    async def build(self, *, address: str, amount_atomic: int) -> SignedTransaction:
        return self._call("build", lambda: self._build(address, amount_atomic))

    def _build(self, address: str, amount_atomic: int) -> SignedTransaction:
        if not self.unlocked:
            raise WalletLocked("wallet: -13: passphrase needed")
        fitting = [c for c, a in self._free().items() if a >= amount_atomic + FEE_ATOMIC]
        if not fitting:
            raise InsufficientFunds("wallet: -6: Insufficient funds")
        self.reserved.add(fitting[0])
        text = f"{fitting[0]}>{address}:{amount_atomic}:{len(self.built)}"
        txid = hashlib.sha256(text.encode()).hexdigest()[:16]
        built = SignedTransaction(
            txid=txid,
            payload=Secret(text),
            inputs=(fitting[0],),
            fee_atomic=FEE_ATOMIC,
            amount_atomic=amount_atomic,
            address=address,
        )
        self.built.append(built)
        self.built_ms.append(self.chain.clock.now_ms())
        return built

    async def release(self, transaction: SignedTransaction) -> None:
        self._call("release", lambda: self.reserved.difference_update(transaction.inputs))

    async def broadcast(self, transaction: SignedTransaction) -> None:
        def act() -> None:
            self.handed_out.append(transaction.txid)
            outputs = {transaction.address: transaction.amount_atomic}
            now_ms = self.chain.clock.now_ms()
            self.chain.accept(Tx(transaction.txid, transaction.inputs, outputs, now_ms))

        self.chain.catch_up()
        self._call("broadcast", act)

    async def look(self, transaction: SignedTransaction) -> Sighting:
        self.chain.catch_up()
        return self._call("look", lambda: self.sighting(transaction))

    def sighting(self, transaction: SignedTransaction) -> Sighting:
        """Where it is, without counting as a call."""
        depth = self.chain.depth(transaction.txid)
        if depth:
            block = self.chain.block_of(transaction.txid)
            return Sighting(where="mined", confirmations=depth, block_hash=block)
        if depth == 0:
            return Sighting(where="mempool")
        rival = self.chain.rival(transaction)
        if rival is None:
            return Sighting(where="unseen")
        return Sighting(where="conflicted", confirmations=self.chain.depth(rival.txid) or 0)

    async def received_atomic(self, address: str, *, confirmations: int) -> int:
        self.chain.catch_up()
        return self._call(
            "received_atomic", lambda: self.chain.total(address, confirmations=confirmations)
        )

    async def unlock(self, passphrase: Secret[str], *, seconds: int) -> None:
        def act() -> None:
            if self.passphrase is not None and passphrase.reveal() != self.passphrase:
                raise WalletLocked("wallet: -14: the passphrase is wrong")
            self.unlocked = True

        self._call("unlock", act)


class FakePortal(Faulty):
    """Sells one kind of key; judges an invoice afresh from the chain at each look."""

    def __init__(self, chain: FakeChain, currency: Currency) -> None:
        super().__init__()
        self.chain = chain
        self.currency = currency
        self.required = currency.confirmations
        self.life_ms = hours(1)
        self.price_cents = PRICE_CENTS
        self.invoiced_cents = PRICE_CENTS
        self.amount_atomic = DUE_ATOMIC
        self.undercount_atomic = 0
        self.refund_short_atomic = 0
        self.silent = False
        self.closed = False
        self.invoices: dict[str, Invoice] = {}
        self.refund_address = ""
        self.returned: Tx | None = None
        self.generation = 0
        self.viewed = False
        self.complete = False

    @property
    def invoice(self) -> Invoice:
        """The one invoice of a test."""
        (found,) = self.invoices.values()
        return found

    @property
    def secret(self) -> str:
        """The secret that works now."""
        return f"unsb-sk-{self.generation}"

    async def quotes(self) -> tuple[Quote, ...]:
        def act() -> tuple[Quote, ...]:
            return (
                Quote(
                    tier=1,
                    months=1,
                    price_cents=self.price_cents,
                    requests_per_minute=7,
                    concurrency=1,
                ),
            )

        return self._call("quotes", act)

    async def create_invoice(
        self, *, tier: int, months: int, currency: Currency, refund_address: str, key: str
    ) -> Invoice:
        def act() -> Invoice:
            self.refund_address = refund_address
            return self.invoices.setdefault(
                key,
                Invoice(
                    invoice_id=f"inv-{len(self.invoices)}",
                    currency=currency,
                    address=f"shop-{len(self.invoices)}",
                    amount_atomic=self.amount_atomic,
                    price_cents=self.invoiced_cents,
                    tier=tier,
                    months=months,
                    expires_ms=self.chain.clock.now_ms() + self.life_ms,
                    confirmations_required=self.required,
                ),
            )

        return self._call("create_invoice", act)

    async def payment_status(self, invoice_id: str) -> PaymentStatus:
        self.chain.catch_up()
        return self._call("payment_status", lambda: self._status(invoice_id))

    def _status(self, invoice_id: str) -> PaymentStatus:
        invoice = next((i for i in self.invoices.values() if i.invoice_id == invoice_id), None)
        if invoice is None:
            raise NotFound(f"portal: no invoice {invoice_id}")
        now_ms = self.chain.clock.now_ms()
        paid = self.chain.paid_to(invoice.address)
        in_time = [(tx, d) for tx, d in paid if tx.seen_ms < invoice.expires_ms]
        received = self._count(invoice, paid)
        status = self._judge(invoice, paid, in_time, now_ms)
        secret = None
        if status == "completed" and not self.viewed:
            self.viewed, secret = True, Secret(self.secret)
        return PaymentStatus(
            invoice_id=invoice_id,
            status=status,
            received_atomic=received,
            due_atomic=invoice.amount_atomic,
            confirmations=min((depth for _, depth in paid), default=0),
            expires_ms=invoice.expires_ms,
            server_ms=now_ms,
            public_key="unsb-pk-1" if status == "completed" else None,
            secret_key=secret,
        )

    def _count(self, invoice: Invoice, paid: list[tuple[Tx, int]]) -> int:
        total = sum(tx.outputs[invoice.address] for tx, _ in paid)
        return max(total - self.undercount_atomic, 0)

    def _judge(self, invoice: Invoice, paid: Any, in_time: Any, now_ms: int) -> Any:
        full = self._count(invoice, in_time) >= invoice.amount_atomic
        deep = all(depth >= self.required for _, depth in paid)
        if self.complete or (full and not self.closed and not self.returned):
            self.complete = self.complete or (deep and not self.silent)
            return "completed" if self.complete else "confirming"
        received = self._count(invoice, paid)
        if now_ms < invoice.expires_ms and not self.closed:
            return "partial" if received else "pending"
        if not received:
            return "expired"
        if deep and self.returned is None and not self.silent:
            self._send_back(received, now_ms)
        arrived = self.returned and (self.chain.depth(self.returned.txid) or 0) >= self.required
        return "refunded" if arrived else "refund_pending"

    def _send_back(self, received: int, now_ms: int) -> None:
        amount = received - (9 * received + 99) // 100 - self.refund_short_atomic
        self.returned = Tx("refund", ("till",), {self.refund_address: amount}, now_ms)
        self.chain.accept(self.returned)

    async def regenerate_secret(self, invoice_id: str) -> Credentials:
        def act() -> Credentials:
            self.generation += 1
            return Credentials(public_key="unsb-pk-1", secret_key=Secret(self.secret))

        return self._call("regenerate_secret", act)


class FakePlatform(Faulty):
    """Judges keys: by the portal's newest secret, and by the clock."""

    def __init__(self, portal: FakePortal, clock: ManualClock) -> None:
        super().__init__()
        self.portal = portal
        self.clock = clock
        self.ahead_ms = 0
        self.refusal: str | None = None
        self.tells_time = True
        self.offsets: list[int] = []

    async def validate_key(self, credentials: Credentials, *, offset_ms: int = 0) -> KeyInfo:
        return self._call("validate_key", lambda: self._judge(credentials, offset_ms))

    def _judge(self, credentials: Credentials, offset_ms: int) -> KeyInfo:
        self.offsets.append(offset_ms)
        server_ms = self.clock.now_ms() + self.ahead_ms if self.tells_time else None
        if abs(self.ahead_ms - offset_ms) > seconds(300):
            raise Unauthorized("401", reason="invalid_timestamp", server_ms=server_ms)
        if self.refusal is not None:
            raise Unauthorized("401", reason=self.refusal, server_ms=server_ms)
        if credentials.secret_key.reveal() != self.portal.secret:
            raise Unauthorized("401", reason="invalid_signature", server_ms=server_ms)
        return KeyInfo(
            valid=True,
            public_key=credentials.public_key,
            tier=1,
            requests_per_minute=7,
            concurrency=1,
            server_ms=server_ms,
        )


@dataclass
class Story:
    """How a run went: its last state, what it gave, and the states it passed."""

    run_id: str
    state: str
    status: str
    context: Any
    output: Any
    passed: list[str]
    events: list[str]
    last_error: str | None


class World:
    """Everything a purchase meets, and a way to run machines in it."""

    def __init__(self, currency: Currency = Currency.LTC, *, store_url: str = "sqlite://") -> None:
        self.currency = currency
        self.clock = ManualClock()
        self.chain = FakeChain(self.clock)
        self.wallet = FakeWallet(currency, self.chain)
        self.portal = FakePortal(self.chain, currency)
        self.platform = FakePlatform(self.portal, self.clock)
        self.store = open_store(store_url)
        self.codec = SecretsCodec(bytes(32))
        self.crashes = 0

    def purchase(self, **changes: Any) -> Purchase:
        """A purchase of the one key on offer."""
        fields: dict[str, Any] = {
            "tier": 1,
            "months": 1,
            "currency": self.currency,
            "budget_cents": PRICE_CENTS,
        }
        return Purchase(**(fields | changes))

    def order(self, **changes: Any) -> SpendOrder:
        """A spend that may begin within the next half hour."""
        fields: dict[str, Any] = {
            "currency": self.currency,
            "address": "shop",
            "amount_atomic": DUE_ATOMIC,
            "pay_by_ms": self.clock.now_ms() + minutes(30),
            "confirmations": self.currency.confirmations,
            "poll_ms": seconds(14),
            "fee_atomic_max": FEE_ATOMIC_MAX[self.currency],
        }
        return SpendOrder(**(fields | changes))

    def signed(self) -> SignedTransaction:
        """A transaction of our wallet that nobody has seen."""
        return self.wallet._build("shop", DUE_ATOMIC)

    def following(self, transaction: SignedTransaction, **changes: Any) -> Following:
        """Following one transaction for up to three days."""
        fields: dict[str, Any] = {
            "currency": self.currency,
            "transaction": transaction,
            "required": self.currency.confirmations,
            "poll_ms": seconds(14),
            "stall_ms": minutes(30),
            "since_ms": self.clock.now_ms(),
            "give_up_ms": self.clock.now_ms() + hours(72),
        }
        return Following(**(fields | changes))

    async def run(
        self, machine: Any, context: Any, *, crash_at: tuple[int, ...] = (), horizon_ms: int = 0
    ) -> Story:
        """Run a machine until nothing will move it any more; die and come back as told."""
        for at in (*crash_at, None):
            if await self._live(machine, context, at, horizon_ms):
                break
            self.crashes += 1
            self.clock.advance(seconds(20))  # the dead worker's lease runs out
        return await self.story(machine, "the run")

    async def _live(self, machine: Any, context: Any, at: int | None, horizon_ms: int) -> bool:
        harness = self.harness(CrashPlan(at=at))
        try:
            async with harness:
                await harness.app.start(machine, context, key="the run")
                await harness.until_idle(**({"horizon_ms": horizon_ms} if horizon_ms else {}))
        except BaseException:
            if harness.plan.dead:
                return False
            raise
        return True

    def harness(self, plan: CrashPlan | None = None) -> Harness:
        """An app over this world."""
        return Harness(
            MACHINES,
            store=self.store,
            resources={
                Portal: self.portal,
                Platform: self.platform,
                Wallets: Wallets({self.currency: self.wallet}),
            },
            clock=self.clock,
            plan=plan,
            secrets=self.codec,
        )

    async def story(self, machine: Any, key: str) -> Story:
        """What became of a run."""
        async with self.harness() as harness:
            run_id = await harness.app.find(machine, key)
        assert run_id is not None
        return await self._story(run_id)

    async def _story(self, run_id: str) -> Story:
        async with self.harness() as harness:
            outcome = await harness.app.outcome(run_id)
            entries = await harness.app.journal(run_id)
        passed = [e.target for i, e in enumerate(entries) if i == 0 or e.target != e.source]
        return Story(
            run_id=run_id,
            state=outcome.state,
            status=outcome.status,
            context=outcome.context,
            output=outcome.output,
            passed=passed,
            events=[entry.event for entry in entries],
            last_error=outcome.last_error,
        )

    async def children(self, machine: Any) -> list[Story]:
        """The stories of the child runs of one machine, oldest first."""
        async with self.harness() as harness:
            stored = await harness.app.runs(Query(machine=machine.__name__))
        stored.sort(key=lambda one: one.run.created_ms)
        return [await self._story(one.run.run_id) for one in stored]

    def paid(self) -> int:
        """What the shop's addresses hold by the chain's word, dead transactions left out."""
        addresses = {"shop", *(invoice.address for invoice in self.portal.invoices.values())}
        return sum(self.chain.total(address) for address in addresses)


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Worlds of other coins, or several in one test."""
    made: list[World] = []

    def make(*args: Any, **options: Any) -> World:
        made.append(World(*args, **options))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A litecoin world in which everything works."""
    return make_world()


def _library_agrees(machine: Any, context: Any, steps: Any) -> None:
    """The compiled table and python-statemachine take and refuse the same, with the same result.

    The library knows no preconditions, and the engine takes nothing back: where a contract refuses
    an event, the library is not asked.
    """
    table = compile_table(machine)
    run = _begun(table, context)
    oracle = Oracle(machine, run.state, run.context)
    now_ms = 0
    for step, (event, passed_ms) in enumerate(steps):
        now_ms += passed_ms
        name, payload = _named(event, run.context)
        result = decide(table, run, name, payload, now_ms)
        assert not isinstance(result, Violation), result
        if isinstance(result, Decision):
            assert oracle.send(name, payload, now_ms), (step, name)
            run = result.after
        elif "precondition" not in result.reason:
            assert not oracle.send(name, payload, now_ms), (step, name, result.reason)
        assert (oracle.state, oracle.context) == (run.state, run.context)
        if run.terminal or run.closing:
            return


def _walk(machine: Any, context: Any, steps: Any) -> list[Run]:
    """Every run along a sequence of events: no contract breaks, a refusal changes nothing."""
    table = compile_table(machine)
    runs = [_begun(table, context)]
    entries = 0
    now_ms = 0
    for event, passed_ms in steps:
        now_ms += passed_ms
        result = decide(table, runs[-1], *_named(event, runs[-1].context), now_ms)
        assert not isinstance(result, Violation), (event, runs[-1].state, result.reason)
        if isinstance(result, Decision):
            entries += 1
            assert result.entry.seq == result.after.seq == runs[-1].seq + 1
            assert (result.entry.target, result.entry.context) == (
                result.after.state,
                result.after.context,
            )
            runs.append(result.after)
    return runs


def _begun(table: Any, context: Any) -> Run:
    begun = begin(table, run_id="r1", context=context, now_ms=0)
    assert isinstance(begun, Decision)
    return begun.after


def _named(event: Any, context: Any) -> tuple[str, Any]:
    if callable(event):  # an event that fits the context
        event = event(context)
    return (event, None) if isinstance(event, str) else (event_id(type(event)), event)


@pytest.fixture(scope="session")
def library_agrees() -> Callable[..., None]:
    """Check a sequence of events against python-statemachine itself."""
    return _library_agrees


@pytest.fixture(scope="session")
def walk() -> Callable[..., list[Run]]:
    """Take a machine through a sequence of events."""
    return _walk
