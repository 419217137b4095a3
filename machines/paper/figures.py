"""The figures that the paper fixes, checked against the code that uses them.

Each function below is one assertion: it looks at what runs (the platform's own pricing, the
clients' own arithmetic, the signature that is sent), returns nothing, and raises AssertionError
with what it saw.  A loop inside one does not make it more than one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from engine.clock import hours, minutes, seconds
from engine.errors import TurtlesError
from engine.secret import Secret
from engine.table import compile_table
from machines.clients import signing
from machines.clients.money import format_amount, parse_amount, parse_cents, parse_number
from machines.clients.ports import ClientError, Credentials, Currency
from machines.flows import money
from machines.paper.rows import PAPER_TOTAL, ROWS

(
    DISCOVERY, PRICING, CARDS, WALLET, CONFIRMATION, AUTH, TOOLS, EXECUTION,
    SESSION, SERVICE, SNAPSHOT, IMAGE, INTROSPECTION, TRUST, INCEPTION, AGENTS,
) = (row.title for row in ROWS)  # fmt: skip

Check = Callable[[], None]
C = TypeVar("C", bound=Check)
_CHECKS: list[tuple[str, Check]] = []


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One assertion, and what was wrong."""

    title: str
    says: str
    problem: str = ""


def of(title: str) -> Callable[[C], C]:
    """Decorator: an assertion of this row."""

    def add(check: C) -> C:
        _CHECKS.append((title, check))
        return check

    return add


def check_all() -> list[Figure]:
    """Make every assertion."""
    return [_checked(title, check) for title, check in _CHECKS]


def _checked(title: str, check: Check) -> Figure:
    says = (check.__doc__ or check.__name__).strip()
    try:
        check()
    except (AssertionError, TurtlesError, ClientError, ValueError, LookupError) as error:
        return Figure(title=title, says=says, problem=f"{type(error).__name__}: {error}")
    return Figure(title=title, says=says)


def same(seen: Any, expected: Any) -> None:
    """AssertionError with both; `assert` would vanish under -O."""
    if seen != expected:
        raise AssertionError(f"{seen!r}, expected {expected!r}")


def refused(call: Callable[[], Any], *errors: type[Exception]) -> None:
    """AssertionError unless it raises one of them."""
    try:
        seen = call()
    except errors:
        return
    raise AssertionError(f"{seen!r}, expected a refusal")


# -- 3: payment and pricing -----------------------------------------------------------------------


def _quotes() -> Any:
    from machines.platform.context import PlatformConfig
    from machines.platform.pricing import quotes

    return quotes(PlatformConfig().discount_percent)


@of(PRICING)
def prices() -> None:
    """160 prices: 32 tiers, five durations, each once."""
    same(len({(one.tier, one.months) for one in _quotes()}), 160)


@of(PRICING)
def durations() -> None:
    """Sold for 1, 3, 6, 12 and 24 months."""
    same(sorted({one.months for one in _quotes()}), [1, 3, 6, 12, 24])


@of(PRICING)
def seven_dollars() -> None:
    """A month costs 7 dollars a tier, without a discount, at every tier."""
    seen = {one.tier: one.price_cents for one in _quotes() if one.months == 1}
    same(seen, {tier: 700 * tier for tier in range(1, 33)})


@of(PRICING)
def three_months() -> None:
    """Three months of tier 1 cost 19.53 dollars."""
    same([one.price_cents for one in _quotes() if (one.tier, one.months) == (1, 3)], [1953])


@of(PRICING)
def longer_is_cheaper() -> None:
    """A longer duration costs more in all and less a month, at every tier."""
    by_tier: dict[int, list[Any]] = {}
    for one in _quotes():
        by_tier.setdefault(one.tier, []).append(one)
    for some in by_tier.values():
        some.sort(key=lambda one: one.months)
        for shorter, longer in itertools.pairwise(some):
            same(longer.price_cents > shorter.price_cents, True)
            same(longer.price_cents * shorter.months < shorter.price_cents * longer.months, True)


@of(PRICING)
def nobody_pays_less() -> None:
    """A thousand keys for a month cost 7,000 dollars at least."""
    same(min(one.price_cents for one in _quotes() if one.months == 1) * 1000, 700_000)


@of(PRICING)
def one_hour() -> None:
    """An invoice expires in an hour."""
    from machines.platform.context import PlatformConfig

    same(seconds(PlatformConfig().invoice_seconds), hours(1))


@of(PRICING)
def restocking() -> None:
    """Of a refund 9 % are kept, rounded up, and both sides reckon alike."""
    from machines.platform.pricing import restocking_fee_atomic

    chance = random.Random(7)  # noqa: S311 - amounts
    for paid in (1, 99, 100, 101, *(chance.randrange(1, 10**18) for _ in range(1000))):
        fee = restocking_fee_atomic(paid)
        same(fee, money.restocking_fee_atomic(paid))
        same(0 <= 100 * fee - 9 * paid < 100, True)


