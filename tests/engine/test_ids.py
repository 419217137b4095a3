"""Everything below a run has a name that is derived from it, the same for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.ids import child_run_id, derived, idempotency_key


@given(st.text(), st.integers(1, 10**9), st.text())
def test_derived_names_are_the_same_for_ever(run_id, seq, effect):
    assert idempotency_key(run_id, seq, effect) == idempotency_key(run_id, seq, effect)
    assert child_run_id(run_id, seq) == child_run_id(run_id, seq)


def test_derived_names_do_not_change_between_versions():
    """A run that is alive while the program is updated keeps its keys: these values are fixed."""
    assert idempotency_key("r1", 1, "charge") == "tbb8537e8b8424ad6f0ce70c02"
    assert child_run_id("r1", 1) == "r1f9cc7e2bdcf616790e494488"


def test_whatever_differs_gives_another_name():
    keys = {idempotency_key(r, s, e) for r in ("r1", "r2") for s in (1, 11) for e in ("a", "b")}
    assert len(keys) == 8
    assert derived("a", "bc") != derived("ab", "c")
    assert child_run_id("r1", 1)[1:] != idempotency_key("r1", 1, "child")[1:]
