"""The table: sums, refusals, and what a row needs to be good."""

from __future__ import annotations

import msgspec

from machines.paper.count import Counted
from machines.paper.figures import Figure
from machines.paper.report import as_json, cells_of, lines_of
from machines.paper.rows import PAPER_TOTAL, ROWS

MACHINES = [name for row in ROWS for name in row.machines]


def counted(name: str, **changes: object) -> Counted:
    base = Counted(
        machine=name, contracts=100, cells=60, faults=50, oracles=40, judgements=7, answers=8,
        states=9, transitions=10, executions=11, exhausted=True, mutants=4, killed=3, broken=(),
        took_seconds=1.0,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def table(**changes: object) -> dict[str, Counted]:
    return {name: counted(name) for name in MACHINES} | {"Spend": counted("Spend", **changes)}


FIGURES = [Figure(title=ROWS[1].title, says="160 prices")]


def test_a_row_is_what_was_checked_with_its_figures() -> None:
    lines = lines_of(table(), FIGURES)
    assert [line.ours for line in lines[:3]] == [250, 251, 500]
    assert all(line.good for line in lines)
    last = cells_of(lines)[-1]
    assert last[:4] == ("", "Total", f"{PAPER_TOTAL:,}", "4,251")
    assert last[-1] == f"{3 * len(MACHINES)}/{4 * len(MACHINES)}"
    assert as_json(lines)["good"] is True


def test_a_row_with_too_little_or_with_anything_broken_is_not_good() -> None:
    (few,) = [one for one in lines_of(table(contracts=0, cells=0), []) if not one.good]
    assert few.title == "Wallet RPC Interfaces" and few.failed == ()
    (wrong,) = [one for one in lines_of(table(broken=("always x: y",)), []) if not one.good]
    assert wrong.failed == ("Spend: always x: y",)
    (open_,) = [one for one in lines_of(table(exhausted=False), []) if not one.good]
    assert open_.failed == ("Spend: not explored to the end",)
    bad = [Figure(title=ROWS[1].title, says="160 prices", problem="159")]
    (figure,) = [one for one in lines_of(table(), bad) if not one.good]
    assert figure.failed == ("160 prices: 159",)
    assert as_json(lines_of(table(), bad))["good"] is False
