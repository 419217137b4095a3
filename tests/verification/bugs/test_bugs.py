"""Every planted bug is found in its budget, by the property it breaks; its sound twin passes.

Every way found is 1-minimal, and the test generated from it fails on the bug and passes on the fix.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from unittest.mock import patch

import pytest

from engine.verification.bench import silence
from engine.verification.explore import Failure, Rig, Scope, explore
from engine.verification.lint import lint
from engine.verification.reduce import is_minimal
from engine.verification.scheduler import Chance
from engine.verification.schedules import ScheduleFailure, _Player
from persistence.store import open_store
from tests.verification.bugs import subjects, table
from tests.verification.bugs.corpus import BUGS, Bug
from tests.verification.bugs.hunt import ORPHAN, Case, Found, cases, rules_after
from tests.verification.bugs.schedule_bugs import ScheduleBug
from tests.verification.bugs.subjects import Chain, Rung

CASES = cases()
ROOT = Path(__file__).parents[3]
MEDIAN_MS_MAX = 500
SOUND = {bug.sound.__qualname__: bug for bug in BUGS}


@cache
def found(number: int) -> Found:
    """What came of a bug; hunted for once."""
    return CASES[number].hunt()


def numbered(*phases: str) -> list[object]:
    """Cases of these phases, by their number."""
    return [pytest.param(number, id=case.name) for number, case in enumerate(CASES)
            if case.phase in phases]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_it_is_found(number: int) -> None:
    assert not table.is_missed(CASES[number], found(number)), found(number)


def test_the_corpus_is_large_and_half_of_it_is_found_at_once() -> None:
    assert len(CASES) >= 60 and len({case.what for case in CASES}) >= 55
    assert all(case.what for case in CASES)
    times = [found(number).took_ms for number, case in enumerate(CASES)]
    assert median(times) < MEDIAN_MS_MAX


# -- the counterexamples --------------------------------------------------------------------------


@pytest.mark.parametrize("number", numbered("explorer"))
def test_nothing_simpler_shows_it(number: int) -> None:
    bug, failure = CASES[number].bug, found(number).failure
    assert isinstance(bug, Bug)
    if failure is None:
        assert found(number).rule == "gap"  # what was never reached has no way
        return
    assert isinstance(failure, Failure)
    assert len(failure.steps) <= len(found(number).way)
    with bug.planted():
        assert is_minimal(bug.broken, open_store("sqlite://"), failure.steps, failure.rule,
                          known=bug.known, liveness=failure.kind == "liveness")  # fmt: skip


@pytest.mark.parametrize("number", numbered("schedules"))
def test_no_pick_of_a_schedule_can_be_left_out(number: int) -> None:
    bug, failure = CASES[number].bug, found(number).failure
    assert isinstance(bug, ScheduleBug) and isinstance(failure, ScheduleFailure)
    schedule, picks = failure.schedule, failure.schedule.picks
    with bug.planted(), silence():
        player = _Player(bug.machine, lambda: open_store("sqlite://"), bug.known,
                         schedule.workers, schedule.runs, (), None, schedule.seed)  # fmt: skip

        def weigh(some: tuple[int, ...]) -> tuple[int, int] | None:
            played = player.play(Chance(schedule.seed, schedule.strategy, some))
            turns = sum(one[0] != other[0] for one, other in pairwise(played.trace))
            same = failure.rule in [breach.rule for breach in played.breaches]
            return (len(played.trace), turns) if same else None

        weight = weigh(picks)
        assert weight is not None and weight[0] == len(failure.trace)
        for place in range(len(picks)):
            for rest in (picks[place + 1 :], (0, *picks[place + 1 :])):
                lighter = weigh(picks[:place] + rest)
                assert lighter is None or lighter >= weight


@pytest.mark.parametrize("number", numbered("explorer", "schedules"))
def test_the_generated_test_fails_on_the_bug_and_passes_on_the_fix(number: int) -> None:
    bug, text = CASES[number].bug, found(number).test
    if not text:
        assert found(number).rule == "gap"
        return
    assert bug is not None
    with bug.planted(), pytest.raises(AssertionError, match="Breach"):
        run_test(text)
    with fixed(bug):
        run_test(text)


def run_test(text: str) -> None:
    """Run the only test of a file."""
    names: dict[str, object] = {}
    exec(compile(text, "generated", "exec"), names)  # noqa: S102 - it was generated here
    (test,) = [one for name, one in names.items() if name.startswith("test_")]
    assert callable(test)
    test()


@contextmanager
def fixed(bug: Bug | ScheduleBug) -> Iterator[None]:
    """The broken machine is repaired: its name is that of the sound one."""
    if isinstance(bug, Bug) and bug.broken is not bug.sound:
        module = sys.modules[bug.broken.__module__]
        with patch.object(module, bug.broken.__qualname__, bug.sound):
            yield
    else:
        yield


def test_pytest_itself_takes_the_generated_files(tmp_path: Path) -> None:
    """Nothing is planted here: files of a broken machine fail, those of the sound engine pass."""
    wanted: dict[str, bool] = {}
    for number, case in enumerate(CASES):
        if found(number).test:
            name = f"test_bug_{number:03d}.py"
            (tmp_path / name).write_text(found(number).test)
            wanted[name] = isinstance(case.bug, Bug) and case.bug.broken is not case.bug.sound
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf",
         "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    failed = set(re.findall(r"^FAILED .*(test_bug_\d+\.py)::", done.stdout, re.MULTILINE))
    assert failed == {name for name, fails in wanted.items() if fails}, done.stdout[-4000:]
    assert len(failed) >= 10
    assert f"{len(failed)} failed, {len(wanted) - len(failed)} passed" in done.stdout


def test_the_orphan_needs_each_of_its_steps_and_the_bug() -> None:
    number = next(n for n, case in enumerate(CASES) if case.phase == "history")
    way = found(number).way
    rig = Rig(ORPHAN.broken, open_store("sqlite://"), known=ORPHAN.known)
    assert rules_after(rig, way) == []
    with ORPHAN.planted():
        assert rules_after(rig, way) == ["orphan child"]
        for place in range(1, len(way)):
            assert rules_without(rig, way, place) == []


def rules_without(rig: Rig, way: tuple[tuple[object, ...], ...], place: int) -> list[str]:
    try:
        return rules_after(rig, way[:place] + way[place + 1 :])
    except LookupError:
        return []


# -- what is sound --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND)
def test_sound_machine_passes(name: str) -> None:
    bug = SOUND[name]
    report = explore(
        bug.sound,
        open_store("sqlite://"),
        known=bug.known,
        budget_seconds=30,
        scope=Scope(messages=bug.messages),
    )
    assert report.exhausted
    assert report.failures == []
    assert report.mismatches == []
    assert report.coverage.missing_transitions == []
    assert report.coverage.missing_cells == []
    assert report.coverage.missing_marks == []


def test_lint_has_nothing_to_say_of_a_sound_machine() -> None:
    assert lint([subjects.Trip]).ok and lint([subjects.Ladder]).ok


def test_ten_steps_with_ambiguous_creates_are_exhausted() -> None:
    report = explore(
        Chain,
        open_store("sqlite://"),
        budget_seconds=60,
        scope=Scope(messages=0, cancels=False),
        contexts=[Rung(depth=1, depth_max=10)],
    )
    assert report.exhausted and report.failures == [] and report.mismatches == []
    assert report.states > 500 and report.depth >= 20


# -- the table ------------------------------------------------------------------------------------


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    rows = [table.row_of(CASES[number], found(number)) for number in range(3)]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- corpus -->\nold\n<!-- /corpus -->\nafter\n")
    assert table.write_page(rows, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- corpus -->\n| bug |") and text.endswith("-->\nafter\n")
    assert "old" not in text and text.count("\n| no dedupe |") == 1
    page.write_text("no markers")
    assert not table.write_page(rows, page) and page.read_text() == "no markers"


def test_a_bug_that_is_not_planted_is_missed() -> None:
    bug = next(bug for bug in BUGS if bug.name == "timer never armed")
    case = Case(bug.name, bug.said, "explorer", bug.rules, lambda: Found("nothing", 3))
    row = table.row_of(case, case.hunt())
    assert row.missed and "MISSED" in table.text_of(row) and "1 missed" in table.summary([row])
