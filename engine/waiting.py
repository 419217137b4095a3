"""Those who wait for runs to end: told at once of what this program moves, one query for the rest.

However many wait, the runs that other processes move are looked up together, every `POLL_MS`.  A
store that fails is asked again, with growing pauses; after `PATIENCE_MS` whoever waits gets its
error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.clock import Clock
from engine.codec import Codec
from engine.committer import Io
from engine.errors import StoreError
from engine.ports import Store
from engine.retry import Retry
from engine.run import Run
from engine.view import missing_run

POLL_MS = 100
PATIENCE_MS = 30_000
_AGAIN = Retry(first_ms=POLL_MS, max_ms=2_000, jitter=0.5)


class Waiters:
    """Who waits for which run to rest: to end, or to be held for a person."""

    def __init__(self, store: Store, io: Io, clock: Clock, codec: Codec) -> None:
        self._store = store
        self._io = io
        self._clock = clock
        self._codec = codec
        self._waiting: dict[str, set[asyncio.Future[Run]]] = {}
        self._poller: asyncio.Task[None] | None = None

    async def wait(self, run_id: str, in_hand: bool, check: Callable[[], None]) -> Run:
        """The run when it rests.

        Args:
            in_hand: this program is moving it now, so there is no need to look how it stands.
            check: raises what makes waiting useless; asked now and at every look.

        Raises:
            UnknownRun: no such run; `RunRemoved` if it has been removed.
        """
        future: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run_id, set()).add(future)
        try:
            if not in_hand:
                await self._look(run_id, future)
            if not future.done():
                check()
                self._poller = self._poller or asyncio.create_task(self._poll(check))
            return await future
        finally:
            self._leave(run_id, future)

    async def _look(self, run_id: str, future: asyncio.Future[Run]) -> None:
        """See how the run stands now."""
        if found := await self._rested([run_id]):
            self.rests(found[0])
        elif await self._io(lambda: self._store.runs.get(run_id)) is None:
            gone = await self._io(lambda: self._store.retention.gone(run_id))
            raise missing_run(run_id, gone, self._store.name)

    def rests(self, run: Run) -> None:
        """A run has come to rest."""
        for future in self._waiting.get(run.run_id, ()):
            if not future.done():
                future.set_result(run)

    def _leave(self, run_id: str, future: asyncio.Future[Run]) -> None:
        others = self._waiting.get(run_id, set())
        others.discard(future)
        if not others:
            self._waiting.pop(run_id, None)
        if not self._waiting and self._poller is not None:
            self._poller.cancel()
            self._poller = None

    async def _poll(self, check: Callable[[], None]) -> None:
        failures, since_ms = 0, 0
        try:
            while True:
                seed = next(iter(self._waiting), "")  # another one in every process
                await self._clock.sleep(_AGAIN.delay_ms(failures, seed) if failures else POLL_MS)
                try:
                    for run in await self._rested(sorted(self._waiting)):
                        self.rests(run)
                    failures = 0
                except StoreError:
                    since_ms = since_ms if failures else self._clock.now_ms()
                    failures += 1
                    if self._clock.now_ms() - since_ms >= PATIENCE_MS:
                        raise
                check()
        except Exception as error:  # noqa: BLE001 - it is for those who wait
            self._poller = None
            for future in [one for some in self._waiting.values() for one in some]:
                if not future.done():
                    future.set_exception(error)

    async def _rested(self, run_ids: list[str]) -> list[Run]:
        stored = await self._io(lambda: self._store.runs.rested(run_ids))
        return [self._codec.open_run(one.run) for one in stored]
