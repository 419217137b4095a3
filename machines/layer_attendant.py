"""One command in a nested layer's sandbox: see that its engine works, and wait a while for its end.

::

    told.json is there?  -- yes --> print it                      (however often it is asked)
        | no
    an engine works?     -- no  --> start one, detached from this command; what it is asked for
        | yes                       goes to its standard input, and nowhere else
    wait --> it has told --> print
         --> it has died --> start another, which goes on where the database stands
         --> time is over --> print how far it is

So the layer above needs few requests, however long the layers below take, and nothing it repeats
does anything twice.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from engine.errors import TurtlesError
from machines.flows.layer import Twig
from machines.flows.layer_wire import Attended, Told
from machines.layer_process import Place

LOOK_SECONDS = 0.1
STARTS_MAX = 5
"""An engine that dies so often within one command will die again."""


class EngineDies(TurtlesError):
    """The engine does not live long enough to be waited for; says where its log is."""


def attend(place: Place, asked: str, began_ms: int, seconds: float) -> Attended:
    """The engine's report, or its progress when `seconds` since `began_ms` are over.

    Raises:
        EngineDies: it was started `STARTS_MAX` times and died each time.
    """
    place.make()
    starts = 0
    until = began_ms / 1000 + seconds
    engine: subprocess.Popen[bytes] | None = None
    while not place.told.exists() and time.time() < until:
        lives = engine.poll() is None if engine is not None else place.has_engine()
        if not lives and not place.told.exists():
            if starts == STARTS_MAX:
                raise EngineDies(f"the engine died {starts} times; see {place.log}")
            engine, starts = start(place, asked, began_ms), starts + 1
        time.sleep(LOOK_SECONDS)
    return report(place)


def stop(place: Place, seconds: float) -> None:
    """Let the engine cancel its run, and wait for that; nothing where none has begun."""
    if not place.database.exists():
        return
    place.stop.touch()
    now_ms = time.time_ns() // 1_000_000
    attend(place, "", now_ms, seconds)


def start(place: Place, asked: str, began_ms: int) -> subprocess.Popen[bytes]:
    """An engine that outlives this command."""
    program = Path.home() / ".turtles" / "bin" / "turtles"
    front = [str(program)] if program.exists() else [sys.executable, "-m", "machines"]
    options = ["--began-ms", str(began_ms), "--place", str(place.directory)]
    with place.log.open("ab") as log:
        engine = subprocess.Popen(  # noqa: S603 - this very program
            [*front, "layer", "serve", *options],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    assert engine.stdin is not None
    with contextlib.suppress(BrokenPipeError), engine.stdin as pipe:  # it may have died at once
        pipe.write(asked.encode())
    return engine


def report(place: Place) -> Attended:
    """What the files say now."""
    told = None
    if place.told.exists():
        told = msgspec.json.decode(place.told.read_bytes(), type=Told)
    twigs: tuple[Twig, ...] = ()
    if place.progress.exists():
        twigs = msgspec.json.decode(place.progress.read_bytes(), type=tuple[Twig, ...])
    latency_ms = int(place.latency.read_text()) if place.latency.exists() else 0
    return Attended(latency_ms=latency_ms, twigs=twigs, told=told)
