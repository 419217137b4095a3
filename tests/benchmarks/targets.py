"""The targets of issue 6, each judged by what was measured in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.figures import best, median, number, ratio, verdict

Results = dict[str, dict[str, dict[str, Any]]]
DATABASES = (("sqlite", "SQLite"), ("postgresql", "PostgreSQL"))


@dataclass(frozen=True)
class Target:
    """One line of the summary."""

    what: str
    measured: str
    against: str
    wanted: str
    reached: str

    def cells(self) -> tuple[str, ...]:
        """As a row."""
        return self.what, self.measured, self.against, self.wanted, self.reached


class Judge:
    """Figures out of results, by workload and row."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def value(self, workload: str, row: str, name: str) -> float | None:
        """A median, None where nothing was measured."""
        found = self.results.get(workload, {}).get(row)
        return median(found["samples"], name) if found else None

    def peers(self, workload: str, name: str) -> dict[str, float | None]:
        """That figure of every peer, by label."""
        rows = self.results.get(workload, {})
        return {
            row["label"]: median(row["samples"], name)
            for row in rows.values()
            if row["kind"] == "peer"
        }

    def ours_best(self, database: str) -> tuple[str, float] | None:
        """Our W1 at the number at once where it is fastest, as the peers have it."""
        rows = [f"turtles-{database}-{at_once}" for at_once in (16, 200, 1_000)]
        return best({row: self.value("w1", row, "steps_per_second") for row in rows}, least=False)

    def all(self) -> Iterator[Target]:
        """Every target, by workload and database."""
        for database, name in DATABASES:
            yield from self._w1(database, name)
        for database, name in DATABASES:
            yield from self._w2(database, name)
        for database, name in DATABASES:
            yield from self._w3(database, name)
        for database, name in DATABASES:
            yield from self._w4(database, name)
        for database, name in DATABASES:
            yield from self._w5(database, name)
        yield from self._w6()
        for database, name in DATABASES:
            yield from self._w7(database, name)

    def _w1(self, database: str, name: str) -> Iterator[Target]:
        what = f"W1 {name}, durable transitions/s"
        found = self.ours_best(database)
        ours = found[1] if found else None
        shown = number(ours, "/s")
        if found:
            shown += f" (fastest of 16, 200, 1,000 at once: {int(found[0].rsplit('-', 1)[1]):,})"
        times, dbos_times = (25, 60) if database == "sqlite" else (12, 40)
        peer = best(self.peers("w1", "steps_per_second"), least=False)
        yield self._times(what, shown, ratio(ours, peer and peer[1]), peer, "/s", times)
        rival = self.value("w1", f"dbos-{database}", "steps_per_second")
        known = ("DBOS on the same database", rival) if rival else None
        yield self._times(what, shown, ratio(ours, rival), known, "/s", dbos_times)
        batched = self.value("w1", f"turtles-{database}-200", "steps_per_second")
        for row, words in (("-driver", "over the driver"), ("-core", "through SQLAlchemy Core")):
            bare = self.value("w1", f"raw-{database}{row}", "steps_per_second")
            share = ratio(batched, bare)
            yield Target(
                f"{what}, 200 at once",
                number(batched, "/s"),
                f"{number(share)} of the bare group commit {words} ({number(bare, '/s')})",
                "0.40",
                verdict(share, 0.40, at_most=False),
            )

    def _times(
        self, what: str, shown: str, found: float | None, peer: tuple[str, float] | None,
        unit: str, wanted: float,
    ) -> Target:  # fmt: skip
        against = f"{number(found)} x {peer[0]} ({number(peer[1], unit)})" if peer else "no peer"
        return Target(what, shown, against, f"{wanted:g} x", verdict(found, wanted, at_most=False))

    def _w2(self, database: str, name: str) -> Iterator[Target]:
        what = f"W2 {name}, p50 of ten steps"
        ours = self.value("w2", f"turtles-{database}", "p50_ms")
        bare = self.value("w2", f"raw-{database}", "p50_ms")
        most, faster = (2.0, 3.5) if database == "sqlite" else (1.6, 1.5)
        found = ratio(ours, bare)
        yield Target(
            what, number(ours, "ms"), f"{number(found)} x the raw commits ({number(bare, 'ms')})",
            f"at most {most:g} x", verdict(found, most, at_most=True),
        )  # fmt: skip
        peer = best(self.peers("w2", "p50_ms"), least=True)
        times = ratio(peer and peer[1], ours)
        against = faster_than(peer, times, "ms")
        yield Target(
            what,
            number(ours, "ms"),
            against,
            f"{faster:g} x",
            verdict(times, faster, at_most=False),
        )

    def _w3(self, database: str, name: str) -> Iterator[Target]:
        ours = self.value("w3", f"turtles-{database}", "seconds")
        what = f"W3 {name}, 1,000 complete after SIGKILL"
        yield Target(what, number(ours, "s"), "-", "under 1 s", verdict(ours, 1.0, at_most=True))
        rows = self.results.get("w3", {})
        asked = {
            int(sample.get("runs", 0))
            for row in rows.values()
            if row["kind"] == "peer"
            for sample in row["samples"]
        } - {0}
        peer = best(self.peers("w3", "seconds"), least=True)
        times = ratio(peer and peer[1], ours)
        fewer = f", with {min(asked):,} runs only" if asked and min(asked) < 1_000 else ""
        against = faster_than(peer, times, "s", fewer)
        yield Target(what, number(ours, "s"), against, "5 x", verdict(times, 5, at_most=False))

    def _w4(self, database: str, name: str) -> Iterator[Target]:
        for row in self.results.get("w4", {}):
            if not row.startswith(f"turtles-{database}-"):
                continue
            finished = int(row.rsplit("-", 1)[1])
            bound = 1.1 if finished <= 100_000 else 1.2
            found = self.value("w4", row, "ratio")
            full, empty = (self.value("w4", row, key) for key in ("p50_ms", "empty_p50_ms"))
            yield Target(
                f"W4 {name}, latency with {finished:,} finished", number(full, "ms"),
                f"{number(found)} x an empty store ({number(empty, 'ms')})",
                f"at most {bound:g} x", verdict(found, bound, at_most=True),
            )  # fmt: skip
            size = self.value("w4", row, "bytes_per_finished")
            yield Target(
                f"W4 {name}, database per finished run", number(size, "bytes"), "-",
                "at most 2,500 bytes", verdict(size, 2_500, at_most=True),
            )  # fmt: skip

    def _w5(self, database: str, name: str) -> Iterator[Target]:
        for row in self.results.get("w5", {}):
            if not row.startswith(f"turtles-{database}-"):
                continue
            waiting = int(row.rsplit("-", 1)[1])
            what = f"W5 {name}, {waiting:,} waiting"
            for key, words, bound, unit, wanted in (
                ("bytes_per_waiting", "memory each", 1_000, "bytes", "under 1 kB"),
                ("threads_per_waiting", "threads each", 0, "", "0"),
                ("idle_cores", "cores while idle", 0.01, "", "under 0.01"),
            ):
                found = self.value("w5", row, key)
                yield Target(
                    f"{what}: {words}", number(found, unit), "-", wanted,
                    verdict(found, bound, at_most=True),
                )  # fmt: skip
            if waiting == 10_000:
                found = self.value("w5", row, "started_seconds")
                through = self.value("w5", row, "waiting_seconds")
                yield Target(
                    f"{what}: started", number(found, "s"),
                    f"through five steps to their wait: {number(through, 's')}", "under 3 s",
                    verdict(found, 3.0, at_most=True),
                )  # fmt: skip

    def _w6(self) -> Iterator[Target]:
        one, two, four = (
            self.value("w6", f"turtles-postgresql-{count}", "steps_per_second")
            for count in (1, 2, 4)
        )
        found = ratio(two, one)
        yield Target(
            "W6 PostgreSQL, two workers", number(two, "/s"),
            f"{number(found)} x one ({number(one, '/s')}); four: {number(four, '/s')}", "1.6 x",
            verdict(found, 1.6, at_most=False),
        )  # fmt: skip

    def _w7(self, database: str, name: str) -> Iterator[Target]:
        row = f"turtles-{database}"
        found, steps = self.value("w7", row, "ratio"), self.value("w7", row, "steps_before")
        old, new = (self.value("w7", row, key) for key in ("step_ms", "fresh_step_ms"))
        yield Target(
            f"W7 {name}, a step after {number(steps)} others", number(old, "ms"),
            f"{number(found)} x a fresh run's ({number(new, 'ms')})", "at most 1.1 x",
            verdict(found, 1.1, at_most=True),
        )  # fmt: skip


def faster_than(
    peer: tuple[str, float] | None, times: float | None, unit: str, remark: str = ""
) -> str:
    """Against whom, in words."""
    if peer is None:
        return "no peer"
    return f"{number(times)} x faster than {peer[0]} ({number(peer[1], unit)}{remark})"
