"""What can be seen afterwards: what was lost or done twice, and how fast the fleet came back.

The rate is read from the journal: every transition says when it was decided.  For each disturbance

    before      transitions/s in the seconds before it
    dip         the slowest second from its beginning to one lease after its end
    back after  seconds from its end until a second passes at 90 % of `before` or more
    recovery    transitions/s from one lease after its end, as a share of `before`

The load is steady, so what piles up meanwhile is added: a fleet that recovers does more than
before for a while, and then the same.  The last column counts from the beginning of the
disturbance to the end of the last window, with all that piled up.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from persistence.store import SqlStore
from tests.acceptance.chaos.fleet import Fleet
from tests.acceptance.chaos.machines import CALLS, LABEL_SEQ, PARCEL_SEQ, read_ledger

BACK = 0.9
WAKING_NS = 500_000_000
"""For so long after SIGCONT a call may be one that was already on its way when the worker froze."""


@dataclass(frozen=True)
class Event:
    """One disturbance: when it began and ended (seconds since the epoch), and what was done."""

    kind: str
    begun: float
    ended: float
    what: str


@dataclass(frozen=True)
class Recovery:
    """How the fleet came through one disturbance; rates in transitions/s."""

    kind: str
    what: str
    seconds: float
    before: float
    dip: float
    back_after_seconds: float | None
    after: float
    recovery: float
    with_backlog: float


class Rates:
    """Transitions/s over time, from the journal."""

    def __init__(self, store: SqlStore) -> None:
        with store.database.reading() as sql:
            rows = sql.all("SELECT at_ms / 100 AS tenth, count(*) AS n FROM turtles_transition "
                           "GROUP BY at_ms / 100")  # fmt: skip
        self._tenths = {int(row["tenth"]): int(row["n"]) for row in rows}

    def between(self, start: float, end: float) -> float:
        """The mean."""
        first, last = round(start * 10), round(end * 10)
        total = sum(self._tenths.get(tenth, 0) for tenth in range(first, last))
        return total / max(last - first, 1) * 10

    def recovery(self, event: Event, lease: float, window: float) -> Recovery:
        """How the fleet came through one disturbance."""
        before = self.between(event.begun - window, event.begun)
        starts = [
            event.begun + step / 10 for step in range(int((event.ended + lease - event.begun) * 10))
        ]
        backs = [
            step / 10
            for step in range(int((lease + window) * 10))
            if self.between(event.ended + step / 10, event.ended + step / 10 + 1) >= BACK * before
        ]
        after = self.between(event.ended + lease, event.ended + lease + window)
        whole = self.between(event.begun, event.ended + lease + window)
        return Recovery(
            kind=event.kind,
            what=event.what,
            seconds=round(event.ended - event.begun, 2),
            before=round(before, 1),
            dip=round(min((self.between(at, at + 1) for at in starts), default=before), 1),
            back_after_seconds=backs[0] if backs else None,
            after=round(after, 1),
            recovery=round(after / before, 3) if before else 0.0,
            with_backlog=round(whole / before, 3) if before else 0.0,
        )


def check(fleet: Fleet, accepted: dict[int, str]) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with what the fleet left behind, and the counts."""
    problems: list[str] = []
    store = fleet.store
    with store.database.reading() as sql:
        runs = sql.all("SELECT run_id, machine, status, state, seq, owner, parent_id, last_error "
                       "FROM turtles_run")  # fmt: skip
        entries = int(sql.scalar("SELECT count(*) FROM turtles_transition"))
    expected = {"Parcel": ("gone", PARCEL_SEQ), "Label": ("stuck", LABEL_SEQ)}
    for row in runs:
        if (row["state"], row["seq"]) != expected[row["machine"]] or row["status"] != "completed":
            problems.append(
                f"{row['machine']} {row['run_id']}: {row['status']} in {row['state']} at "
                f"{row['seq']}, owner {row['owner']}, {row['last_error']}"
            )
    parcels = {row["run_id"] for row in runs if row["machine"] == "Parcel"}
    labels = Counter(row["parent_id"] for row in runs if row["machine"] == "Label")
    if lost := set(accepted.values()) - parcels:
        problems.append(f"{len(lost)} accepted parcels lost: {sorted(lost)[:3]}")
    if more := parcels - set(accepted.values()):
        problems.append(f"{len(more)} parcels that nobody was told of: {sorted(more)[:3]}")
    if labels != Counter(parcels):
        problems.append(f"{labels.total()} labels for {len(parcels)} parcels")
    if entries != len(parcels) * (PARCEL_SEQ + LABEL_SEQ):
        problems.append(f"{entries} journal entries for {len(parcels)} parcels")
    calls = _check_calls(fleet, {row["run_id"]: row["machine"] for row in runs}, problems)
    inspector = store.inspector
    problems += [f"{one.rule} {one.run_id}: {one.problem}"
                 for one in (*inspector.findings(), *inspector.relations())]  # fmt: skip
    problems += [f"worker row left: {worker.worker_id}" for worker, _ in store.workers.all()]
    problems += fleet.traces()
    return problems, {"parcels": len(parcels), "runs": len(runs), "transitions": entries, **calls}


