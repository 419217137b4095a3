"""A kept terminal: one view, a screen to begin with, and bounds on every side."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from machines.platform import terminal as module
from machines.platform.terminal import AHEAD_BYTES_MAX, SCREEN_BYTES, InputStalled, Terminal, View

pytestmark = pytest.mark.timeout(20)


class Program:
    """The other side of a terminal: what a program inside would have open."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.slave, False)
        self.recorded = b""
        self.activity = 0
        self.hung_up = 0

    def terminal(self) -> Terminal:
        return Terminal(
            self.master, record=self._record, active=self._active, hung_up=self._hang_up
        )

    def _record(self, output: bytes) -> None:
        self.recorded += output

    def _active(self) -> None:
        self.activity += 1

    def _hang_up(self) -> None:
        self.hung_up += 1

    async def print(self, output: bytes) -> None:
        while output:
            try:
                output = output[os.write(self.slave, output) :]
            except BlockingIOError:
                await asyncio.sleep(0)

    def end(self) -> None:
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1


@pytest.fixture
def program() -> Iterator[Program]:
    made = Program()
    yield made
    made.end()


async def shown(view: View, size: int) -> bytes:
    output = b""
    while len(output) < size:
        piece = await asyncio.wait_for(view.next(), 5)
        assert piece is not None, output
        output += piece
    return output


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the event loop go round until it has come that far."""
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come that far")


async def reads(program: Program, size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        try:
            taken += os.read(program.slave, size - len(taken))
        except BlockingIOError:
            await asyncio.sleep(0)
    return taken


async def test_output_is_shown_recorded_and_counts_as_activity(program: Program) -> None:
    terminal = program.terminal()
    view = terminal.attach()
    await program.print(b"hello")
    assert await shown(view, 5) == b"hello"
    assert (program.recorded, program.activity) == (b"hello", 1)
    terminal.close()


async def test_keys_arrive_whole_and_in_order(program: Program) -> None:
    terminal = program.terminal()
    keys = bytes(range(256)) * 200
    writing = asyncio.create_task(terminal.write(keys))
    assert await reads(program, len(keys)) == keys
    await writing
    terminal.close()


async def test_the_size_reaches_the_program(program: Program) -> None:
    terminal = program.terminal()
    terminal.resize(101, 37)
    size = fcntl.ioctl(program.slave, termios.TIOCGWINSZ, bytes(8))
    assert struct.unpack("HHHH", size)[:2] == (37, 101)
    terminal.close()
    terminal.resize(1, 1)  # nobody is left to be told


async def test_a_new_view_begins_with_the_last_output_and_ends_the_first(program: Program) -> None:
    terminal = program.terminal()
    first = terminal.attach()
    await program.print(b"x" * SCREEN_BYTES + b"last")
    await shown(first, SCREEN_BYTES + 4)
    second = terminal.attach()
    assert first.ending == {"type": "detached"}
    assert await first.next() is None
    screen = await shown(second, SCREEN_BYTES)
    assert (len(screen), screen[-4:]) == (SCREEN_BYTES, b"last")
    assert not terminal.detach(first)
    assert terminal.detach(second)
    assert not terminal.detach(second)
    terminal.close()


async def test_without_a_view_the_program_is_not_held_up(program: Program) -> None:
    terminal = program.terminal()
    await program.print(b"y" * 3 * AHEAD_BYTES_MAX)
    await program.print(b"end")
    view = terminal.attach()
    assert (await shown(view, SCREEN_BYTES))[-3:] in (b"end", b"yyy")
    assert len(terminal._screen) <= SCREEN_BYTES
    terminal.close()


async def test_a_view_that_is_behind_holds_up_the_program_until_it_has_caught_up(
    program: Program,
) -> None:
    terminal = program.terminal()
    view = terminal.attach()
    total = 2 * AHEAD_BYTES_MAX
    printing = asyncio.create_task(program.print(b"z" * total))
    await eventually(lambda: view.is_behind)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not printing.done()
    assert len(view._ahead) < AHEAD_BYTES_MAX + module.READ_BYTES
    assert await shown(view, total) == b"z" * total
    await printing
    terminal.close()


async def test_a_view_that_leaves_while_it_is_behind_holds_up_nobody(program: Program) -> None:
    terminal = program.terminal()
    view = terminal.attach()
    printing = asyncio.create_task(program.print(b"z" * 2 * AHEAD_BYTES_MAX))
    await eventually(lambda: view.is_behind)
    terminal.detach(view)
    await asyncio.wait_for(printing, 5)
    terminal.close()


async def test_a_program_that_takes_no_keys_is_told_of(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.01)
    terminal = program.terminal()
    with pytest.raises(InputStalled):
        for _ in range(100):
            await terminal.write(b"k" * 60_000)
    assert len(terminal._keys) <= module.INPUT_BYTES_MAX + 60_000
    terminal.close()


async def test_closing_frees_a_writer_that_waits(program: Program) -> None:
    terminal = program.terminal()

    async def write() -> None:
        while terminal.is_open:
            await terminal.write(b"k" * 60_000)

    writing = asyncio.create_task(write())
    await eventually(lambda: len(terminal._keys) > module.INPUT_BYTES_MAX)
    terminal.close()
    await asyncio.wait_for(writing, 5)


async def test_the_end_of_the_program_is_told_once_after_all_its_output(program: Program) -> None:
    terminal = program.terminal()
    view = terminal.attach()
    await program.print(b"bye")
    program.end()
    assert await shown(view, 3) == b"bye"
    assert await asyncio.wait_for(view.next(), 5) is None
    assert view.ending == {"type": "exit"}
    assert (program.hung_up, terminal.is_open) == (1, False)
    late = terminal.attach()
    assert await shown(late, 3) == b"bye"
    assert (await late.next(), late.ending) == (None, {"type": "exit"})
    await terminal.write(b"nobody")
    terminal.close()
    assert program.hung_up == 1


async def test_closing_ends_the_view_and_the_descriptor(program: Program) -> None:
    terminal = program.terminal()
    view = terminal.attach()
    terminal.close()
    terminal.close()
    assert view.ending == {"type": "exit"}
    assert program.hung_up == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(program.master)


async def test_dismissing_keeps_the_terminal(program: Program) -> None:
    terminal = program.terminal()
    view = terminal.attach()
    terminal.dismiss("error", error="session_frozen")
    terminal.dismiss("error", error="again")
    assert view.ending == {"type": "error", "error": "session_frozen"}
    await program.print(b"still")
    again: Any = terminal.attach()
    assert await shown(again, 5) == b"still"
    terminal.close()
