"""Attending an engine: it is started once, started again when it dies, and waited for a while."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from machines import layer_attendant
from machines.flows.layer import Twig
from machines.flows.layer_wire import Told
from machines.layer_attendant import STARTS_MAX, EngineDies, attend, report, stop
from machines.layer_process import Place

TOLD = Told(said="s", state="done", status="completed", complete=True, refusal="", layers=(),
            journal=())  # fmt: skip
TWIG = Twig(depth=2, run="r", parent="", machine="Inception", state="descend", status="waiting")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "layer")
    made.make()
    return made


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Engines:
    """Engines that do as they are told: each one is a program in Python."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs: list[str] = []
        self.asked: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.place = place
        monkeypatch.setattr(layer_attendant, "start", self.start)
        monkeypatch.setattr(layer_attendant, "LOOK_SECONDS", 0.01)

    def start(self, place: Place, asked: str, began_ms: int) -> subprocess.Popen[bytes]:
        self.asked.append(asked)
        program = self.programs.pop(0)
        started = subprocess.Popen([sys.executable, "-c", program], cwd=place.directory)
        self.started.append(started)
        return started

    def tells(self) -> str:
        return f"open('told.json', 'wb').write({msgspec.json.encode(TOLD)!r})"


@pytest.fixture
def engines(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    made = Engines(place, monkeypatch)
    yield made
    for one in made.started:
        one.wait(timeout=20)


def test_it_is_started_and_tells(place: Place, engines: Engines) -> None:
    engines.programs = [engines.tells()]
    assert attend(place, "ask", now_ms(), 20).told == TOLD
    assert engines.asked == ["ask"]


def test_what_was_told_is_told_again_without_an_engine(place: Place, engines: Engines) -> None:
    place.write(place.told, msgspec.json.encode(TOLD))
    assert attend(place, "ask", now_ms(), 20).told == TOLD
    assert engines.asked == []


def test_one_that_dies_is_started_again(place: Place, engines: Engines) -> None:
    engines.programs = ["raise SystemExit(9)", engines.tells()]
    assert attend(place, "ask", now_ms(), 20).told == TOLD
    assert engines.asked == ["ask", "ask"]


def test_one_that_dies_again_and_again_is_an_error(place: Place, engines: Engines) -> None:
    engines.programs = ["raise SystemExit(9)"] * STARTS_MAX
    with pytest.raises(EngineDies, match=r"died 5 times; see .*engine\.log"):
        attend(place, "ask", now_ms(), 60)
    assert engines.programs == []


def test_one_that_works_is_left_alone_and_its_progress_told(place: Place, engines: Engines) -> None:
    place.write(place.progress, msgspec.json.encode((TWIG,)))
    place.write(place.latency, b"400")
    with place.held():
        found = attend(place, "ask", now_ms(), 0.05)
    assert (found.told, found.twigs, found.latency_ms) == (None, (TWIG,), 400)
    assert engines.asked == []


def test_stop_where_nothing_has_begun(place: Place, engines: Engines) -> None:
    stop(place, 20)
    assert (engines.asked, place.stop.exists()) == ([], False)


def test_stop_starts_an_engine_that_goes_on_unasked(place: Place, engines: Engines) -> None:
    engines.programs = [engines.tells()]
    place.database.touch()
    stop(place, 20)
    assert place.stop.exists()
    assert engines.asked == [""]


def test_a_real_engine_is_started_by_the_command(place: Place, monkeypatch: Any) -> None:
    """It refuses what it is given, and says so in its log."""
    monkeypatch.setenv("HOME", str(place.directory))
    engine = layer_attendant.start(place, "nonsense", now_ms())
    assert engine.wait(timeout=30) == 2
    assert "not what a layer is asked for" in place.log.read_text()
    assert report(place).told is None