def _check_calls(fleet: Fleet, runs: dict[str, str], problems: list[str]) -> dict[str, int]:
    """Every call once; one that a frozen worker had on its way is told apart."""
    by_key = defaultdict(list)
    lines = read_ledger(fleet.ledger)
    for line in lines:
        by_key[line.key].append(line)
    stopped = {hand.number: hand.stopped for hand in fleet.hands}
    thawed = 0
    for key, made in by_key.items():
        for line in made[1:]:
            if any(begin <= line.at_ns <= end + WAKING_NS for begin, end in stopped[line.worker]):
                thawed += 1
            else:
                problems.append(f"{line.name} of {line.run_id} was made twice under {key}: {made}")
    made_for = Counter((made[0].run_id, made[0].name) for made in by_key.values())
    wanted = {(run, name) for run, machine in runs.items() for name in CALLS
              if (machine == "Label") == (name == "print")}  # fmt: skip
    if missing := wanted - set(made_for):
        problems.append(f"{len(missing)} calls never made: {sorted(missing)[:3]}")
    if other := [one for one, count in made_for.items() if count > 1 or one not in wanted]:
        problems.append(f"{len(other)} calls under a second key: {sorted(other)[:3]}")
    return {"calls": len(by_key), "calls_of_the_thawed": thawed}


def table(recoveries: Sequence[Recovery]) -> list[str]:
    """One line for each kind of disturbance, medians over its rounds."""
    head = (f"{'disturbance':18} {'n':>2} {'for s':>6} {'before/s':>9} {'dip/s':>7} {'back s':>7} "
            f"{'after/s':>8} {'recovery':>8} {'with backlog':>12}")  # fmt: skip
    lines = [head]
    for kind in dict.fromkeys(one.kind for one in recoveries):
        some = [one for one in recoveries if one.kind == kind]

        def middle(name: str, some: list[Recovery] = some) -> float:
            return statistics.median(getattr(one, name) or 0.0 for one in some)

        never = any(one.back_after_seconds is None for one in some)
        back = "never" if never else f"{max(one.back_after_seconds or 0 for one in some):.1f}"
        lines.append(
            f"{kind:18} {len(some):>2} {middle('seconds'):>6.1f} {middle('before'):>9.1f} "
            f"{middle('dip'):>7.1f} {back:>7} {middle('after'):>8.1f} "
            f"{middle('recovery'):>8.0%} {middle('with_backlog'):>12.0%}"
        )
    return lines


def as_json(recoveries: Sequence[Recovery]) -> list[dict[str, Any]]:
    """The same, round by round."""
    return [asdict(one) for one in recoveries]
