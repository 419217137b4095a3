"""Group commit: what waits goes together, each caller hears of its own write, order is kept."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.committer import BATCH_MAX, BREATH, Committer, DirectCommitter, InlineIo, ThreadIo
from engine.errors import StoreBusy, UnknownRun
from engine.ports import Batch, Delivery, Done, Start, Started, Written
from engine.testing import Crash


class Runs:
    """A store's runs that answer with what was asked, so that callers can be told apart.

    A delivery of `None` is to a run that does not exist.
    """

    def __init__(self) -> None:
        self.runs = self
        self.batches: list[list[int]] = []
        self.groups: list[Batch] = []
        self.fail: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def group(self, batch):
        self.groups.append(batch)
        return Done(
            started=[Started(run_id=one, created=True) for one in batch.starts],
            receipts=list(batch.deliveries),
            written=self.commit(batch.writes),
        )

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


async def test_starts_deliveries_and_writes_share_a_transaction():
    runs, io = Runs(), ThreadIo()
    committer = Committer(runs, io)
    runs.gate.clear()
    asked = [committer.write(0), committer.start("r1"), committer.deliver("d1"), committer.write(2),
             committer.start("r2"), committer.deliver(None)]  # fmt: skip
    tasks = [asyncio.create_task(one) for one in asked]
    await asyncio.sleep(0)
    runs.gate.set()
    first, started, receipt, second, other, unknown = [await task for task in tasks]
    assert (first.ok, second.ok) == (True, True)
    assert (started.run_id, other.run_id) == ("r1", "r2")
    assert (receipt, unknown) == ("d1", None)  # a run that does not exist fails alone
    assert runs.groups == [Batch(("r1", "r2"), ("d1", None), (0, 2))]
    io.close()


async def test_each_kind_is_bounded_by_itself():
    runs = Runs()
    committer = Committer(runs, InlineIo())
    starts = [committer.start(f"r{n}") for n in range(BATCH_MAX + 2)]
    answers = await asyncio.gather(*starts, committer.deliver("d"), committer.write(0))
    assert [one.run_id for one in answers[:-2]] == [f"r{n}" for n in range(BATCH_MAX + 2)]
    sizes = [(len(one.starts), len(one.deliveries), len(one.writes)) for one in runs.groups]
    assert sizes == [(BATCH_MAX, 1, 1), (2, 0, 0)]


async def test_one_run_in_hand_is_committed_in_place():
    runs = Runs()
    committer = Committer(runs, InlineIo(), lambda: True)
    assert (await committer.write(2)).ok
    assert (runs.batches, runs.groups) == ([[2]], [])
    io = ThreadIo()  # a call elsewhere gains nothing by it
    assert (await Committer(runs, io, lambda: True).write(4)).ok
    assert [one.writes for one in runs.groups] == [(4,)]
    io.close()


async def test_many_commits_in_place_leave_the_loop_a_turn():
    committer, turns = Committer(Runs(), InlineIo(), lambda: True), []
    asyncio.get_running_loop().call_soon(turns.append, "another")
    for _ in range(BREATH - 1):
        await committer.write(2)
    assert turns == []
    await committer.write(2)
    assert turns == ["another"]


async def test_the_answer_to_a_start_is_told_when_its_caller_has_given_up():
    """The store may have made the run this worker's; then somebody has to move it."""
    runs, io, told = Runs(), ThreadIo(), []
    committer = Committer(runs, io)
    runs.gate.clear()
    impatient = asyncio.create_task(committer.start("r1", told.append))
    patient = asyncio.create_task(committer.start("r2", told.append))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    runs.gate.set()
    assert (await patient).run_id == "r2"
    assert [one.run_id for one in told] == ["r1", "r2"]
    runs.fail = StoreBusy("locked")
    with pytest.raises(StoreBusy):
        await committer.start("r3", told.append)
    assert len(told) == 2
    io.close()


async def test_a_direct_committer_commits_each_by_itself(store, zoo):
    async with zoo.Bench(store).harness().app as app:
        committer = DirectCommitter(store, InlineIo())
        stored = store.runs.get((await app.start(zoo.Shop, zoo.Order())).run_id)
        entry = store.journal.read(stored.run.run_id)[0]
        told = []
        again = await committer.start(Start(run=stored.run, entry=entry), told.append)
        assert told == [again] == [Started(run_id=stored.run.run_id, created=False)]
        nobody = Delivery(run_id="nobody", key="k", event="pack", payload=None, at_ms=1)
        with pytest.raises(UnknownRun, match="nobody"):
            await committer.deliver(nobody)


async def test_the_stores_thread_is_one_and_not_ours():
    io = ThreadIo()
    names = {await io(lambda: threading.current_thread().name) for _ in range(5)}
    assert len(names) == 1
    assert names.pop().startswith("turtles-store")
    io.close()
    inline = InlineIo()
    assert await inline(threading.current_thread) is threading.current_thread()
    inline.close()
