"""Progress: countdowns, plain lines, and a live table on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys

import pytest

from engine.cli.output import lasting, moment
from engine.cli.progress import waiting_for
from engine.run import Pending, Run


@pytest.mark.parametrize(
    ("duration_ms", "shown"),
    [(-5, "0 ms"), (850, "850 ms"), (3_250, "3.2 s"), (245_000, "4:05"), (3_725_000, "1:02:05")],
)
def test_durations_fit_a_column(duration_ms, shown):
    assert lasting(duration_ms) == shown


def test_moments_are_utc_to_the_millisecond():
    assert moment(1_700_000_000_007) == "2023-11-14 22:13:20.007Z"
    assert moment(None) == "-"


def a_run(**fields):
    return Run(
        run_id="r1", machine="M", version="v", key=None, state="s", seq=1, entered_seq=1,
        context=None, created_ms=0, **({"status": "waiting"} | fields),
    )  # fmt: skip


def test_what_a_run_waits_for_counts_down():
    effect = Pending(seq=1, name="poll", key="k", attempts=0, open=False, next_ms=4_000)
    assert waiting_for(a_run(effect=effect, deadline_ms=61_000), 1_000) == (
        "poll in 3.0 s, time limit in 1:00"
    )
    assert waiting_for(a_run(effect=effect), 5_000) == "poll"
    assert waiting_for(a_run(child="r2"), 0) == "child"
    assert waiting_for(a_run(), 0) == "an event"
    assert waiting_for(a_run(status="completed"), 0) == "completed"


def test_a_terminal_gets_a_live_table_and_its_cursor_back(demo, tmp_path):
    given = '{"amount_cents": 5, "linger_seconds": 0.3}'
    script = [sys.executable, demo.program.__file__, "run", "Shipment", "--input", given]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "TURTLES_DATA_DIR": str(demo.data_dir)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        script, stdout=theirs, stderr=theirs, stdin=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert "WAITING FOR" in text and "completed" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
