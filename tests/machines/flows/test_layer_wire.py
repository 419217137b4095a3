"""What crosses the wall of a nested sandbox; what may be odd about it is told with the flow."""

from __future__ import annotations

import msgspec
import pytest

from engine.secret import Secret
from machines.flows.layer import Layer
from machines.flows.layer_wire import (
    ask_from,
    ask_of,
    attend_command,
    attended_of,
    layer_of,
    shown,
    stop_command,
)

CODE = "FOUR-SECRET-LITTLE-WORDS"
LAYER = Layer(
    depth=2, max_depth=4, currency="LTC", budget_cents=2_100, paid_cents=700, tier=1, months=1,
    network_mode="semitrusted", chain="root", card_code=Secret(CODE), incarnation=1, lost=2,
    tool_digest="d", latency_ms_max=9_000, latency_above_ms=400, public_key="pk",
    secret_key=Secret("SECRET-KEY"),
)  # fmt: skip


def test_what_is_asked_arrives_as_a_layer_one_deeper() -> None:
    asked = ask_from(ask_of(LAYER, "run").to_json())
    assert asked == ask_of(LAYER, "run")
    layer = layer_of(asked, 500)
    assert (layer.depth, layer.max_depth, layer.budget_cents) == (3, 4, 1_400)
    assert (layer.chain, layer.incarnation, layer.latency_above_ms) == ("root", 3, 900)
    assert layer.nested and layer.card_code == Secret(CODE)
    assert layer.secret_key is None and layer.public_key == ""


def test_the_first_layer_names_the_chain() -> None:
    first = msgspec.structs.replace(LAYER, depth=1, chain="")
    assert ask_of(first, "run-of-the-first").chain == "run-of-the-first"


def test_the_deepest_engine_is_given_no_code() -> None:
    last = msgspec.structs.replace(LAYER, depth=4)
    assert ask_of(last, "run").code is None
    assert CODE not in attend_command(ask_of(last, "run"))


def test_the_code_is_shown_nowhere_but_on_standard_input() -> None:
    ask = ask_of(LAYER, "run")
    assert CODE not in repr(ask)
    line, _, rest = attend_command(ask).partition("\n")
    assert line.endswith("<<'TURTLES'") and CODE not in line and "SECRET-KEY" not in rest
    assert rest.count(CODE) == 1 and rest.endswith("\nTURTLES")
    assert CODE not in stop_command()


def test_later_commands_wait_less() -> None:
    ask = ask_of(LAYER, "run")
    assert "--seconds 45 " in attend_command(ask)
    assert "--seconds 12 " in attend_command(ask, again=True)


@pytest.mark.parametrize("text", ["\ud800", "null", "7", '{"latency_ms":1}', "[" * 100_000])
def test_what_is_no_answer(text: str) -> None:
    found = attended_of(text)
    assert isinstance(found, str) and "not an engine's" in found


def test_a_strangers_text_does_nothing_to_a_terminal() -> None:
    assert shown("a\x1b[2Jb\u202e") == "a?[2Jb?"
    assert len(shown("x" * 1_000)) == 400
