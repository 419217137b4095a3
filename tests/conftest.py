"""How hard Hypothesis tries, and figures at the end of a run.

`TURTLES_HYPOTHESIS_PROFILE` is `dev` (default), `ci` or `nightly`.  A test that counts something
worth telling says so with the `figure` fixture; the line stands in the summary, also under xdist.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

# The machine's speed is no property of the code: no deadline, and slow draws are no failure.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("dev", max_examples=40, stateful_step_count=20, **_COMMON)
settings.register_profile(
    "ci", max_examples=300, stateful_step_count=40, derandomize=True, print_blob=True, **_COMMON
)
settings.register_profile("nightly", max_examples=5_000, stateful_step_count=60, **_COMMON)
settings.load_profile(os.environ.get("TURTLES_HYPOTHESIS_PROFILE", "dev"))

FIGURE = "figure"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """No test is heard less because an app before it had set how much is said."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say one line in the summary of the run."""
    return lambda line: record_property(FIGURE, line)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests said with `figure`."""
    lines = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == FIGURE and getattr(report, "when", "") == "call"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in sorted(set(lines)):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def umask_as_before() -> Iterator[None]:
    """A command that runs in this process makes files private for the rest of it."""
    mask = os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)
