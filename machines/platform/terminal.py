"""One pseudo terminal that the platform keeps, and the one client that may look at it.

::

    program inside <-> slave || master (here) --read--> screen (the last 32 KiB)
                                              `-------> recorder, and the view, when one is attached
                             <--write-- keys

Everything happens in the event loop that made the terminal; nothing here knows sockets or SQL.

- The master is non-blocking, and read when there is something.  A view that is behind by more
  than 256 KiB stops the reading until it has caught up, so the program waits for its terminal as
  it would for a slow screen.  Without a view reading goes on: the program is not held up by
  somebody who left, and only the last bytes are remembered for the next view.
- Keys that the program does not take are kept, up to 64 KiB; then the writer waits, and after 30 s
  is told (`InputStalled`).
- There is one view.  Attaching another ends the first with `detached`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

READ_BYTES = 65_536
SCREEN_BYTES = 32_768
AHEAD_BYTES_MAX = 262_144
INPUT_BYTES_MAX = 65_536
STALLED_SECONDS = 30.0
LINES_MAX = 10_000


class InputStalled(Exception):
    """The program has taken no keys for too long."""


class View:
    """What one client still has to be shown, and how its view ended.

    `ending` is the last message for the client: `{"type":"exit"}`, `detached` or `error`.
    """

    def __init__(self, caught_up: Callable[[], None]) -> None:
        self.ending: dict[str, Any] | None = None
        self.ended = asyncio.Event()
        self._caught_up = caught_up
        self._ahead = bytearray()
        self._news = asyncio.Event()

    @property
    def is_behind(self) -> bool:
        """Whether no more should be read for it."""
        return len(self._ahead) >= AHEAD_BYTES_MAX

    def show(self, output: bytes) -> None:
        """Add output."""
        self._ahead += output
        self._news.set()

    def end(self, kind: str, **more: Any) -> None:
        """Nothing follows but this message.  The first ending stands."""
        if self.ending is None:
            self.ending = {"type": kind, **more}
            self.ended.set()
            self._news.set()

    async def next(self) -> bytes | None:
        """The next piece of at most 64 KiB; None when all has been shown and the view has ended."""
        while not self._ahead:
            if self.ending is not None:
                return None
            self._news.clear()
            await self._news.wait()
        piece = bytes(self._ahead[:READ_BYTES])
        del self._ahead[:READ_BYTES]
        if not self.is_behind:
            self._caught_up()
        return piece


class Terminal:
    """A master descriptor, which is the terminal's from now on.

    Args:
        record: is given all output.
        active: is called for output and for keys.
        hung_up: is called once, when the program has ended (not after `close`).
    """

    def __init__(
        self,
        master: int,
        *,
        record: Callable[[bytes], None],
        active: Callable[[], None],
        hung_up: Callable[[], None],
    ) -> None:
        os.set_blocking(master, False)
        self._loop = asyncio.get_running_loop()
        self._master: int | None = master
        self._record = record
        self._active = active
        self._hung_up = hung_up
        self._view: View | None = None
        self._screen = bytearray()
        self._reading = False
        self._keys = bytearray()
        self._taken = asyncio.Event()
        self._resume()

    @property
    def is_open(self) -> bool:
        """Whether its program may still be running."""
        return self._master is not None

    def attach(self) -> View:
        """A view that begins with the present screen; another one ends as `detached`."""
        if self._view is not None:
            self._view.end("detached")
        self._view = view = View(self._resume)
        if self._screen:
            view.show(bytes(self._screen))
        if not self.is_open:
            view.end("exit")
        self._resume()
        return view

    def detach(self, view: View) -> bool:
        """Its client has left; whether it was the one that is attached."""
        if view is not self._view:
            return False
        self._view = None
        self._resume()
        return True

    def dismiss(self, kind: str, **more: Any) -> None:
        """End the view, keep the terminal."""
        if self._view is not None:
            self._view.end(kind, **more)
            self._view = None
            self._resume()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the program the size of the screen (SIGWINCH)."""
        if self._master is not None:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            with suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    async def write(self, keys: bytes) -> None:
        """Hand keys to the program.

        Raises:
            InputStalled: it has not taken earlier ones for 30 s.
        """
        if self._master is None:
            return
        self._active()
        waiting = bool(self._keys)
        self._keys += keys
        if not waiting:
            self._hand_over()
        while len(self._keys) > INPUT_BYTES_MAX and self.is_open:
            self._taken.clear()
            try:
                await asyncio.wait_for(self._taken.wait(), STALLED_SECONDS)
            except TimeoutError as error:
                raise InputStalled from error

    def close(self) -> None:
        """Hang up the program and end the view with `exit`.  Idempotent."""
        if self._master is None:
            return
        self._pause()
        self._loop.remove_writer(self._master)
        os.close(self._master)
        self._master = None
        self._keys.clear()
        self._taken.set()
        if self._view is not None:
            self._view.end("exit")

    # -- the event loop calls ------------------------------------------------------------------

    def _read(self) -> None:
        assert self._master is not None  # closing stops the reading first
        try:
            output = os.read(self._master, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # EIO: the last program that had the terminal open has ended.
            output = b""
        if not output:
            self.close()
            self._hung_up()
            return
        self._active()
        self._record(output)
        self._screen += output
        del self._screen[:-SCREEN_BYTES]
        if self._view is not None:
            self._view.show(output)
            if self._view.is_behind:
                self._pause()

    def _hand_over(self) -> None:
        assert self._master is not None  # closing stops the writing first
        try:
            written = os.write(self._master, self._keys[:READ_BYTES])
            del self._keys[:written]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._keys.clear()  # nobody is left to take them; reading finds that out, too
        self._taken.set()
        if self._keys:
            self._loop.add_writer(self._master, self._hand_over)
        else:
            self._loop.remove_writer(self._master)

    def _resume(self) -> None:
        behind = self._view is not None and self._view.is_behind
        if self._master is not None and not self._reading and not behind:
            self._loop.add_reader(self._master, self._read)
            self._reading = True

    def _pause(self) -> None:
        if self._master is not None and self._reading:
            self._loop.remove_reader(self._master)
            self._reading = False
