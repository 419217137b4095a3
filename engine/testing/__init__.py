"""For tests of machines: a clock that moves by hand, a crash at any boundary, a harness.

::

    async with Harness([Payment], resources={Gateway: FakeGateway()}) as harness:
        run = await harness.app.start(Payment, Invoice(...))
        await harness.until_idle()          # everything that is due, moving the clock to each timer
        assert (await harness.app.get(run.run_id)).state == "settled"
"""

from __future__ import annotations

from engine.testing.clock import ManualClock
from engine.testing.faults import Boundary, Crash, CrashingCalls, CrashingStore, CrashPlan
from engine.testing.harness import Harness

__all__ = [
    "Boundary",
    "Crash",
    "CrashPlan",
    "CrashingCalls",
    "CrashingStore",
    "Harness",
    "ManualClock",
]
