"""Live progress of runs: states as they are passed, countdowns, and what a program adds.

On a terminal a table that is redrawn in place, one row for every run; otherwise one plain line for
every transition::

    12:00:01.250  layer 1 Payment  paying -> confirming (sent)

With `--json` the lines go to stderr, so that stdout holds the answer alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from engine.cli.output import lasting, moment

if TYPE_CHECKING:
    from engine.decide import Decision
    from engine.run import Run

ROWS_MAX = 40
REFRESH_PER_SECOND = 4


class Progress:
    """Context manager; call `moved` after every transition.

    Args:
        as_json: whether stdout is kept for the answer.
        label: how a run is called.
        facts: what else to say of a run (money spent, ...).
        footer: one line below all runs.
        live: whether to redraw a table; by default on a terminal.
    """

    def __init__(
        self,
        *,
        as_json: bool,
        label: Callable[[Run], str] = lambda run: run.machine,
        facts: Callable[[Run], str] = lambda run: "",
        footer: Callable[[list[Run]], str] = lambda runs: "",
        live: bool | None = None,
    ) -> None:
        self._stream: TextIO = sys.stderr if as_json else sys.stdout
        self._live = not as_json and sys.stdout.isatty() if live is None else live
        self._label = label
        self._facts = facts
        self._footer = footer
        self._runs: dict[str, Run] = {}
        self._last: dict[str, str] = {}
        self._began = time.monotonic()
        self._stack = ExitStack()

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.live import Live

            self._stack.enter_context(
                Live(
                    get_renderable=self._table,
                    console=Console(file=self._stream),
                    refresh_per_second=REFRESH_PER_SECOND,
                )
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def moved(self, decision: Decision) -> None:
        """A run has moved."""
        run, entry = decision.after, decision.entry
        self._runs = {**self._runs, run.run_id: run}
        self._last[run.run_id] = entry.event
        if not self._live:
            self._stream.write(self._line(decision) + "\n")
            self._stream.flush()

    def _line(self, decision: Decision) -> str:
        run, entry = decision.after, decision.entry
        clock = moment(entry.at_ms)[11:-1]
        way = f"{entry.source} -> {entry.target}" if entry.source else entry.target
        if entry.source == entry.target:
            way = f"stays in {entry.target}"
        ended = f" [{run.status}]" if run.terminal else ""
        facts = self._facts(run)
        told = f"  {facts}" if facts else ""
        return f"{clock}  {self._label(run)}  {way} ({entry.event}){ended}{told}"

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        runs = list(self._runs.values())
        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in ("RUN", "STATE", "LAST EVENT", "WAITING FOR", ""):
            table.add_column(head, no_wrap=True)
        now_ms = time.time_ns() // 1_000_000
        for run in runs[-ROWS_MAX:]:
            table.add_row(
                Text(self._label(run)),
                Text(run.state, style=_style(run)),
                Text(self._last[run.run_id]),
                Text(waiting_for(run, now_ms)),
                Text(self._facts(run)),
            )
        spent = lasting(int((time.monotonic() - self._began) * 1000))
        return Group(table, Text(f"{spent}  {self._footer(runs)}".rstrip(), style="dim"))


def _style(run: Run) -> str:
    if run.status == "completed":
        return "green"
    if run.status in ("failed", "cancelled", "quarantined"):
        return "red"
    return "yellow" if run.status == "waiting" else "cyan"


def waiting_for(run: Run, now_ms: int) -> str:
    """What a run that moved last waits for, with countdowns."""
    if run.terminal or run.status in ("paused", "quarantined"):
        return run.status
    found = []
    if run.child:
        found.append("child")
    if run.effect and run.effect.next_ms > now_ms:
        found.append(f"{run.effect.name} in {lasting(run.effect.next_ms - now_ms)}")
    elif run.effect:
        found.append(run.effect.name)
    if run.deadline_ms is not None:
        found.append(f"time limit in {lasting(run.deadline_ms - now_ms)}")
    return ", ".join(found) or "an event"
