"""`verify(Machine)` in a test: every phase of `turtles verify`, and an error that says it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.definition import Machine
    from engine.ports import Store
    from engine.verification.environment import Environment
    from engine.verification.result import Scope
    from engine.verification.verify import Verification

__tracebackhide__ = True
BUDGET_SECONDS = 10.0
GAPS = 2


@dataclass
class Chosen:
    """What the command line of pytest says, for every verification in the process.

    Attributes:
        budget_seconds: instead of each test's own budget; None: as each says.
        seed: instead of each test's own seed.
    """

    budget_seconds: float | None = None
    seed: int | None = None


chosen = Chosen()


class VerificationFailed(AssertionError):
    """Something was found; the message is the report, with a token for each failure.

    Attributes:
        found: everything that was found.
    """

    def __init__(self, message: str, found: Verification) -> None:
        super().__init__(message)
        self.found = found


def verify(
    machine: type[Machine[Any]],
    *,
    budget: float = BUDGET_SECONDS,
    exhaustive: bool = False,
    allow_gaps: bool = False,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    scope: Scope | None = None,
    seed: int = 0,
    phases: Sequence[str] | None = None,
    store_factory: Callable[[], Store] | None = None,
) -> Verification:
    """Verify a machine, and fail if anything is wrong with it.

    Args:
        budget: seconds for all phases; `--turtles-budget` of the pytest plugin overrides it.
        exhaustive: also fail if the budget was over before everything in the scope was tried.
        allow_gaps: do not fail because transitions, cells, faults or marks were not covered.
        known: machines that it may start as children.
        environment: what the outside may do; by default the one that was defined for the machine.
        scope: the bounds of the exploration; by default the environment's.
        seed: what is chosen by chance follows from it; `--turtles-seed` overrides it.
        phases: some of `engine.verification.verify.PHASES`; by default all.
        store_factory: opens an empty store in memory; by default turtles' own.

    Raises:
        VerificationFailed: with the whole report.
        UsageError: the budget is not positive, or there is no such phase.
    """
    from engine.testing.stores import memory_store
    from engine.verification.report import lines, told
    from engine.verification.verify import PHASES
    from engine.verification.verify import verify as verify_all

    found = verify_all(
        machine,
        store_factory or memory_store,
        known=known,
        environment=environment,
        scope=scope,
        budget_seconds=budget if chosen.budget_seconds is None else chosen.budget_seconds,
        seed=seed if chosen.seed is None else chosen.seed,
        phases=PHASES if phases is None else phases,
        require_exhaustive=exhaustive,
    )
    tried = [one for one in found.phases if one != "static"]
    if tried and not found.troubles and all(getattr(found, one, None) is None for one in tried):
        raise VerificationFailed(
            f"verify {machine.__name__}: the budget of {found.budget_seconds:g} s was over before "
            "anything was tried. Give it more.", found,
        )  # fmt: skip
    code = found.exit_code
    if code and not (allow_gaps and code == GAPS):
        text = "\n".join(lines(told(found)))
        raise VerificationFailed(f"{text}\nexit {code}", found)
    return found
