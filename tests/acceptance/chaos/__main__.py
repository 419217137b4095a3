"""Chaos: many workers on one database under steady load, while all that can die does.

    python -m tests.acceptance.chaos --quick                     about 90 seconds, for CI
    python -m tests.acceptance.chaos --seconds 1800 --seed 7     in rounds, each in another order
    python -m tests.acceptance.chaos --store sqlite --quick
    python -m tests.acceptance.chaos --only zombie --seconds 60

Workers are killed and stopped beyond their lease, backends terminated, the server restarted and
crashed, connections cut before, in and after COMMIT, delayed and held up, one worker's clock set
an hour forwards and back (`disturbances.py`).  Then the load ends, and everything must be as if
nothing had happened (`report.check`): every parcel that was accepted is gone, every journal has
exactly its entries, every call outside was made once, the storage rules hold, no worker ended with
a traceback.  The rate must be back within one lease after each disturbance.

What is done to whom comes from the seed; when the processes feel it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

import structlog

from engine import App
from tests.acceptance.chaos import disturbances, report
from tests.acceptance.chaos.fleet import Fleet, Load
from tests.acceptance.chaos.machines import ENTRIES_EACH, Label, Parcel
from tests.postgres_server import PostgresServer, server

WINDOW_SECONDS = 3.0
WARM_SECONDS = 5.0
END_SECONDS = 60.0
_ENDED = "SELECT count(*) FROM turtles_run WHERE status NOT IN ('completed','failed','cancelled')"


def main() -> int:
    """Run the suite; 0 when everything held."""
    options = _options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    options.seed = seed
    print(f"chaos: seed {seed}, {options.workers} workers on {options.store}, lease "
          f"{options.lease:g} s, {options.rate:g} parcels/s "
          f"({options.rate * ENTRIES_EACH:g} transitions/s)", flush=True)  # fmt: skip
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turtles-chaos-")))
        postgres = stack.enter_context(server()) if options.store == "postgresql" else None
        return asyncio.run(_run(options, folder, postgres))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="how long to disturb (default: one round)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="the first kinds, once each, in order")
    parser.add_argument("--store", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rate", type=float, default=15.0, help="parcels a second")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds")
    parser.add_argument("--only", action="append", help="a kind of disturbance, by name")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def _schedule(options: argparse.Namespace) -> list[disturbances.Disturbance]:
    """One round of disturbances, in the order in which they are made."""
    kinds = disturbances.ON_POSTGRESQL
    if options.store == "sqlite":
        kinds = disturbances.ON_SQLITE
    if options.only:
        known = {kind.__name__: kind for kind in kinds}
        if unknown := set(options.only) - set(known):
            raise SystemExit(f"--only: no {', '.join(sorted(unknown))}; there are {list(known)}")
        return [known[name] for name in options.only]
    return list(kinds[: disturbances.QUICK] if options.quick else kinds)


async def _run(options: argparse.Namespace, folder: Path, postgres: PostgresServer | None) -> int:
    chance = random.Random(options.seed)
    fleet = Fleet(folder, postgres, options.lease)
    await fleet.start(options.workers)
    async with App([Parcel, Label], fleet.store, work=False) as app:
        load = Load(app, options.rate, chance)
        giving = asyncio.create_task(load.run())
        await asyncio.sleep(WARM_SECONDS)
        events = await _disturb(options, fleet, chance)
        load.end()
        await giving
        problems = await _all_ended(fleet)
    problems += await fleet.stop()
    found, counts = report.check(fleet, load.accepted)
    problems += found
    rates = report.Rates(fleet.store)
    recoveries = [rates.recovery(event, options.lease, WINDOW_SECONDS) for event in events]
    problems += [
        f"{one.kind} ({one.what}): not back at {report.BACK:.0%} of {one.before}/s within one lease"
        for one in recoveries
        if one.back_after_seconds is None or one.back_after_seconds > options.lease
    ]
    fleet.store.close()
    counts |= {"repeated_calls": load.repeated, "deaths": sum(h.deaths for h in fleet.hands)}
    return _tell(options, fleet, problems, recoveries, counts)


async def _disturb(
    options: argparse.Namespace, fleet: Fleet, chance: random.Random
) -> list[report.Event]:
    events: list[report.Event] = []
    began = time.monotonic()
    while True:
        kinds = _schedule(options)
        if events or not options.quick:
            chance.shuffle(kinds)
        for kind in kinds:
            begun = time.time()
            what = await kind(fleet, chance)
            events.append(report.Event(kind.__name__, begun, time.time(), what))
            print(f"{time.monotonic() - began:7.1f} s  {kind.__name__:18} {what}", flush=True)
            await asyncio.sleep(fleet.lease_seconds + WINDOW_SECONDS)
            if options.seconds and time.monotonic() - began > options.seconds:
                return events
        if not options.seconds:
            return events


async def _all_ended(fleet: Fleet) -> list[str]:
    """Wait until every run is terminal."""
    until = time.monotonic() + END_SECONDS
    while True:
        with fleet.store.database.reading() as sql:
            left = int(sql.scalar(_ENDED))
        if not left:
            return []
        if time.monotonic() > until:
            return [f"{left} runs have not ended after {END_SECONDS:g} s"]
        await asyncio.sleep(0.2)


def _tell(
    options: argparse.Namespace,
    fleet: Fleet,
    problems: list[str],
    recoveries: list[report.Recovery],
    counts: dict[str, int],
) -> int:
    print(*report.table(recoveries), sep="\n")
    print(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
    if options.json:
        figures = {
            "seed": options.seed, "store": options.store, "workers": options.workers,
            "lease_seconds": options.lease, "parcels_per_second": options.rate, **counts,
            "problems": problems, "recoveries": report.as_json(recoveries),
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1))
    if problems:
        print(*fleet.errors(), sep="\n")
        print(f"chaos: FAILED, {len(problems)} problems, seed {options.seed}")
        print(*(f"  {problem[:600]}" for problem in problems[:20]), sep="\n")
        return 1
    print("chaos: 0 lost, 0 duplicated, every run terminal, every rule holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
