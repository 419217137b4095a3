"""Authentication: every branch by name, and what no sequence of events may do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import hours, minutes, seconds
from engine.secret import Secret
from machines.clients.ports import KeyInfo, Rejected, ReplyLost, Unavailable
from machines.flows.f04_authentication import (
    Accepted,
    Authentication,
    Denied,
    OutOfStep,
    Proof,
    Unanswered,
)


def _proof(**changes: Any) -> Proof:
    fields: dict[str, Any] = {"public_key": "unsb-pk-1", "secret_key": Secret("unsb-sk-0")}
    return Proof(**(fields | changes))


async def test_right_key_is_authenticated(world: Any) -> None:
    story = await world.run(Authentication, _proof())
    assert story.passed == ["verifying", "authenticated"]
    identity = story.output
    assert (identity.tier, identity.concurrency, identity.requests_per_minute) == (1, 1, 7)
    assert identity.offset_ms == 0


@pytest.mark.parametrize("ahead_ms", [minutes(10), -minutes(10), hours(23)])
async def test_skewed_clock_is_measured_and_the_call_repeated_once(
    world: Any, ahead_ms: int
) -> None:
    world.platform.ahead_ms = ahead_ms
    story = await world.run(Authentication, _proof())
    assert story.passed == ["verifying", "resyncing", "authenticated"]
    assert story.output.offset_ms == ahead_ms
    assert world.platform.offsets == [0, ahead_ms]


async def test_skew_within_the_tolerance_needs_no_correction(world: Any) -> None:
    world.platform.ahead_ms = seconds(299)
    story = await world.run(Authentication, _proof())
    assert story.passed == ["verifying", "authenticated"]


async def test_still_skewed_after_resyncing_once(world: Any) -> None:
    world.platform.refusal = "invalid_timestamp"
    world.platform.ahead_ms = minutes(10)
    story = await world.run(Authentication, _proof())
    assert story.passed == ["verifying", "resyncing", "skewed"]
    assert len(world.platform.offsets) == 2


async def test_skewed_without_the_servers_time_is_not_guessed(world: Any) -> None:
    world.platform.ahead_ms, world.platform.tells_time = minutes(10), False
    story = await world.run(Authentication, _proof())
    assert story.passed == ["verifying", "skewed"]


async def test_absurd_server_time_is_not_followed(world: Any) -> None:
    world.platform.ahead_ms = hours(24 * 365)
    story = await world.run(Authentication, _proof())
    assert story.passed == ["verifying", "skewed"]
    assert "behind" in story.context.reason
    assert world.platform.offsets == [0]


@pytest.mark.parametrize(
    ("refusal", "state"),
    [
        ("expired", "expired"),
        ("suspended", "suspended"),
        ("invalid_key", "rejected"),
        ("invalid_signature", "rejected"),
        ("something new", "rejected"),
    ],
)
async def test_refusals_have_names(world: Any, refusal: str, state: str) -> None:
    world.platform.refusal = refusal
    story = await world.run(Authentication, _proof())
    assert (story.state, story.status) == (state, "failed")
    assert story.output is None


async def test_key_that_worked_before_with_a_bad_signature_was_rotated(world: Any) -> None:
    world.portal.generation = 1
    story = await world.run(Authentication, _proof(proven_before=True))
    assert story.state == "rotated"


async def test_answer_that_says_not_valid(world: Any) -> None:
    world.platform._judge = lambda credentials, offset_ms: KeyInfo(
        valid=False,
        public_key=credentials.public_key,
        tier=0,
        requests_per_minute=0,
        concurrency=0,
        reason="expired",
    )
    story = await world.run(Authentication, _proof())
    assert story.state == "expired"


@pytest.mark.parametrize("empty", ["tier", "concurrency", "requests_per_minute"])
async def test_valid_key_that_is_good_for_nothing_is_rejected(world: Any, empty: str) -> None:
    fields = {"tier": 1, "concurrency": 1, "requests_per_minute": 1} | {empty: 0}
    world.platform._judge = lambda credentials, offset_ms: KeyInfo(
        valid=True, public_key=credentials.public_key, **fields
    )
    story = await world.run(Authentication, _proof())
    assert (story.state, story.status) == ("rejected", "failed")
    assert "expected 1 of each at least" in story.context.reason
    assert story.output is None


async def test_answer_that_makes_no_sense_is_rejected(world: Any) -> None:
    world.platform.fail("validate_key", Rejected("platform: field tier: missing"))
    story = await world.run(Authentication, _proof())
    assert (story.state, story.context.reason) == ("rejected", "platform: field tier: missing")


@pytest.mark.parametrize("error", [Unavailable("down"), ReplyLost("no reply")])
async def test_platform_down_for_a_while_is_waited_out(world: Any, error: Exception) -> None:
    world.platform.fail("validate_key", error, times=5)
    story = await world.run(Authentication, _proof())
    assert story.state == "authenticated"


async def test_platform_that_never_answers_is_unreachable(world: Any) -> None:
    world.platform.fail("validate_key", Unavailable("down"), times=1_000)
    story = await world.run(Authentication, _proof())
    assert story.state == "unreachable"


async def test_all_attempts_used_up_is_unreachable(world: Any) -> None:
    world.platform.fail("validate_key", Unavailable("down"), times=1_000)
    story = await world.run(Authentication, _proof(timeout_ms=hours(10)))
    assert story.state == "unreachable"
    assert story.context.reason == "validate key: down"


async def test_the_secret_is_in_no_text(world: Any, capsys: Any) -> None:
    world.platform.refusal = "invalid_signature"
    story = await world.run(Authentication, _proof())
    assert "unsb-sk-0" not in "".join(capsys.readouterr()) + repr(story)


# -- any sequence of events ---------------------------------------------------------------------

NUMBERS = st.integers(0, 3)
MOMENTS = st.integers(0, 10) | st.integers(0, hours(60))
EVENTS = st.one_of(
    st.just("nobody_answers"),
    st.builds(Accepted, tier=NUMBERS, concurrency=NUMBERS, requests_per_minute=NUMBERS),
    st.builds(OutOfStep, server_ms=st.none() | MOMENTS, local_ms=MOMENTS),
    st.builds(
        Denied,
        reason=st.sampled_from(
            ["invalid_key", "invalid_signature", "expired", "suspended", "other"]
        ),
        detail=st.just("no"),
    ),
    st.builds(Unanswered, effect=st.just("prove"), reason=st.just("down"), attempts=st.just(30)),
)
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, 600)), max_size=8)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, before=st.booleans())
def test_the_table_does_what_the_library_does(
    library_agrees: Any, steps: Any, before: bool
) -> None:
    library_agrees(Authentication, _proof(proven_before=before), steps)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, before=st.booleans())
def test_contracts_hold_whatever_happens(walk: Any, steps: Any, before: bool) -> None:
    runs = walk(Authentication, _proof(proven_before=before), steps)
    assert sum(run.state == "resyncing" for run in runs) <= 1
    for run in runs:
        assert abs(run.context.offset_ms) <= hours(24)
        assert run.state != "authenticated" or run.context.tier >= 1
        assert run.state != "rotated" or before
