"""Group commit: what waits goes together, each caller hears of its own write, order is kept."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.committer import BATCH_MAX, Committer, InlineIo, ThreadIo
from engine.errors import StoreBusy
from engine.ports import Written
from engine.testing import Crash


class Runs:
    """Answers with the write itself, so that callers can be told apart."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.fail: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def commit(self, writes):
        self.gate.wait()
        self.batches.append(list(writes))
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        return [Written(ok=write % 2 == 0) for write in writes]


async def test_what_waits_shares_one_transaction():
    runs, io = Runs(), ThreadIo()
    committer = Committer(runs, io)
    runs.gate.clear()
    first = asyncio.create_task(committer.write(0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(committer.write(i)) for i in range(1, 6)]
    await asyncio.sleep(0)
    runs.gate.set()
    answers = [(await task).ok for task in [first, *rest]]
    assert answers == [True, False, True, False, True, False]
    assert runs.batches == [[0], [1, 2, 3, 4, 5]]
    io.close()


async def test_one_alone_waits_for_nobody():
    runs = Runs()
    assert (await Committer(runs, InlineIo()).write(2)).ok
    assert runs.batches == [[2]]


async def test_a_batch_is_bounded():
    runs = Runs()
    committer = Committer(runs, InlineIo())
    await asyncio.gather(*[committer.write(i) for i in range(BATCH_MAX + 3)])
    assert [len(batch) for batch in runs.batches] == [BATCH_MAX, 3]
    assert [i for batch in runs.batches for i in batch] == list(range(BATCH_MAX + 3))


@pytest.mark.parametrize("error", [StoreBusy("locked"), Crash("dead")], ids=["error", "crash"])
async def test_a_failure_reaches_every_caller_of_the_batch_and_no_other(error):
    runs = Runs()
    runs.fail = error
    committer = Committer(runs, InlineIo())
    writes = [committer.write(i) for i in range(3)]
    assert await asyncio.gather(*writes, return_exceptions=True) == [error] * 3
    assert (await committer.write(4)).ok


async def test_a_caller_that_gives_up_does_not_disturb_the_others():
    runs, io = Runs(), ThreadIo()
    committer = Committer(runs, io)
    runs.gate.clear()
    impatient = asyncio.create_task(committer.write(0))
    patient = asyncio.create_task(committer.write(2))
    await asyncio.sleep(0)
    impatient.cancel()
    runs.gate.set()
    assert (await patient).ok
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert runs.batches == [[0, 2]]
    io.close()


async def test_the_stores_thread_is_one_and_not_ours():
    io = ThreadIo()
    names = {await io(lambda: threading.current_thread().name) for _ in range(5)}
    assert len(names) == 1
    assert names.pop().startswith("turtles-store")
    io.close()
    inline = InlineIo()
    assert await inline(threading.current_thread) is threading.current_thread()
    inline.close()
