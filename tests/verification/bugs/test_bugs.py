"""Every planted bug is found in its budget, by the property it breaks; its sound twin passes."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from engine.verification.explore import Scope, explore, repeat
from engine.verification.oracles import Breach
from engine.verification.report import Token, read_token, token_of
from persistence.store import open_store
from tests.verification.bugs.corpus import BUGS, Bug
from tests.verification.bugs.hunt import BUDGET_SECONDS, hunt
from tests.verification.bugs.subjects import Chain, Rung

SOUND = {bug.sound.__name__: bug for bug in BUGS}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_is_found_and_its_way_shows_it_and_nothing_else(bug: Bug) -> None:
    found = hunt(bug)
    assert found.rule in bug.rules, (found.rule, found.failure)
    assert found.took_ms <= BUDGET_SECONDS * 1000
    if found.failure is None:
        return  # a gap in the coverage has no way
    token = read_token(token_of(found.report.table, found.failure))
    with bug.planted():
        again = repeat(bug.broken, open_store("sqlite://"), token.steps,
                       known=bug.known, liveness=token.kind == "liveness")  # fmt: skip
    assert token.rule in [breach.rule for breach in again.breaches]
    assert breaches_without(bug, token) == ()


def breaches_without(bug: Bug, token: Token) -> tuple[Breach, ...]:
    """What is wrong on the same way through the sound twin, as far as it can be gone there."""
    try:
        return repeat(bug.sound, open_store("sqlite://"), token.steps,
                      known=bug.known, liveness=token.kind == "liveness").breaches  # fmt: skip
    except UsageError as error:
        assert "not possible any more" in str(error)
        return ()


@pytest.mark.parametrize("name", SOUND)
def test_sound_machine_passes(name: str) -> None:
    bug = SOUND[name]
    report = explore(
        bug.sound,
        open_store("sqlite://"),
        known=bug.known,
        budget_seconds=30,
        scope=Scope(messages=1 if name == "Shop" else 3),
    )
    assert report.exhausted
    assert report.failures == []
    assert report.mismatches == []
    assert report.coverage.missing_transitions == []
    assert report.coverage.missing_cells == []


def test_ten_steps_with_ambiguous_creates_are_exhausted() -> None:
    report = explore(
        Chain,
        open_store("sqlite://"),
        budget_seconds=60,
        scope=Scope(messages=0, cancels=False),
        contexts=[Rung(depth=1, depth_max=10)],
    )
    assert report.exhausted and report.failures == [] and report.mismatches == []
    assert report.states > 500 and report.depth >= 20
