"""Turtles beside its peers and beside the raw limits of its stores, in one run.

    python -m tests.benchmarks --quick             under five minutes; CI; asserts no figure
    python -m tests.benchmarks --full --write      all of it; writes BENCHMARKS.md
    ... --only w1,w2 --without peers --set rounds=3 --set w4_finished=100000,1000000

Peers live in an environment of their own (`python -m tests.benchmarks.peers.setup`); without it
their rows say "not installed".  PostgreSQL is a private server (`tests.postgres_server`); without
binaries its rows say so.  What is measured and how stands in `plan`, `contenders`, `ours`, `raw`,
`growth`, `fleet` and `peers/`; `report` says what it means.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tests.benchmarks import about, contenders, micro, plan, report
from tests.benchmarks.contenders import ROOT, Contender
from tests.benchmarks.peers.setup import DEFAULT
from tests.benchmarks.plan import Cell, Results, Sizes
from tests.benchmarks.running import NO_SERVER, Bench, Server

BENCHMARKS = ROOT / "BENCHMARKS.md"
RESULTS = Path(tempfile.gettempdir()) / "turtles-benchmarks.json"


def main() -> int:
    """Measure, print, and write if asked to; 0, or 1 when a row of ours gave no figure."""
    options = arguments()
    if options.render:
        found = json.loads(options.render.read_text())
    else:
        found = measured(options)
        options.results.write_text(json.dumps(found, indent=1))
    text = report.document(found)
    print(text)
    if options.write:
        BENCHMARKS.write_text(text + "\n" + platform_section())
        print(f"written to {BENCHMARKS}")
    return 1 if broken(found["results"]) else 0


def broken(results: Results) -> list[str]:
    """Rows of ours that gave no figure, although nothing was missing for them."""
    return [
        f"{workload} {name}: {sample['failed']}"
        for workload, rows in results.items()
        for name, row in rows.items()
        for sample in row["samples"]
        if row["kind"] != "peer" and sample.get("failed", NO_SERVER) != NO_SERVER
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes; the default")
    size.add_argument("--full", action="store_true", help="the sizes of the published figures")
    parser.add_argument("--write", action="store_true", help="write BENCHMARKS.md")
    parser.add_argument("--only", default="", help="workloads, as w1,w2")
    parser.add_argument("--without", default="", help="peers, postgresql, raw, or keys of rows")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="sizes")
    parser.add_argument("--peers", type=Path, default=DEFAULT, help="where they are installed")
    parser.add_argument("--place", type=Path, help="directory for the files of the stores")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", type=Path, help="results of an earlier run, instead of one")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was found, as JSON."""
    sizes = with_changes(plan.FULL if options.full else plan.QUICK, options.sizes)
    everyone = contenders.ours(200) + contenders.peers(options.peers)
    only = {each for each in options.only.split(",") if each}
    without = {each for each in options.without.split(",") if each}
    chosen = [
        cell
        for cell in plan.cells(everyone, sizes)
        if (not only or cell.workload in only or cell.workload == "counts")
        and not without & set(words_of(cell))
    ]
    began = time.monotonic()
    with postgresql("postgresql" in without) as server:
        version = server.run("SHOW server_version")[0][0] if server else None
        results = take(Bench(server, options.place), chosen)
    if not only:
        results["micro"] = small(full=options.full)
    return {
        "results": results,
        "machine": {**about.machine(), "postgresql": version},
        "peers": about.peers(everyone),
        "settings": {each.label: each.settings for each in everyone},
        "sizes": {each.name: getattr(sizes, each.name) for each in fields(sizes)},
        "mode": "full" if options.full else "quick",
        "minutes": (time.monotonic() - began) / 60,
        "command": "python -m tests.benchmarks " + " ".join(sys.argv[1:]),
    }


def words_of(cell: Cell) -> Iterator[str]:
    """By what a cell can be left out."""
    yield from (cell.row, cell.contender.key, cell.contender.database)
    if cell.contender.raw:
        yield "raw"
    elif not cell.contender.ours:
        yield "peers"


def with_changes(sizes: Sizes, changes: list[str]) -> Sizes:
    """Sizes with NAME=VALUE of the command line."""
    known = {each.name: getattr(sizes, each.name) for each in fields(sizes)}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise SystemExit(f"--set {change}: no such size; there are {', '.join(known)}")
        kind = known[name]
        value: Any = (
            tuple(int(part) for part in text.split(","))
            if isinstance(kind, tuple)
            else type(kind)(text)
        )
        sizes = replace(sizes, **{name: value})
    return sizes


@contextlib.contextmanager
def postgresql(unwanted: bool) -> Iterator[Server | None]:
    """A private server, or None where there can be none."""
    if unwanted:
        yield None
        return
    try:
        from tests.postgres_server import server

        running = server()
        one = running.__enter__()
    except (ImportError, RuntimeError, OSError) as error:
        progress(f"PostgreSQL: {error}")
        yield None
        return
    try:
        yield one
    finally:
        running.__exit__(None, None, None)


def take(bench: Bench, chosen: list[Cell]) -> Results:
    """Every cell in every of its rounds, round-robin within each workload."""
    results: Results = {}
    workloads = list(dict.fromkeys(cell.workload for cell in chosen))
    for workload in workloads:
        mine = [cell for cell in chosen if cell.workload == workload]
        for number in range(max(max(cell.rounds) for cell in mine) + 1):
            for cell in mine:
                if number in cell.rounds:
                    take_one(bench, cell, results)
    return results


def take_one(bench: Bench, cell: Cell, results: Results) -> None:
    """One sample of one cell, added to the results."""
    row = results.setdefault(cell.workload, {}).setdefault(
        cell.row,
        {
            "label": cell.label,
            "kind": kind_of(cell.contender),
            "database": cell.contender.database,
            "samples": [],
        },
    )
    if any("failed" in sample for sample in row["samples"]):
        return
    options = cell.options(results) if callable(cell.options) else cell.options
    sample = bench.measure(cell.contender, cell.ask, **options)
    row["samples"].append({**sample, "options": dict(options)})
    progress(f"{cell.workload} {cell.row}: {report.brief(sample)}")


def kind_of(contender: Contender) -> str:
    """`ours`, `raw` or `peer`."""
    return "ours" if contender.ours else "raw" if contender.raw else "peer"


def small(*, full: bool) -> dict[str, dict[str, Any]]:
    """The two small figures."""
    decide_us, send_us = micro.deciding(20_000 if full else 2_000)
    help_ms, bare_ms = micro.starting(11 if full else 3)
    found = {"decide_us": decide_us, "send_us": send_us, "help_ms": help_ms, "bare_ms": bare_ms}
    return {"turtles": {"label": "turtles", "kind": "ours", "samples": [found]}}


def platform_section() -> str:
    """What BENCHMARKS.md says of the embedded platform: made by other commands, so it is kept."""
    if not BENCHMARKS.exists():
        return ""
    _, title, rest = BENCHMARKS.read_text().partition("\n## The embedded platform")
    return title + rest


def progress(text: str) -> None:
    """A line for whoever watches."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
