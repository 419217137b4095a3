"""The platform's life cycles: linted, equal to the library, and moved with their rows."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide import Decision, Violation, begin, decide
from engine.definition import Oracle
from engine.errors import Refused, UsageError
from engine.secrets import SecretsCodec
from engine.table import compile_table
from engine.verification.environment import environment_of
from engine.verification.lint import lint
from machines.environments import lives as _environments
from machines.platform import lives
from machines.platform.database import open_platform_database
from machines.platform.lives.gift_card import CardPaid, GiftCardLife, GiftTerms, Redeem
from machines.platform.lives.invoice import InvoiceLife, InvoiceTerms, Judged
from machines.platform.lives.session import Built, End, Lock, SessionLife, SessionTerms, Unlock

assert _environments  # registers the environments


@pytest.mark.parametrize("machine", lives.LIVES, ids=lambda machine: machine.__name__)
def test_lint_has_nothing_to_say(machine):
    assert [one for one in lint([machine]).findings if not one.ignored] == []


@pytest.mark.parametrize("machine", lives.LIVES, ids=lambda machine: machine.__name__)
@given(data=st.data())
def test_the_table_is_the_library(machine, data):
    """Whatever its environment offers: the same states and contexts, step by step."""
    table, environment = compile_table(machine), environment_of(machine)
    assert environment is not None
    context = data.draw(st.sampled_from(list(environment.contexts())))
    begun = begin(table, run_id="r", context=context, now_ms=0)
    assert isinstance(begun, Decision)
    run = begun.after
    oracle = Oracle(machine, run.state, run.context)
    for _ in range(data.draw(st.integers(1, 8))):
        name = data.draw(st.sampled_from(sorted(table.events)))
        given_payloads = environment.payloads_of(name, context=run.context, now_ms=1)
        payload = data.draw(st.sampled_from(given_payloads)) if given_payloads else None
        result = decide(table, run, name, payload, 1)
        assert not isinstance(result, Violation), result
        if isinstance(result, Decision):
            assert oracle.send(name, payload, 1)
            run = result.after
        elif "precondition" not in result.reason:
            assert not oracle.send(name, payload, 1)
        assert (oracle.state, oracle.context) == (run.state, run.context)
        if run.terminal:
            return


@pytest.fixture
def database():
    opened = open_platform_database(None)
    lives.bind(opened, SecretsCodec(b"k" * 32))
    yield opened
    opened.close()


def test_a_locked_session_is_not_deleted_but_may_die(database):
    with database.transaction() as sql:
        lives.begin(sql, SessionLife, "s", SessionTerms(vcpu=1, base_vcpu=1), 1)
        lives.move(sql, SessionLife, "s", Built(), 2)
        lives.move(sql, SessionLife, "s", Lock(), 3)
        with pytest.raises(Refused, match="is_not_deleted_while_locked"):
            lives.move(sql, SessionLife, "s", End(reason="deleted"), 4)
        lives.move(sql, SessionLife, "s", Unlock(), 5)
        lives.move(sql, SessionLife, "s", Lock(), 6)
        ended = lives.move(sql, SessionLife, "s", End(reason="sandbox_died"), 7)
    assert (ended.state, ended.context.reason) == ("terminated", "sandbox_died")


def test_a_card_pays_for_what_it_holds(database):
    with database.transaction() as sql:
        lives.begin(sql, GiftCardLife, "g", GiftTerms(amount_cents=10, balance_cents=10), 1)
        with pytest.raises(Refused, match="unpaid"):
            lives.move(sql, GiftCardLife, "g", Redeem(price_cents=1, held=False), 2)
        lives.move(sql, GiftCardLife, "g", CardPaid(), 3)
        with pytest.raises(Refused, match="can_pay_it"):
            lives.move(sql, GiftCardLife, "g", Redeem(price_cents=11, held=False), 4)
        ended = lives.move(sql, GiftCardLife, "g", Redeem(price_cents=10, held=False), 5)
    assert (ended.state, ended.context.spent_cents) == ("exhausted", 10)
    with database.reading() as sql:
        assert lives.find(sql, GiftCardLife, "g") is not None
        assert lives.find(sql, GiftCardLife, "other") is None


def test_an_invoice_is_not_closed_before_its_time_nor_paid_by_less(database):
    terms = InvoiceTerms(amount_atomic=10, expires_ms=100, confirmations_required=2)
    judged = Judged(
        verdict="expired", expires_ms=100, received_atomic=0, confirmations=0, returned_atomic=0
    )

    def judge(now_ms, **changes):
        with database.transaction() as sql:
            event = msgspec.structs.replace(judged, **changes)
            return lives.move(sql, InvoiceLife, "i", event, now_ms).state

    with database.transaction() as sql:
        lives.begin(sql, InvoiceLife, "i", terms, 1)
    with pytest.raises(Refused, match="is_closed_by_time_alone"):
        judge(99)
    with pytest.raises(Refused, match="is_not_prolonged"):
        judge(99, verdict="pending", expires_ms=101)
    for received, confirmations in ((9, 2), (10, 1)):
        with pytest.raises(Refused, match="word_fits_the_numbers"):
            judge(99, verdict="completed", received_atomic=received, confirmations=confirmations)
    assert judge(100) == "expired"
    assert judge(101, verdict="completed", received_atomic=10, confirmations=2) == "completed"


def test_a_database_without_a_codec_is_told():
    opened = open_platform_database(None)
    with pytest.raises(UsageError, match=r"lives\.bind"), opened.transaction() as sql:
        lives.begin(sql, SessionLife, "s", SessionTerms(vcpu=1, base_vcpu=1), 1)
    opened.close()
