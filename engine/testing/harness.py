"""An app in the foreground: the test says when something moves and what time it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from engine.app import App
from engine.committer import InlineIo
from engine.definition import Machine
from engine.performing import Calls, OutsideCalls
from engine.ports import Store
from engine.system import new_run_id
from engine.testing.clock import ManualClock
from engine.testing.faults import CrashingCalls, CrashingStore, CrashPlan
from engine.world import World

MOVES_MAX = 10_000


class Harness:
    """An `App` without a background worker, on a manual clock.

    Args:
        machines: the classes under test, child machines included.
        store: the store, usually in memory; it may be shared by harnesses one after another, as a
            database is by processes.
        resources: fakes for what the effects ask for.
        clock: shared likewise.
        plan: where to crash, if anywhere.
        calls: how effects are called, if not for real.
        new_id: names new runs.
        app: passed on to `App`, as the codec for `secrets`, to be shared when the store is.
    """

    def __init__(
        self,
        machines: Iterable[type[Machine[Any]]],
        *,
        store: Store,
        resources: Mapping[Any, Any] | None = None,
        clock: ManualClock | None = None,
        plan: CrashPlan | None = None,
        calls: Calls | None = None,
        new_id: Callable[[int], str] = new_run_id,
        **app: Any,
    ) -> None:
        self.clock = clock or ManualClock()
        self.store = store
        self.plan = plan or CrashPlan()
        world = World(
            clock=self.clock,
            calls=CrashingCalls(calls or OutsideCalls(), self.plan),
            store=self._crashing,
            io=InlineIo(),
            new_id=new_id,
        )
        self.app = App(machines, store, resources=resources, world=world, work=False, **app)
        self._beaten_ms = 0

    def _crashing(self, store: Store) -> Any:
        return CrashingStore(store, self.plan)

    async def __aenter__(self) -> Harness:
        await self.app.open()
        self._beaten_ms = self.clock.now_ms()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A dead process retires nothing; its runs are found by their expired lease.
        if not self.plan.dead:
            await self.app.stop()

    async def until_idle(self, *, horizon_ms: int = 10 * 365 * 24 * 3_600_000) -> None:
        """Move whatever is due, and the clock to whatever falls due, until nothing will.

        Args:
            horizon_ms: how far the clock may be moved in all.

        Raises:
            AssertionError: still busy after 10,000 moves.
        """
        last_ms = self.clock.now_ms() + horizon_ms
        for _ in range(MOVES_MAX):
            await self._beat()
            if await self.app.settle():
                continue
            due_ms = self.store.runs.next_due_ms(self._versions())
            if due_ms is None or due_ms > last_ms:
                return
            self.clock.advance_to(due_ms)
        raise AssertionError(f"not idle after {MOVES_MAX} moves")

    async def _beat(self) -> None:
        """Prolong the lease, as a worker does while time goes by."""
        if self._beaten_ms != self.clock.now_ms():
            await self.app.beat()
            self._beaten_ms = self.clock.now_ms()

    def _versions(self) -> frozenset[str]:
        return frozenset(table.fingerprint for table in self.app.tables.values())
