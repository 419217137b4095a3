"""How hard Hypothesis tries: `TURTLES_HYPOTHESIS_PROFILE` is `dev` (default), `ci` or `nightly`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The machine's speed is no property of the code: no deadline, and slow draws are no failure.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("dev", max_examples=40, stateful_step_count=20, **_COMMON)
settings.register_profile(
    "ci", max_examples=300, stateful_step_count=40, derandomize=True, print_blob=True, **_COMMON
)
settings.register_profile("nightly", max_examples=5_000, stateful_step_count=60, **_COMMON)
settings.load_profile(os.environ.get("TURTLES_HYPOTHESIS_PROFILE", "dev"))
