"""For tests of machines: a clock that moves by hand, a crash at any boundary, a harness, a ledger.

::

    async with Harness([Payment], resources={Gateway: FakeGateway()}) as harness:
        run = await harness.app.start(Payment, Invoice(...))
        await harness.until_idle()          # everything that is due, moving the clock to each timer
        assert (await harness.app.get(run.run_id)).state == "settled"

    def test_payment() -> None:
        verify(Payment, budget=10)          # every order of events, duplicates, losses and crashes

See docs/testing.md; the pytest plugin is `engine.testing.plugin`, the Hypothesis state machines are
`engine.testing.stateful`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.testing.clock import ManualClock
    from engine.testing.faults import (
        Boundary,
        Crash,
        CrashingCalls,
        CrashingConnection,
        CrashingStore,
        CrashPlan,
    )
    from engine.testing.harness import Harness
    from engine.testing.ledger import Ledger
    from engine.testing.stateful import MachineTest, machine_test, run_machine
    from engine.testing.stores import memory_store
    from engine.testing.verifying import VerificationFailed, verify

_HOMES = {
    "Boundary": "faults",
    "Crash": "faults",
    "CrashPlan": "faults",
    "CrashingConnection": "faults",
    "CrashingCalls": "faults",
    "CrashingStore": "faults",
    "Harness": "harness",
    "Ledger": "ledger",
    "MachineTest": "stateful",
    "ManualClock": "clock",
    "VerificationFailed": "verifying",
    "machine_test": "stateful",
    "memory_store": "stores",
    "run_machine": "stateful",
    "verify": "verifying",
}

__all__ = [
    "Boundary",
    "Crash",
    "CrashPlan",
    "CrashingCalls",
    "CrashingConnection",
    "CrashingStore",
    "Harness",
    "Ledger",
    "MachineTest",
    "ManualClock",
    "VerificationFailed",
    "machine_test",
    "memory_store",
    "run_machine",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the plugin is imported by every pytest, and few tests need Hypothesis.
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'engine.testing' has no attribute {name!r}") from None
    return getattr(import_module(f"engine.testing.{home}"), name)
