"""Faults on demand, for tests and demonstrations.

Two kinds.  *Deeds* happen at once::

    expire_invoice  invoice_id?                     its time is over now
    undercount      invoice_id?, amount_atomic      the shop counts that much less
    pay_extra       invoice_id?, amount_atomic      a stranger pays into the invoice
    reorg           currency, depth, double_spend?  newest blocks are taken back; with
                                                    double_spend their payments lose to rivals
    evict           currency, txid?                 dropped from the mempool (without txid: all)
    lock_wallet     currency, wallet, passphrase    locked until the passphrase is given

(`invoice_id` is the newest invoice when left out; `expire_invoice` and others need `now_ms`.)
*Plans* are rows that wait for their moment, `count` times each, and survive a restart::

    stall_blocks              currency?             a block is not mined
    drop_reply_after_commit   route, contains?      handled in full, then the connection is cut
    status                    route, contains?, code, retry_after?    answered without handling

`route` is `"METHOD /path"` with shell wildcards; `contains` is text that the body must hold, such
as `"sendrawtransaction"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import TurtlesError, UsageError
from machines.platform.ledger import chain, mempool, transaction, wallets
from machines.platform.ledger.coins import COINS
from machines.platform.ledger.transaction import Output, Transaction
from machines.platform.replies import Problem, parse_object, reply
from persistence.database import Database, Session

PLANS: dict[str, dict[str, type]] = {
    "stall_blocks": {"currency": str},
    "drop_reply_after_commit": {"route": str, "contains": str},
    "status": {"route": str, "contains": str, "code": int, "retry_after": int},
}


class ReplyDropped(TurtlesError):
    """Raised to the server on purpose: it cuts the connection in the middle of a reply."""


def inject(sql: Session, name: str, /, *, count: int = 1, **arguments: Any) -> None:
    """Do a deed now, or plan a fault for its next `count` occasions.

    Raises:
        UsageError: unknown fault, or an argument missing or of the wrong kind.
    """
    if name in _DEEDS:
        _DEEDS[name](sql, arguments)
        return
    if name not in PLANS:
        raise UsageError(f"fault {name!r}: unknown; expected one of {sorted([*_DEEDS, *PLANS])}")
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 2**31:
        raise UsageError(f"fault {name}: count is {count!r}, expected an integer of at least 1")
    wanted = {key: value for key, value in arguments.items() if key != "now_ms"}
    _check_plan(name, wanted)
    sql.run(
        "INSERT INTO fault (name, arguments, remaining) VALUES (:name, :arguments, :count)",
        name=name,
        arguments=msgspec.json.encode(wanted).decode(),
        count=count,
    )


def clear(sql: Session) -> int:
    """Forget every planned fault; how many there were."""
    return sql.run("DELETE FROM fault")


def planned(sql: Session) -> list[dict[str, Any]]:
    """The plans still waiting, oldest first: name, arguments, remaining."""
    rows = sql.all("SELECT name, arguments, remaining FROM fault WHERE remaining > 0 ORDER BY id")
    return [{**row, "arguments": msgspec.json.decode(row["arguments"])} for row in rows]


def take(sql: Session, name: str, *, currency: str) -> bool:
    """Use up one occasion of a planned fault for this coin; False when none is planned."""
    for row in sql.all(
        "SELECT id, arguments FROM fault WHERE name = :name AND remaining > 0 ORDER BY id",
        name=name,
    ):
        if msgspec.json.decode(row["arguments"]).get("currency", currency) == currency:
            return _use(sql, row["id"])
    return False


def _use(sql: Session, fault_id: int) -> bool:
    statement = "UPDATE fault SET remaining = remaining - 1 WHERE id = :id AND remaining > 0"
    return sql.run(statement, id=fault_id) == 1


def _check_plan(name: str, arguments: Mapping[str, Any]) -> None:
    kinds = PLANS[name]
    for key, value in arguments.items():
        if key not in kinds or isinstance(value, bool) or not isinstance(value, kinds[key]):
            raise UsageError(f"fault {name}: argument {key}={value!r}; expected {_shown(kinds)}")
    for key in ("route", "code"):
        if key in kinds and key not in arguments:
            raise UsageError(f"fault {name}: argument {key} is missing; expected {_shown(kinds)}")


def _shown(kinds: Mapping[str, type]) -> str:
    return ", ".join(f"{key}: {kind.__name__}" for key, kind in kinds.items())


def _expire_invoice(sql: Session, arguments: Mapping[str, Any]) -> None:
    sql.run(
        "UPDATE invoice SET expires_ms = min(expires_ms, :now_ms) WHERE number = :number",
        now_ms=_integer(arguments, "now_ms"),
        number=_invoice(sql, arguments)["number"],
    )


def _undercount(sql: Session, arguments: Mapping[str, Any]) -> None:
    sql.run(
        "UPDATE invoice SET undercount_atomic = :amount WHERE number = :number",
        amount=_integer(arguments, "amount_atomic"),
        number=_invoice(sql, arguments)["number"],
    )


def _pay_extra(sql: Session, arguments: Mapping[str, Any]) -> None:
    invoice = _invoice(sql, arguments)
    now_ms = _integer(arguments, "now_ms")
    output = Output(invoice["address"], _integer(arguments, "amount_atomic"))
    payment = wallets.build(sql, invoice["currency"], "stranger", [output], now_ms)
    mempool.accept(sql, payment, now_ms)


def _reorg(sql: Session, arguments: Mapping[str, Any]) -> None:
    currency, depth = _currency(arguments), _integer(arguments, "depth")
    if depth < 1:
        raise UsageError(f"fault reorg: depth is {depth}, expected at least 1")
    before = chain.tip(sql, currency).height
    returned = chain.invalidate(sql, currency, depth)
    if not arguments.get("double_spend"):
        return
    now_ms = _integer(arguments, "now_ms")
    for txid in returned:
        _double_spend(sql, currency, txid, now_ms)
    # The rival branch wins by being longer.
    chain.mine(sql, currency, now_ms, before - chain.tip(sql, currency).height + 1)


def _double_spend(sql: Session, currency: str, txid: str, now_ms: int) -> None:
    """Replace a transaction by one that pays its inputs back to their owner."""
    row = chain.find(sql, currency, txid)
    if row is None or row["state"] != "mempool":
        return
    original = transaction.from_hex(row["payload"])
    places = [chain.output(sql, currency, outpoint) for outpoint in original.inputs]
    owners = {place["wallet"] for place in places if place is not None}
    if not places or owners & {"shop", None}:
        return
    chain.evict(sql, currency, txid)
    wallet = owners.pop()
    total = sum(place["amount_atomic"] for place in places if place is not None)
    address, _ = wallets.new_address(sql, currency, wallet, "", now_ms)
    rival = Transaction(
        currency=currency,
        inputs=original.inputs,
        outputs=(Output(address, total - 2 * row["fee_atomic"]),),
        salt=original.salt,
    )
    mempool.accept(sql, wallets.sign(sql, wallet, rival)[0], now_ms)


def _evict(sql: Session, arguments: Mapping[str, Any]) -> None:
    currency = _currency(arguments)
    rows = sql.all(
        "SELECT txid FROM ledger_tx WHERE currency = :currency AND state = 'mempool' ORDER BY id",
        currency=currency,
    )
    only = _text(arguments, "txid")
    for txid in [row["txid"] for row in rows]:
        if only in (None, txid):
            chain.evict(sql, currency, txid)


def _lock_wallet(sql: Session, arguments: Mapping[str, Any]) -> None:
    currency, wallet = _currency(arguments), _text(arguments, "wallet") or "payer"
    if wallets.find(sql, currency, wallet) is None:
        raise UsageError(f"fault lock_wallet: no wallet {wallet!r} for {currency}")
    passphrase = arguments.get("passphrase")
    if not isinstance(passphrase, str) or not passphrase:
        raise UsageError("fault lock_wallet: argument passphrase is missing; expected a text")
    wallets.encrypt(sql, currency, wallet, passphrase)


_DEEDS: dict[str, Callable[[Session, Mapping[str, Any]], None]] = {
    "expire_invoice": _expire_invoice,
    "undercount": _undercount,
    "pay_extra": _pay_extra,
    "reorg": _reorg,
    "evict": _evict,
    "lock_wallet": _lock_wallet,
}


def _invoice(sql: Session, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    wanted = _text(arguments, "invoice_id")
    row = sql.one(
        "SELECT * FROM invoice WHERE :id IS NULL OR invoice_id = :id ORDER BY number DESC LIMIT 1",
        id=wanted,
    )
    if row is None:
        raise UsageError(f"fault: no invoice {wanted or 'has been opened yet'}")
    return row


def _currency(arguments: Mapping[str, Any]) -> str:
    currency = arguments.get("currency")
    if currency not in COINS:
        raise UsageError(f"fault: currency is {currency!r}, expected one of {', '.join(COINS)}")
    return str(currency)


def _text(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"fault: {name} is {value!r}, expected a text or nothing")
    return value


def _integer(arguments: Mapping[str, Any], name: str) -> int:
    value = arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise UsageError(f"fault: {name} is {value!r}, expected an integer of at least 0")
    return value


def fault_routes(
    database: Database, clock_ms: Callable[[], int], chain_changed: Callable[[Session], None]
) -> list[Route]:
    """`POST /_test/faults` `{name, count?, ...}`, `GET` lists the plans, `DELETE` forgets them."""

    async def faults(request: Request) -> Response:
        try:
            if request.method == "POST":
                body = {"now_ms": clock_ms(), **parse_object(await request.body())}
                with database.transaction() as sql:
                    name = str(body.pop("name", ""))
                    inject(sql, name, **body)
                    if name == "reorg":
                        chain_changed(sql)
        except Problem as problem:
            return problem.response()
        except (UsageError, wallets.NotEnough, mempool.Refusal) as error:
            return Problem(400, "invalid_fault", str(error)).response()
        with database.transaction() as sql:
            if request.method == "DELETE":
                clear(sql)
            return reply({"faults": planned(sql)})

    return [Route("/_test/faults", faults, methods=["GET", "POST", "DELETE"])]


class FaultMiddleware:
    """Applies the planned route faults.  Pure ASGI: it must be able to break the protocol."""

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self._app = app
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or misbehave instead."""
        if scope["type"] != "http" or scope["path"].startswith("/_test/"):
            await self._app(scope, receive, send)
            return
        candidates = self._candidates(f"{scope['method']} {scope['path']}")
        if not candidates:
            await self._app(scope, receive, send)
            return
        body = await _read_body(receive)
        fault = self._choose(candidates, body)
        again = _replay(body, receive)
        if fault is None:
            await self._app(scope, again, send)
        elif fault["name"] == "status":
            await _refuse(fault["arguments"])(scope, again, send)
        else:
            await self._app(scope, again, _swallow)
            await _cut(send)

    def _candidates(self, route: str) -> list[dict[str, Any]]:
        with self._database.reading() as sql:
            rows = sql.all(
                """
                SELECT id, name, arguments FROM fault
                WHERE name IN ('status', 'drop_reply_after_commit') AND remaining > 0 ORDER BY id
                """
            )
        faults = [{**row, "arguments": msgspec.json.decode(row["arguments"])} for row in rows]
        return [fault for fault in faults if fnmatchcase(route, fault["arguments"]["route"])]

    def _choose(self, candidates: list[dict[str, Any]], body: bytes) -> dict[str, Any] | None:
        for fault in candidates:
            if fault["arguments"].get("contains", "").encode() in body:
                with self._database.transaction() as sql:
                    if _use(sql, fault["id"]):
                        return fault
        return None


def _refuse(arguments: Mapping[str, Any]) -> Response:
    code = arguments["code"]
    error = "rate_limit_exceeded" if code == 429 else "unavailable"
    headers = {"Retry-After": str(arguments["retry_after"])} if "retry_after" in arguments else {}
    return Problem(
        code, error, f"refused with {code} by a planned fault", headers=headers
    ).response()


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The request body once more, then whatever the server says (a disconnect)."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


async def _swallow(_message: Message) -> None:
    """Where a dropped reply goes."""


async def _cut(send: Send) -> None:
    # Before a reply has begun a server answers an exception with 500; after that it can only
    # close the connection, which is what the client must see.
    headers = [(b"content-length", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    raise ReplyDropped("reply dropped by a planned fault")
