"""Text is cut by what it takes when it is stored."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from machines.flows.text import kept


@given(text=st.text(st.characters(codec=None), max_size=80), limit=st.integers(2, 60))
def test_the_longest_beginning_that_fits(text: str, limit: int) -> None:
    found, cut = kept(text, limit)
    clean = text.encode("utf-8", "replace").decode()
    assert len(msgspec.json.encode(found)) <= limit
    assert clean.startswith(found) and cut == (found != clean)
    if cut:
        assert len(msgspec.json.encode(clean[: len(found) + 1])) > limit