@of(PRICING)
def four_currencies() -> None:
    """Bitcoin, Litecoin, Dogecoin and Monero, on both sides."""
    from machines.platform.context import CURRENCIES

    same(set(CURRENCIES), {one.value for one in Currency})


@of(PRICING)
def polls_of_a_purchase() -> None:
    """The portal, the wallet and the chain are looked at every 14 seconds."""
    from machines.platform.pricing import POLL_SECONDS

    same((money.POLL_MS, seconds(POLL_SECONDS)), (14_000, 14_000))


# -- 3b: gift cards -------------------------------------------------------------------------------


@of(CARDS)
def least_card() -> None:
    """A card costs 7 dollars at least."""
    from machines.platform.gift_cards import AMOUNT_CENTS_MIN

    same(AMOUNT_CENTS_MIN, 700)


@of(CARDS)
def rest_of_a_card() -> None:
    """50.00 dollars less three months of tier 1 are 30.47."""
    price = next(one.price_cents for one in _quotes() if (one.tier, one.months) == (1, 3))
    same(5_000 - price, parse_cents("30.47"))


@of(CARDS)
def four_words() -> None:
    """A code is four words, and no two of a thousand are alike."""
    from machines.platform import gift_cards

    codes = [gift_cards.new_code() for _ in range(1000)]
    same({len(code.split("-")) for code in codes}, {4})
    same(len(set(codes)), 1000)


# -- 3b: wallets ----------------------------------------------------------------------------------


@of(WALLET)
def piconero() -> None:
    """4.52 XMR are 4,520,000,000,000 piconero, and 1.001 XMR loses none to a float."""
    same(parse_amount("4.52", Currency.XMR), 4_520_000_000_000)
    same(parse_amount("1.001", Currency.XMR), 1_001_000_000_000)


@of(WALLET)
def three_decimals() -> None:
    """Every amount of three decimals up to 100 XMR is exact, there and back."""
    for thousandth in range(1, 100_000):
        text = f"{thousandth // 1000}.{thousandth % 1000:03}"
        same(parse_amount(text, Currency.XMR), thousandth * 10**9)


@of(WALLET)
def there_and_back() -> None:
    """What is printed reads as the same number of atomic units, for each coin, to its supply."""
    chance = random.Random(11)  # noqa: S311 - amounts
    for currency in Currency:
        for _ in range(1000):
            atomic = chance.randrange(1, 2 * 10**19)
            same(parse_amount(format_amount(atomic, currency), currency), atomic)


@of(WALLET)
def large_coins() -> None:
    """A DOGE amount above 2^53 atomic units is not rounded."""
    same(parse_number(Decimal("100000000.00000001"), Currency.DOGE), 10_000_000_000_000_001)


@of(WALLET)
def nine_decimals() -> None:
    """A ninth decimal is refused, also when it is zero; no float and no exponent is taken."""
    for text in ("0.123456789", "0.100000000", "1E3", "1_000", "１.5", "-1", "01"):
        refused(lambda text=text: parse_amount(text, Currency.BTC), ClientError)  # type: ignore[misc]
    refused(lambda: parse_number(0.5, Currency.BTC), ClientError)


# -- 3c: confirmations ----------------------------------------------------------------------------


@of(CONFIRMATION)
def depths() -> None:
    """Deep enough: BTC 3, LTC 6, DOGE 6, XMR 10; the portal asks the same."""
    from machines.platform.context import CURRENCIES, PlatformConfig

    expected = {"BTC": 3, "LTC": 6, "DOGE": 6, "XMR": 10}
    same({one.value: one.confirmations for one in Currency}, expected)
    asked = PlatformConfig().confirmations
    same({name: asked[name] for name in CURRENCIES}, expected)


@of(CONFIRMATION)
def polls_of_a_chain() -> None:
    """A transaction is looked at every 14 seconds."""
    from machines.flows.purchase import Purchase  # which tells the machine that follows its legs

    hints = {f.name: f.default for f in msgspec.structs.fields(Purchase)}
    same(hints["poll_ms"], 14_000)


# -- 4: authentication ----------------------------------------------------------------------------


def _signed(secret: str, method: str, path: str, body: bytes, at_seconds: int) -> str:
    return signing.sign(Secret(secret), method, path, body, at_seconds)


@of(AUTH)
def both_sides_sign_alike() -> None:
    """What the client signs is what the platform expects."""
    from machines.platform import auth

    chance = random.Random(3)  # noqa: S311 - requests
    for _ in range(200):
        body, secret = chance.randbytes(40), chance.randbytes(20).hex()
        expected = auth.sign(secret, b"1700000000", b"POST", b"/execute?a=b", body)
        same(_signed(secret, "POST", "/execute?a=b", body, 1_700_000_000).encode(), expected)


