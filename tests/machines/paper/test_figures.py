"""Every figure of the paper holds here, and each assertion can fail."""

from __future__ import annotations

import pytest

from engine.secret import Secret
from machines.clients import signing
from machines.paper import figures
from machines.paper.figures import check_all, refused, same
from machines.paper.rows import PAPER_TOTAL, ROWS
from machines.platform import gift_cards, limits, pricing


def problems() -> dict[str, str]:
    return {one.says: one.problem for one in check_all() if one.problem}


def test_all_hold() -> None:
    assert problems() == {}
    assert len({one.says for one in check_all()}) == len(check_all())


def test_every_figure_belongs_to_a_row() -> None:
    assert {one.title for one in check_all()} <= {row.title for row in ROWS}
    assert sum(row.paper for row in ROWS) == PAPER_TOTAL


def test_a_price_that_is_off_by_a_cent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "price_cents", lambda tier, months, _: 700 * tier * months - 1)
    found = problems()
    assert "Three months of tier 1 cost 19.53 dollars." in found
    assert "A thousand keys for a month cost 7,000 dollars at least." in found


def test_a_slot_too_many_and_a_request_too_many_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "concurrency", lambda tier: tier)
    monkeypatch.setattr(limits, "requests_per_minute", lambda tier: 8 * tier)
    assert {"1, 2, 4 and 8 sandboxes at once at tiers 1, 8, 16 and 32.",
            "7 to 224 requests a minute: seven times the tier."} <= set(problems())  # fmt: skip


def test_a_signature_that_leaves_out_the_body_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true_sign = signing.sign
    monkeypatch.setattr(
        signing, "sign", lambda secret, method, path, body, at: true_sign(
            Secret(secret.reveal()), method, path, b"", at)
    )  # fmt: skip
    assert "What the client signs is what the platform expects." in problems()


def test_a_code_of_three_words_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gift_cards, "_WORDS_IN_A_CODE", 3)
    assert "A code is four words, and no two of a thousand are alike." in problems()


def test_the_helpers_can_fail() -> None:
    with pytest.raises(AssertionError, match="1, expected 2"):
        same(1, 2)
    with pytest.raises(AssertionError, match="expected a refusal"):
        refused(lambda: 1, ValueError)
    refused(lambda: int("x"), ValueError)


def test_what_raises_is_told_and_nothing_else_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        """A broken one."""
        raise LookupError("gone")

    monkeypatch.setattr(figures, "_CHECKS", [(ROWS[0].title, broken), *figures._CHECKS])
    assert problems() == {"A broken one.": "LookupError: gone"}
