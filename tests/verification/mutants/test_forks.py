"""Forked copies: results come back, and nothing that goes wrong in one is lost or stays."""

from __future__ import annotations

import os
import signal
import time

from tests.verification.mutants.forks import forked


def results(works, **options):
    pieces = iter(enumerate(works))
    return dict(forked(pieces, **({"jobs": 2, "timeout_seconds": 20.0} | options)))


def test_what_a_copy_changes_is_gone_with_it():
    kept: list[int] = []

    def work():
        kept.append(1)
        return {"kept": len(kept), "pid": os.getpid()}

    found = results([work, work, work])
    assert [one["kept"] for one in found.values()] == [1, 1, 1]
    assert os.getpid() not in {one["pid"] for one in found.values()}
    assert kept == []


def test_long_results_come_whole():
    assert results([lambda: {"text": "x" * 300_000}])[0] == {"text": "x" * 300_000}


def test_one_that_raises_or_dies_is_told():
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def raises():
        raise RuntimeError

    assert results([dies, raises, lambda: {"a": 1}])[2] == {"a": 1}
    assert results([dies])[0] == {"died": signal.SIGKILL}
    assert set(results([raises])[0]) == {"died"}


def test_one_that_does_not_end_is_ended():
    began = time.monotonic()
    stuck = [lambda: signal.pause() or {}, lambda: {"a": 1}]
    assert results(stuck, jobs=1, timeout_seconds=0.3) == {0: {"timeout": 0.3}, 1: {"a": 1}}
    assert time.monotonic() - began < 15


def test_a_piece_is_taken_when_there_is_room():
    """So that what one piece tells can shape the next."""
    seen: list[int] = []

    def pieces():
        for at in range(3):
            yield (at, list(seen)), lambda at=at: {"at": at}

    for key, result in forked(pieces(), jobs=1, timeout_seconds=20.0):
        assert key[1] == seen
        seen.append(result["at"])
    assert seen == [0, 1, 2]
