"""Sizes are refused with the name of the thing, what it is and what it may be."""

from __future__ import annotations

import pytest

from engine.errors import TooLarge
from engine.limits import KEY_CHARACTERS_MAX, check_key, check_size


def test_up_to_the_limit_is_fine():
    check_size("context", b"12345", 5)
    check_key("key", "k")
    check_key("key", "k" * KEY_CHARACTERS_MAX)


def test_one_more_is_not():
    with pytest.raises(TooLarge, match=r"context: 6 bytes encoded, the limit is 5. Keep large"):
        check_size("context", b"123456", 5)


@pytest.mark.parametrize("key", ["", "k" * (KEY_CHARACTERS_MAX + 1)])
def test_a_key_is_neither_empty_nor_overlong(key):
    with pytest.raises(TooLarge, match=f"key of the run: expected 1 to 200.*got {len(key)}"):
        check_key("key of the run", key)
