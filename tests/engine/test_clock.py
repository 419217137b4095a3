"""Durations are integers of milliseconds."""

from __future__ import annotations

from engine import hours, minutes, seconds


def test_durations():
    assert (seconds(1.5), minutes(2), hours(0.5)) == (1_500, 120_000, 1_800_000)
    assert all(isinstance(make(0.1), int) for make in (seconds, minutes, hours))
