"""Progress of verifications, on stderr: a table that is redrawn on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.verification.verify import Tick

REFRESH_PER_SECOND = 4


class Board:
    """Context manager; call `tick` with every `Tick`.

    Args:
        quiet: say nothing at all (`--json`).
        live: whether to redraw a table; by default on a terminal.
    """

    def __init__(self, *, quiet: bool, live: bool | None = None) -> None:
        self._quiet = quiet
        self._live = not quiet and (sys.stderr.isatty() if live is None else live)
        self._rows: dict[str, Tick] = {}
        self._began: dict[tuple[str, str], float] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Board:
        if self._live:
            from rich.console import Console
            from rich.live import Live

            self._stack.enter_context(
                Live(
                    get_renderable=self._table,
                    console=Console(file=sys.stderr),
                    refresh_per_second=REFRESH_PER_SECOND,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
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

    def tick(self, tick: Tick) -> None:
        """A verification has come a little further."""
        now = time.monotonic()
        began = self._began.setdefault((tick.machine, tick.phase), now)
        self._rows[tick.machine] = tick
        if tick.done and not (self._live or self._quiet):
            sys.stderr.write(f"{tick.machine:<16} {tick.phase:<11} {now - began:6.1f} s\n")
            sys.stderr.flush()

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in ("MACHINE", "PHASE", "", "SECONDS"):
            table.add_column(head, no_wrap=True)
        now = time.monotonic()
        for tick in list(self._rows.values()):
            began = self._began[(tick.machine, tick.phase)]
            seconds = "" if tick.done else f"{now - began:.1f}"
            style = "dim" if tick.done else "cyan"
            table.add_row(Text(tick.machine), Text(tick.phase, style=style), Text(tick.text),
                          Text(seconds))  # fmt: skip
        return table
