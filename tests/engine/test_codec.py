"""Between typed values and stored bytes; what does not fit is an error that names the field."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Context, Secret
from engine.codec import Codec
from engine.decide import begin
from engine.errors import BadPayload, TooLarge, UnknownMachine
from engine.secrets import SecretsCodec
from engine.table import compile_table


class Mixed(Context):
    number: int = 0
    text: str = ""
    codes: tuple[Secret[str], ...] = ()
    by_name: dict[str, Secret[str]] = msgspec.field(default_factory=dict)


class Odd(Context):
    thing: object = None


@pytest.fixture
def codec(zoo):
    return Codec(SecretsCodec(b"k" * 32), {"Shop": compile_table(zoo.Shop)})


MIXED = st.builds(
    Mixed,
    number=st.integers(-(2**62), 2**62),
    text=st.text(max_size=20),
    codes=st.lists(st.text(max_size=5).map(Secret), max_size=3).map(tuple),
    by_name=st.dictionaries(st.text(max_size=3), st.text(max_size=5).map(Secret), max_size=2),
)


@given(MIXED)
def test_what_is_encoded_can_be_decoded(value):
    codec = Codec(SecretsCodec(b"k" * 32), {})
    body = codec.encode(value)
    assert codec.decode(Mixed, body, "x") == value
    assert codec.encode(value) == body


def test_run_and_entry_survive(codec, zoo):
    begun = begin(compile_table(zoo.Shop), run_id="r1", context=zoo.Order(amount=3), now_ms=1)
    sealed = codec.seal_run(begun.after)
    assert isinstance(sealed.context, bytes)
    assert codec.open_run(sealed) == begun.after
    entry = codec.seal_entry(begun.entry, "w1", context=codec.encode(begun.entry.context))
    assert entry.worker == "w1"
    opened = codec.open_entry("Shop", entry)
    assert opened == msgspec.structs.replace(begun.entry, worker="w1")


def test_what_does_not_fit_names_the_thing_and_the_field(codec):
    with pytest.raises(BadPayload, match=r"context of run r1: .*`int`.*\$.number.*expected Mixed"):
        codec.decode(Mixed, b'{"number": "x"}', "context of run r1")
    with pytest.raises(BadPayload, match="unknown field `numbre`"):
        codec.decode(Mixed, b'{"numbre": 1}', "x")
    with pytest.raises(BadPayload, match="x: not JSON"):
        codec.decode(Mixed, b"\x00", "x")


def test_what_cannot_be_stored_is_refused(codec):
    with pytest.raises(BadPayload, match="cannot be stored: Exception; use msgspec types"):
        codec.encode(Odd(thing=Exception("secret")))


def test_a_machine_that_is_not_known_is_named(codec):
    with pytest.raises(UnknownMachine, match=r"machine 'Tree' is not known here. Known: Shop"):
        codec.table("Tree")


def test_a_context_may_be_given_by_its_fields(codec, zoo):
    table = codec.table("Shop")
    assert codec.context(table, {"amount": 4}) == zoo.Order(amount=4)
    given_one = zoo.Order(amount=5)
    assert codec.context(table, given_one) is given_one
    with pytest.raises(BadPayload, match=r"context of machine Shop: .*colour"):
        codec.context(table, {"colour": 1})
    with pytest.raises(BadPayload, match="context of machine Shop: expected Order, got Mixed"):
        codec.context(table, Mixed())


def test_secrets_in_fields_given_by_name_stay_secrets(codec):
    class Fake:
        name, context = "Fake", Mixed

    built = codec.context(Fake, {"codes": (Secret("a"),), "by_name": {"b": Secret("c")}})
    assert built == Mixed(codes=(Secret("a"),), by_name={"b": Secret("c")})


def test_plain_values_of_secret_fields_become_secrets(codec):
    class Fake:
        name, context = "Fake", Mixed

    built = codec.context(Fake, {"codes": ["a"], "by_name": {"b": "c"}})
    assert built == Mixed(codes=(Secret("a"),), by_name={"b": Secret("c")})
    with pytest.raises(BadPayload, match=r"Expected str, got dict - at `\$\.codes") as caught:
        codec.context(Fake, {"codes": [{"key": "hunter2"}]})
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


def test_sizes_are_refused_with_the_fields_name(codec, zoo):
    begun = begin(
        compile_table(zoo.Shop), run_id="r1", context=zoo.Order(receipt="x" * 300_000), now_ms=1
    )
    with pytest.raises(TooLarge, match=r"context of run r1: 3000.. bytes encoded, the limit is"):
        codec.seal_run(begun.after)
    with pytest.raises(TooLarge, match="payload of event charged"):
        codec.seal_payload(zoo.Charged(receipt="x" * 300_000), "event charged")
    assert codec.seal_payload(None, "x") is None


def test_payloads_are_opened_by_their_event(codec, zoo):
    table = codec.table("Shop")
    body = codec.seal_payload(zoo.Noted(count=3), "x")
    assert codec.open_payload(table, "noted", body, "x") == zoo.Noted(count=3)
    assert codec.open_payload(table, "pack", body, "x") is None
    assert codec.open_payload(table, "noted", None, "x") is None
    with pytest.raises(BadPayload, match="payload of x"):
        codec.open_payload(table, "shipped", body, "x")
