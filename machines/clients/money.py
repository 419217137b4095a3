"""Amounts at the edge: decimal text or JSON numbers in, `int` atomic units or cents inside.

A float never takes part: JSON is read with `parse_float=Decimal`, the arithmetic runs in a local
context of 40 digits with `Inexact` trapped, and an amount with more decimals than the coin has is
refused, never rounded.  `Decimal()` alone is too kind: it takes ``1_000``, ``1E3`` and full-width
digits, so text passes an ASCII pattern first.  Source: payments.md section 4.3.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Any

from machines.clients.ports import Currency, Rejected

_PLAIN = re.compile(r"(0|[1-9]\d*)(\.\d+)?", re.ASCII)
_EXACT = Context(prec=40, traps=[Inexact, InvalidOperation, Overflow])
_TEXT_LENGTH_MAX = 60
_CENT_DECIMALS = 2
_MAGNITUDE_MAX = 25  # digits before the point; far above any supply, far below a memory bomb


def parse_amount(text: str, currency: Currency) -> int:
    """Atomic units of a plain decimal text such as ``"4.52"``.

    Raises:
        Rejected: sign, exponent, blank, leading zero, foreign digits, or too many decimals.
    """
    if not isinstance(text, str):
        raise _refusal(text, currency.value, "expected decimal text")
    return _atomic(text, currency.exponent, currency.value)


def parse_number(value: Any, currency: Currency) -> int:
    """Atomic units of what a node's JSON holds: an exact number, or plain decimal text."""
    return _from_json(value, currency.exponent, currency.value)


def parse_cents(value: Any) -> int:
    """US cents of a JSON number or text in dollars, e.g. ``Decimal("19.53")`` gives 1953."""
    return _from_json(value, _CENT_DECIMALS, "USD")


def format_amount(atomic: int, currency: Currency) -> str:
    """Plain decimal text with all of the coin's decimals, as bitcoind accepts it.

    Raises:
        Rejected: not an `int`, or negative.
    """
    if type(atomic) is not int or atomic < 0:
        raise _refusal(atomic, currency.value, "expected a whole number of atomic units, >= 0")
    try:
        # format 'f': str() of a small Decimal would print an exponent ("0E-8").
        return format(_EXACT.scaleb(Decimal(atomic), -currency.exponent), "f")
    except ArithmeticError as error:
        raise _refusal(atomic, currency.value, "expected at most 40 digits") from error


def _from_json(value: Any, decimals: int, unit: str) -> int:
    if isinstance(value, str):
        return _atomic(value, decimals, unit)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _refusal(value, unit, "expected a number")
    number = Decimal(value)
    if not number.is_finite() or number < 0 or number.adjusted() > _MAGNITUDE_MAX:
        raise _refusal(value, unit, f"expected a number >= 0 of at most {_MAGNITUDE_MAX} digits")
    return _scaled(number, value, decimals, unit)


def _atomic(text: str, decimals: int, unit: str) -> int:
    if len(text) > _TEXT_LENGTH_MAX or not _PLAIN.fullmatch(text):
        raise _refusal(text, unit, "expected plain digits with an optional fraction")
    return _scaled(Decimal(text), text, decimals, unit)


def _scaled(number: Decimal, seen: Any, decimals: int, unit: str) -> int:
    # One decimal too many is refused even when it is zero: bitcoind does the same.
    exponent = number.as_tuple().exponent
    if isinstance(seen, str) and isinstance(exponent, int) and -exponent > decimals:
        raise _refusal(seen, unit, f"expected at most {decimals} decimals")
    try:
        scaled = _EXACT.scaleb(number, decimals)
        return int(_EXACT.to_integral_exact(scaled))
    except ArithmeticError as error:
        problem = f"expected at most {decimals} decimals and 40 digits"
        raise _refusal(seen, unit, problem) from error


def _refusal(seen: Any, unit: str, expected: str) -> Rejected:
    return Rejected(f"amount {str(seen)[:_TEXT_LENGTH_MAX]!r} {unit}: {expected}")
