"""Delays grow, are bounded, and are the same whenever they are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import FOREVER, Retry

POLICIES = st.builds(
    Retry,
    attempts=st.integers(1, 100),
    first_ms=st.integers(0, 10_000),
    factor=st.floats(1, 10),
    max_ms=st.integers(0, 100_000),
    jitter=st.floats(0, 1),
)


def test_without_jitter_the_delay_doubles_up_to_its_bound():
    policy = Retry(first_ms=100, factor=2, max_ms=1_000, jitter=0)
    assert [policy.delay_ms(n, "k") for n in range(1, 7)] == [100, 200, 400, 800, 1000, 1000]


@given(POLICIES, st.integers(1, 10_000), st.text(max_size=5))
def test_every_delay_is_bounded_and_repeatable(policy, attempt, seed):
    delay = policy.delay_ms(attempt, seed)
    full = min(policy.first_ms * policy.factor ** min(attempt - 1, 62), policy.max_ms)
    assert round(full * (1 - policy.jitter)) <= delay <= round(full)
    assert policy.delay_ms(attempt, seed) == delay


def test_jitter_depends_on_the_seed_and_the_attempt():
    policy = Retry(first_ms=100_000, max_ms=100_000, jitter=1)
    assert len({policy.delay_ms(1, str(seed)) for seed in range(50)}) > 45
    assert len({policy.delay_ms(n, "k") for n in range(1, 50)}) > 45


def test_attempts_run_out():
    assert [Retry(attempts=2).exhausted(n) for n in (1, 2, 3)] == [False, True, True]
    assert not FOREVER.exhausted(1_000_000)
    assert FOREVER.delay_ms(1_000_000, "k") <= 60_000


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_ms": -1}, {"max_ms": -1}, {"factor": 0.5}, {"jitter": 2},
              {"jitter": -0.1}],
)  # fmt: skip
def test_a_policy_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="retry policy"):
        Retry(**wrong)
