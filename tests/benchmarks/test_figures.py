"""The arithmetic of the benchmarks, and what the report makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks import contenders, plan, report
from tests.benchmarks.__main__ import broken, with_changes, words_of
from tests.benchmarks.figures import best, median, number, quiet, ratio, spread, table, verdict
from tests.benchmarks.targets import Judge


def row(kind: str, *samples: dict[str, Any], label: str = "somebody") -> dict[str, Any]:
    """A row of results."""
    return {"label": label, "kind": kind, "database": "sqlite", "samples": list(samples)}


def test_noisy_samples_do_not_count_beside_quiet_ones() -> None:
    noisy, calm = {"ms": 90.0, "foreign_cores": 1.2}, {"ms": 10.0, "foreign_cores": 0.1}
    calmer = {"ms": 12.0, "foreign_cores": 0.0}
    assert quiet([noisy, calm]) == [calm]
    assert median([noisy, calm, calmer], "ms") == 11.0
    assert spread([noisy, calm, calmer], "ms") == (10.0, 12.0)
    assert median([noisy], "ms") == 90.0  # nothing better was to be had


def test_what_was_not_measured_has_no_median_no_ratio_and_no_verdict() -> None:
    assert median([{"failed": "not installed: dbos"}], "ms") is None
    assert ratio(None, 2.0) is None
    assert ratio(3.0, None) is None
    assert ratio(3.0, 0.0) is None
    assert verdict(None, 1.0, at_most=True) == "not measured"


def test_the_best_is_the_greatest_rate_or_the_least_time() -> None:
    found = {"slow": 10.0, "fast": 100.0, "absent": None}
    assert best(found, least=False) == ("fast", 100.0)
    assert best(found, least=True) == ("slow", 10.0)
    assert best({"absent": None}, least=True) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (99.94, "99.9"), (1.234, "1.23"), (0.0123, "0.012"), (0.0, "0.000")],
)
def test_figures_are_read_with_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_verdict_is_of_the_bound_itself_too() -> None:
    assert verdict(1.1, 1.1, at_most=True) == "yes"
    assert verdict(1.11, 1.1, at_most=True) == "**no**"
    assert verdict(25.0, 25.0, at_most=False) == "yes"
    assert verdict(24.9, 25.0, at_most=False) == "**no**"


def test_a_table_refuses_a_row_of_another_width() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="3 cells under 2"):
        table(("a", "b"), [("1", "2", "3")])


def test_targets_are_judged_against_the_best_peer_on_any_database() -> None:
    def rate(value: float) -> dict[str, float]:
        return {"steps_per_second": value}

    results = {
        "w1": {
            "turtles-sqlite-16": row("ours", rate(5_000.0)),
            "turtles-sqlite-200": row("ours", rate(20_000.0), rate(22_000.0)),
            "raw-sqlite-driver": row("raw", rate(42_000.0)),
            "dbos-sqlite": row("peer", rate(400.0), label="DBOS"),
            "absurd": row("peer", rate(1_000.0), label="Absurd"),
            "langgraph": row("peer", {"failed": "not installed: langgraph"}, label="LangGraph"),
        }
    }
    judged = [each.cells() for each in Judge(results).all() if each.what.startswith("W1 SQLite")]
    what = "W1 SQLite, durable transitions/s"
    fastest = "21,000 /s (fastest of 16, 200, 1,000 at once: 200)"
    assert judged[:3] == [
        (what, fastest, "21.0 x Absurd (1,000 /s)", "25 x", "**no**"),
        (what, fastest, "52.5 x DBOS on the same database (400 /s)", "60 x", "**no**"),
        (
            f"{what}, 200 at once",
            "21,000 /s",
            "0.500 of the bare group commit over the driver (42,000 /s)",
            "0.40",
            "yes",
        ),
    ]
    assert judged[3][-1] == "not measured"


def test_growth_is_judged_by_how_much_there_was() -> None:
    sample = {"ratio": 1.15, "p50_ms": 2.3, "empty_p50_ms": 2.0, "bytes_per_finished": 2_600.0}
    results = {
        "w4": {
            "turtles-sqlite-100000": row("ours", sample),
            "turtles-sqlite-1000000": row("ours", sample),
        }
    }
    reached = [each.reached for each in Judge(results).all() if each.what.startswith("W4 SQLite")]
    assert reached == ["**no**", "**no**", "yes", "**no**"]


def test_the_report_says_what_is_missing_and_counts_what_is_lost() -> None:
    found = {
        "results": {
            "w2": {
                "turtles-sqlite": row("ours", {"p50_ms": 5.0, "foreign_cores": 0.1}),
                "raw-sqlite": row("raw", {"p50_ms": 2.0}),
                "dbos-sqlite": row("peer", {"failed": "not installed: dbos"}, label="DBOS"),
            }
        },
        "machine": {
            "date": "today", "cpu": "a cpu", "cores": 2, "memory_gib": 24, "kernel": "6",
            "file_system": "ext4", "python": "3.11", "sqlite": "3.40", "postgresql": None,
            "packages": {},
        },
        "peers": {},
        "settings": {"DBOS": "defaults"},
        "sizes": dict.fromkeys(plan.Sizes.__dataclass_fields__, 1),
        "mode": "quick",
        "minutes": 1.0,
        "command": "python -m tests.benchmarks",
    }  # fmt: skip
    text = report.document(found)
    assert "| DBOS | not installed: dbos |" in text
    assert "| W2 SQLite, p50 of ten steps | 5.00 ms | 2.50 x the raw commits (2.00 ms) |" in text
    assert "1 of " in text
    assert "Not measured in this run." in text


def test_only_a_row_of_ours_that_broke_is_an_error() -> None:
    results = {
        "w1": {
            "dbos": row("peer", {"failed": "not installed: dbos"}),
            "turtles-postgresql": row("ours", {"failed": "no PostgreSQL here"}),
        }
    }
    assert broken(results) == []
    results["w1"]["turtles-sqlite"] = row("ours", {"failed": "failed: it broke"})
    assert broken(results) == ["w1 turtles-sqlite: failed: it broke"]


def test_every_row_of_the_plan_is_named_once_and_can_be_left_out(tmp_path: Any) -> None:
    everyone = contenders.ours(200) + contenders.peers(tmp_path)
    cells = list(plan.cells(everyone, plan.FULL))
    names = [(cell.workload, cell.row) for cell in cells]
    assert len(names) == len(set(names))
    assert {cell.workload for cell in cells} == {"counts", *(f"w{n}" for n in range(1, 8))}
    for cell in cells:
        kinds = {"raw", "peers"} & set(words_of(cell))
        assert bool(kinds) == (not cell.contender.ours)
    assert all(each.missing for each in everyone if not each.ours and not each.raw)


def test_raw_limits_take_the_batch_that_ours_had() -> None:
    counted = row("ours", {"steps_per_commit": 61.4})
    assert plan.batch_of("turtles-sqlite", {"counts": {"turtles-sqlite": counted}}, 1_000) == 61
    measured = row("ours", {"commits": 100})
    results = {"w1": {"turtles-postgresql-200": measured}}
    assert plan.batch_of("turtles-postgresql", results, 1_000) == 120
    assert plan.batch_of("turtles-postgresql", {}, 1_000) == 200


def test_sizes_are_changed_by_name() -> None:
    changed = with_changes(plan.QUICK, ["rounds=7", "w4_finished=10,20", "idle_seconds=0.5"])
    assert (changed.rounds, changed.w4_finished, changed.idle_seconds) == (7, (10, 20), 0.5)
    with pytest.raises(SystemExit, match="no such size"):
        with_changes(plan.QUICK, ["w9=1"])
