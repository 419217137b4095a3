"""What programs print and how they end, from pipes that a test holds the other ends of."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import StoreBusy
from machines.platform.program_watch import (
    LINE_BYTES_MAX,
    LINES_AT_ONCE,
    Lines,
    ProgramWatch,
)
from machines.platform.sandbox.backend import Program


class Ends:
    """The program's side of its two pipes."""

    def __init__(self) -> None:
        ours, self.output = os.pipe()
        status, self.status = os.pipe()
        os.set_blocking(ours, False)
        os.set_blocking(status, False)
        self.program = Program(1, ours, status)

    def say(self, text: bytes) -> None:
        os.write(self.output, text)

    def end(self, status: bytes) -> None:
        os.write(self.status, status)
        os.close(self.status)
        os.close(self.output)


class Heard:
    """What was told, and how often the listener refused to hear it first."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.refusals = 0
        self._changed = threading.Condition()

    def lines(self, lines: Lines) -> None:
        with self._changed:
            if self.refusals:
                self.refusals -= 1
                raise StoreBusy("busy")
            self.told += lines
            self._changed.notify_all()

    def ended(self, name: str, deployment: int, exit_code: int | None) -> None:
        with self._changed:
            self.told.append((name, f"deployment {deployment}", f"ended {exit_code}"))
            self._changed.notify_all()

    def wait(self, condition: Callable[[list[tuple[str, ...]]], bool]) -> list[tuple[str, ...]]:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.told), 10), self.told
            return list(self.told)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def watch(heard: Heard) -> Iterator[ProgramWatch]:
    started = ProgramWatch(heard.lines, heard.ended)
    yield started
    started.stop()


def started(watch: ProgramWatch, name: str = "a", deployment: int = 1) -> Ends:
    ends = Ends()
    watch.watch(name, deployment, ends.program)
    return ends


def test_lines_come_in_order_and_before_the_end(watch: ProgramWatch, heard: Heard) -> None:
    ends = started(watch, deployment=3)
    ends.say(b"one\ntw")
    ends.say(b"o\r\nthree")
    ends.end(b"0\n")
    told = heard.wait(lambda told: len(told) == 4)
    assert told == [("a", "one"), ("a", "two"), ("a", "three"), ("a", "deployment 3", "ended 0")]


@pytest.mark.parametrize(
    ("status", "expected"),
    [(b"137\n", "137"), (b"", "None"), (b"junk\n", "None"), (b"1" * 60 + b"\n", "None")],
)
def test_an_end_without_a_code_is_a_death(
    watch: ProgramWatch, heard: Heard, status: bytes, expected: str
) -> None:
    started(watch).end(status)
    assert heard.wait(bool) == [("a", "deployment 1", f"ended {expected}")]


def test_what_was_dropped_is_not_heard(watch: ProgramWatch, heard: Heard) -> None:
    old = started(watch)
    watch.drop("a")
    new = started(watch, deployment=2)
    new.say(b"new\n")
    heard.wait(bool)
    with pytest.raises(BrokenPipeError):
        old.say(b"old\n")
    new.end(b"0\n")
    assert heard.wait(lambda told: len(told) == 2)[1] == ("a", "deployment 2", "ended 0")


def test_others_that_it_left_may_go_on_printing(watch: ProgramWatch, heard: Heard) -> None:
    ends = started(watch)
    os.write(ends.status, b"0\n")
    heard.wait(bool)
    ends.say(b"a daemon's line\n")
    assert heard.wait(lambda told: len(told) == 2)[1] == ("a", "a daemon's line")


def test_long_lines_are_cut_and_foreign_bytes_are_no_error(
    watch: ProgramWatch, heard: Heard
) -> None:
    ends = started(watch)
    ends.say(b"x" * (LINE_BYTES_MAX + 1) + b"\n\xff\0\n")
    told = heard.wait(lambda told: len(told) >= 3)
    assert "".join(line for _name, line in told) == "x" * (LINE_BYTES_MAX + 1) + "\ufffd\ufffd"


def test_a_flood_is_thinned_out_and_says_so(watch: ProgramWatch, heard: Heard) -> None:
    ends = Ends()
    ends.say(b"y\n" * (LINES_AT_ONCE + 7))
    watch.watch("a", 1, ends.program)
    told = heard.wait(lambda told: len(told) > LINES_AT_ONCE)
    assert told[0] == ("a", "[platform] 7 lines left out: printed too fast")
    assert told[1:] == [("a", "y")] * LINES_AT_ONCE


def test_lines_wait_for_a_busy_store(watch: ProgramWatch, heard: Heard) -> None:
    heard.refusals = 2
    started(watch).say(b"patient\n")
    assert heard.wait(bool) == [("a", "patient")]


def test_many_programs_are_told_apart(watch: ProgramWatch, heard: Heard) -> None:
    names = [f"service-{number}" for number in range(30)]
    for name in names:
        ends = started(watch, name)
        ends.say(name.encode() + b"\n")
        ends.end(b"0\n")
    told = heard.wait(lambda told: len(told) == 60)
    assert {each[:2] for each in told if len(each) == 2} == {(name, name) for name in names}


def test_stopping_tells_the_rest_and_closes_every_descriptor(heard: Heard) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    watch = ProgramWatch(heard.lines, heard.ended)
    ends = started(watch)
    ends.say(b"last\n")
    heard.wait(bool)
    watch.stop()
    watch.stop()
    watch.drop("a")
    os.close(ends.output)
    os.close(ends.status)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
