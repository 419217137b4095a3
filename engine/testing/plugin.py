"""The pytest plugin `turtles`: a marker that verifies a machine, and fixtures for your own tests.

::

    @pytest.mark.turtles_verify(Payment, budget=10)
    def test_payment() -> None:
        '''Its own body runs after the verification.'''

    async def test_payment_survives(turtles_harness, turtles_faults) -> None:
        with pytest.raises(Crash):
            async with turtles_harness(Payment, plan=turtles_faults(at=7)) as harness: ...

The marker takes what `engine.testing.verify` takes.  `--turtles-budget SECONDS` and `--turtles-seed
NUMBER` override budget and seed of every verification.  Nothing but pytest is imported before a
test uses it.  PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from engine.definition import Machine
    from engine.ports import Store
    from engine.testing.clock import ManualClock
    from engine.testing.faults import CrashPlan
    from engine.testing.harness import Harness
    from engine.testing.ledger import Ledger

MARKER = "turtles_verify"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--turtles-budget` and `--turtles-seed`."""
    group = parser.getgroup("turtles", "verification of turtles machines")
    group.addoption(
        "--turtles-budget", type=_positive, metavar="SECONDS", default=None,
        help="Verify each machine for so long, whatever its test says.",
    )  # fmt: skip
    group.addoption(
        "--turtles-seed", type=int, metavar="NUMBER", default=None,
        help="What verification chooses by chance follows from this, whatever its test says.",
    )  # fmt: skip


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def pytest_configure(config: pytest.Config) -> None:
    """The marker; and what the options say."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(machine, *, budget=10, exhaustive=False, allow_gaps=False, known=(), "
        "environment=None, scope=None, seed=0, phases=None): verify a machine before the test's "
        "own body runs; see engine.testing.verify.",
    )
    budget, seed = config.getoption("--turtles-budget"), config.getoption("--turtles-seed")
    if budget is not None or seed is not None:
        from engine.testing.verifying import chosen

        chosen.budget_seconds, chosen.seed = budget, seed


def pytest_unconfigure(config: pytest.Config) -> None:
    """What the options said is over."""
    if config.getoption("--turtles-budget") is None and config.getoption("--turtles-seed") is None:
        return
    from engine.testing.verifying import chosen

    chosen.budget_seconds = chosen.seed = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Verify the machines of the markers, the outermost last; then the test itself."""
    for marker in pyfuncitem.iter_markers(MARKER):
        _verify(*marker.args, **marker.kwargs)
    return (yield)


def _verify(*machines: Any, **options: Any) -> None:
    from engine.errors import TurtlesError
    from engine.testing.verifying import VerificationFailed, verify

    if not machines:
        pytest.fail(f"{MARKER}: expected a machine, got none", pytrace=False)
    for machine in machines:
        try:
            verify(machine, **options)
        except VerificationFailed as failed:
            pytest.fail(str(failed), pytrace=False)
        except (TypeError, TurtlesError) as error:
            pytest.fail(f"{MARKER}: {error}", pytrace=False)


# -- fixtures -------------------------------------------------------------------------------------


@pytest.fixture
def turtles_clock() -> ManualClock:
    """A clock that stands still until the test moves it."""
    from engine.testing.clock import ManualClock

    return ManualClock()


@pytest.fixture
def turtles_store() -> Iterator[Store]:
    """An empty store in memory; at the test's end the rules of storage must hold."""
    from engine.testing.stores import memory_store

    store = memory_store()
    yield store
    findings = store.inspector.findings()
    store.close()
    assert not findings, "; ".join(f"{one.rule}: {one.problem}" for one in findings)


@pytest.fixture
def turtles_ledger() -> Iterator[Ledger]:
    """Every call of an effect; at the test's end none was done twice that may not be."""
    from engine.testing.ledger import Ledger

    ledger = Ledger()
    yield ledger
    ledger.assert_at_most_once()


@pytest.fixture
def turtles_faults() -> Any:
    """Makes crash plans: `turtles_faults(at=7)` dies at the seventh boundary, `()` only counts."""
    from engine.testing.faults import CrashPlan

    def plan(at: int | None = None) -> CrashPlan:
        return CrashPlan(at=at)

    return plan


@pytest.fixture
def turtles_harness(
    turtles_store: Store, turtles_clock: ManualClock, turtles_ledger: Ledger
) -> Any:
    """Makes harnesses over the same store, clock, ledger and secrets, one after another.

    `turtles_harness(Payment, resources={Gateway: fake}, plan=turtles_faults(at=7))`; each is one
    process, and an `async with`.
    """
    from engine.secrets import SecretsCodec
    from engine.testing.harness import Harness

    common = {
        "store": turtles_store,
        "clock": turtles_clock,
        "calls": turtles_ledger,
        "secrets": SecretsCodec(bytes(32)),
    }

    def harness(*machines: type[Machine[Any]], **options: Any) -> Harness:
        return Harness(machines, **{**common, **options})

    return harness
