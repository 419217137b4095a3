"""What survives every death besides the database: the outside's ledger, in one list of lines.

A line is a kind and its words::

    time MS            the clock was moved        did KEY NAME RUN     the outside did something
    name N             a name of a run was used   tried | asked | looked KEY
    ack ORDER STEP RUN KEY    the store has answered the client       died N NAME     bad TEXT

In a file every line is one `write` to a descriptor opened with O_APPEND, so a SIGKILL leaves whole
lines; the kernel keeps what was written when the process is gone.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine.testing import ManualClock

Words = tuple[str, ...]


class Notes:
    """The lines; one process writes at a time.

    Args:
        file: where they are kept; None: in memory, for deaths that the process survives.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._by_kind: dict[str, list[Words]] = {}
        self._descriptor = None
        if file is not None:
            for line in file.read_text().splitlines() if file.exists() else ():
                self._keep(tuple(line.split(" ")))
            self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: str) -> None:
        """Add a line, durable for whoever comes after."""
        line = " ".join(words).replace("\n", " | ")
        if self._descriptor is not None:
            os.write(self._descriptor, f"{line}\n".encode())
        self._keep(tuple(line.split(" ")))

    def _keep(self, words: Words) -> None:
        self._by_kind.setdefault(words[0], []).append(words)

    def all(self, kind: str) -> list[Words]:
        """Every line of a kind, oldest first, the kind included."""
        return self._by_kind.get(kind, [])

    def texts(self, kind: str) -> list[str]:
        """The same, without the kind, as text."""
        return [" ".join(words[1:]) for words in self.all(kind)]

    def close(self) -> None:
        """Let the file go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def new_id(self, now_ms: int) -> str:
        """Names runs, as the `new_id` of an app: never twice the same, and no chance in it."""
        number = len(self.all("name")) + 1
        self.write("name", str(number))
        return f"r{number:025d}"


class NotedClock(ManualClock):
    """Time that goes on after a death from where it was."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes
        if notes.all("time"):
            super().advance_to(int(notes.all("time")[-1][1]))

    def advance(self, duration_ms: int) -> None:
        """Move forwards."""
        super().advance(duration_ms)
        self._notes.write("time", str(self.now_ms()))

    def advance_to(self, at_ms: int) -> None:
        """Move forwards to a moment."""
        super().advance_to(at_ms)
        self._notes.write("time", str(self.now_ms()))
