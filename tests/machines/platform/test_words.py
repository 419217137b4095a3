"""The words of gift codes."""

from __future__ import annotations

from machines.platform.words import WORDS


def test_four_words_are_forty_bits_and_every_code_reads_one_way():
    assert len(WORDS) == len(set(WORDS)) == 1024
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
