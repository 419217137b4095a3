"""What is counted for one machine."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from machines.paper.count import count


@pytest.mark.acceptance
def test_the_checks_of_authentication_are_counted_once_each() -> None:
    found = count("Authentication", 60.0, 4.0)
    assert found.exhausted and found.broken == ()
    assert found.transitions == 17
    assert 30 < found.contracts <= 17 * 6
    assert found.faults == 58
    assert found.oracles >= 9 * 8
    assert found.judgements > 10 * found.contracts
    assert 0 < found.killed <= found.mutants
    assert found.checks == found.contracts + found.cells + found.faults + found.oracles


def test_a_machine_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="'Nothing': there is none"):
        count("Nothing", 1.0, 1.0)
