"""No acknowledged commit is lost with FULL; and everything that should be noticed is.

`python -m tests.verification.power_loss` does the same at length.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from tests.verification.power_loss.campaign import FILE, Bench, Sweep, Take, Tally, lose
from tests.verification.power_loss.disk import Disk, Sync, SyncDirectory

SEED = "a test"


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench").resolve()
    return Bench(folder, synchronous="FULL", checkpoint_pages=12)


@pytest.fixture(scope="module")
def take(bench: Bench) -> Take:
    return bench.record({}, [], 1_700_000_000_000, SEED)


@pytest.fixture(scope="module")
def sweep(bench: Bench, take: Take) -> Sweep:
    return Sweep(bench, take, "the test")


def total(tallies: Iterator[Tally]) -> Tally:
    sum_of_all = Tally()
    for tally in tallies:
        sum_of_all.add(tally)
    return sum_of_all


def last_promise(take: Take, label: str) -> int:
    """The number of the last promise with this label."""
    return max(n for n, one in enumerate(take.promises, start=1) if one.label == label)


def test_full_loses_nothing():
    tally = total(lose(losses=300, seed=SEED))
    assert tally.bad == []
    assert (tally.losses, tally.lost) == (300, 0)
    assert tally.went_on == 3
    assert tally.points > 200 < tally.images


def test_normal_loses_acknowledged_commits_within_ten_losses():
    tally = total(lose(losses=10, seed=SEED, synchronous="NORMAL", checkpoint_pages=1_000))
    assert tally.lost > 0
    assert any(bad.lost for bad in tally.bad)


def test_the_program_does_what_a_power_loss_could_harm(take):
    labels = {promise.label for promise in take.promises}
    assert labels == {
        "open_store", "machines.register", "workers.beat", "workers.reap", "workers.retire",
        "runs.claim", "runs.commit", "runs.group",
    }  # fmt: skip
    assert len(take.done) == 8
    assert len({key for _, key in take.done}) == 8


def test_a_disk_that_ignores_syncs_is_noticed(bench, take):
    lying = [SyncDirectory() if isinstance(one, Sync) else one for one in take.operations]
    sweep = Sweep(bench, replace(take, operations=lying), "a lying disk")
    points = sorted(random.Random(1).sample(range(len(lying)), 20))
    assert sum(tally.lost for tally in sweep.run(points, 0)) > 0


def test_an_earlier_state_is_named_by_the_commits_it_lacks(sweep, take):
    number = last_promise(take, "runs.group")
    now, before = (take.promises[n].operations for n in (number - 1, number - 2))
    image = Disk().apply_all(take.operations[:before]).as_seen()
    assert sweep.judge(before, image) is None
    loss = sweep.judge(now, image)
    assert loss is not None
    assert loss.lost[-1:] == ("runs.group",)


def test_an_effect_that_the_ledger_has_and_the_store_has_not_is_noticed(sweep, take):
    loss = sweep.judge(len(take.operations), {})
    assert loss is not None
    assert sum("the store knows nothing" in problem for problem in loss.problems) == 8


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"not a database" + data[14:], "cannot be opened"),
        (lambda data: data[: len(data) // 2], "cannot be|integrity"),
        (lambda data: data[:-4096] + bytes(4096), "cannot be|integrity"),
    ],
)
def test_a_damaged_database_is_noticed(sweep, take, damage, problem):
    image = Disk().apply_all(take.operations).as_seen()
    loss = sweep.judge(len(take.operations), {**image, FILE: damage(image[FILE])})
    assert loss is not None
    assert any(word in loss.problems[0] for word in problem.split("|"))


def test_a_promise_made_before_its_commit_is_noticed(bench, take):
    number = last_promise(take, "runs.group")
    early = replace(take.promises[number - 1], operations=take.promises[number - 2].operations)
    promises = [*take.promises[: number - 1], early]
    with pytest.raises(AssertionError, match=r"runs\.group.*without any power loss"):
        Sweep(bench, replace(take, promises=promises), "a hasty store")


def test_going_on_without_what_was_done_is_noticed(bench, take):
    forgotten = bench.go_on({}, take, len(take.operations), SEED)
    assert forgotten == ()  # another database: other keys, all of it done again, once
    image = Disk().apply_all(take.operations).as_seen()
    twice = replace(take, done=take.done * 2)
    (problem,) = bench.go_on(image, twice, len(take.operations), SEED)
    assert "[2, 2] times in the ledger" in problem


def test_a_program_can_be_recorded_over_any_shared_memory(bench, take):
    image = Disk().apply_all(take.operations).as_seen()
    again = bench.record(
        {**image, f"{FILE}-shm": b"anything" * 4096}, take.done, take.ended_ms, SEED
    )
    assert again.image == image
    assert len(again.done) == len(take.done)


def test_files_of_other_losses_are_cleared_away(bench):
    bench.lay({"a": b"1", "b": b"2"})
    bench.lay({"b": b"3"})
    assert {path.name: path.read_bytes() for path in Path(bench.directory).iterdir()} == {"b": b"3"}