@of(AUTH)
def avalanche() -> None:
    """One flipped bit of secret, method, path, time or body changes half of the signature."""
    base = _bits(_signed("secret", "POST", "/execute", b"body", 1_700_000_000))
    changed = [
        _signed("sfcret", "POST", "/execute", b"body", 1_700_000_000),
        _signed("secret", "QOST", "/execute", b"body", 1_700_000_000),
        _signed("secret", "POST", "/exebute", b"body", 1_700_000_000),
        _signed("secret", "POST", "/execute", b"bodx", 1_700_000_000),
        _signed("secret", "POST", "/execute", b"body", 1_700_000_001),
    ]
    for one in changed:
        flipped = (base ^ _bits(one)).bit_count()
        same(80 < flipped < 176, True)


def _bits(signature: str) -> int:
    return int(signature, 16)


@of(AUTH)
def tolerance() -> None:
    """A signature counts for 300 seconds, on either side, and no second longer."""
    from machines.platform import auth
    from machines.platform.replies import Problem

    def at(apart_seconds: int) -> Any:
        request = auth.SignedRequest(
            method=b"GET", path=b"/", query=b"", body=b"", authorization=b"", signature=b"",
            timestamp=str(1_700_000_000 + apart_seconds).encode(),
        )  # fmt: skip
        return lambda: auth.check_time(request, 1_700_000_000_000)

    for near in (-300, 0, 300):
        at(near)()
    for far in (-301, 301):
        refused(at(far), Problem)


@of(AUTH)
def secret_stays() -> None:
    """No header holds the secret, and no text of the credentials shows it."""
    credentials = Credentials(public_key="pk", secret_key=Secret("unsb-sk-very-secret"))
    sent = signing.headers(credentials, "POST", "/x", b"{}", 1)
    same("very-secret" in repr(sent) + repr(credentials) + str(credentials), False)


# -- limits of keys -------------------------------------------------------------------------------


@of(INTROSPECTION)
def rates() -> None:
    """7 to 224 requests a minute: seven times the tier."""
    from machines.platform.limits import requests_per_minute

    same([requests_per_minute(tier) for tier in range(1, 33)], [7 * t for t in range(1, 33)])


@of(INCEPTION)
def slots() -> None:
    """1, 2, 4 and 8 sandboxes at once at tiers 1, 8, 16 and 32."""
    from machines.platform.limits import concurrency

    same([concurrency(tier) for tier in (1, 8, 16, 32)], [1, 2, 4, 8])


@of(INCEPTION)
def costs_of_depth() -> None:
    """Four layers cost 28 dollars, eight cost 56."""
    layer = next(one.price_cents for one in _quotes() if (one.tier, one.months) == (1, 1))
    same((4 * layer, 8 * layer), (2_800, 5_600))


@of(INCEPTION)
def ten_steps() -> None:
    """The paper's ten states are states of the machine, and can be gone through in its order."""
    from machines.flows.f13_inception import Inception

    steps = ("inside_sandbox", "discover_tools", "fetch_pricing", "create_invoice", "send_payment",
             "poll_confirmation", "receive_keys", "install_tools", "create_child",
             "execute_in_child")  # fmt: skip
    table = compile_table(Inception)
    after: dict[str, set[str]] = {}
    for edge in table.all_edges():
        after.setdefault(edge.source, set()).add(edge.target)
    same(table.initial, steps[0])
    for source, target in itertools.pairwise(steps):
        same(target in _reachable(after, source, avoid=set(steps) - {target}), True)


def _reachable(after: dict[str, set[str]], source: str, avoid: set[str]) -> set[str]:
    found, todo = set[str](), [source]
    while todo:
        for target in after.get(todo.pop(), set()) - found - avoid:
            found.add(target)
            todo.append(target)
    return found


# -- sessions -------------------------------------------------------------------------------------


@of(SESSION)
def session_times() -> None:
    """A session lives an hour, a day at most, and fifteen minutes without activity."""
    from machines.platform.documents import IDLE_SECONDS
    from machines.platform.session_orders import SESSION_TTL_SECONDS_MAX, TTL_SECONDS_DEFAULT

    same((TTL_SECONDS_DEFAULT, SESSION_TTL_SECONDS_MAX), (3_600, 86_400))
    same(seconds(IDLE_SECONDS), minutes(15))


@of(EXECUTION)
def languages() -> None:
    """42 languages are known by name at least, each once."""
    from machines.platform.languages import LANGUAGES

    names = [one.name for one in LANGUAGES]
    same((len(names) >= 42, len(set(names)) == len(names)), (True, True))


@of(TOOLS)
def tools() -> None:
    """59 tools, each of its own name, each with a schema of its input."""
    from machines.agents.tools import TOOLS as ALL

    same(len({one.name for one in ALL}), 59)
    same({one.parameters["type"] for one in ALL}, {"object"})


@of(AGENTS)
def rows_add_up() -> None:
    """The paper's sixteen counts add up to its total."""
    same(sum(row.paper for row in ROWS), PAPER_TOTAL)
