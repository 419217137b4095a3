"""The mutants of the repository's machines, against lint, exploration and the machines' own tests.

::

    collect the tests once ─► run each once, watching what of the machines it touches
      └► for each mutant, in a forked copy: the tests that touch what was changed, likely killers
         first, until one fails (most take milliseconds) ─► lint
           └► for those that are left: exploration

In the copy the mutant's fields are put into the compiled table that everybody holds already, so it
does not matter where a test got it from.  Left out are tests that hold the table against its own
class (`library_agrees`): the class was not changed, so they would notice every mutant.

A test touches what it looks up in the table: the edges of a state and event, or a state.  One that
does not touch what was changed, or what calls it, cannot tell.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields
from dataclasses import replace as replaced
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.errors import InvalidArgument

from engine.checks import guard_names
from engine.contracts import Clause
from engine.definition import Machine, actions_of, edges_of, guards_of
from engine.table import Edge, Table, compile_table
from engine.verification.mutants import (
    Explored,
    Fate,
    Linted,
    Mutant,
    MutationReport,
    fate,
    mutants_of,
)
from engine.verification.mutating.code import parts_of
from engine.verification.mutating.structure import clauses_of, with_clause
from machines.app import MACHINES
from persistence.store import open_store
from tests.verification.mutants.forks import Result, forked
from tests.verification.mutants.survivors import EQUIVALENT

ROOT = Path(__file__).parents[3]
FLOWS = {one.__name__: one.__module__.rpartition(".")[2] for one in MACHINES}
TESTS = (
    *(f"tests/machines/flows/test_{file}.py" for file in dict.fromkeys(FLOWS.values())),
    "tests/machines/decisions",
    "tests/machines/test_machines.py",
    "tests/machines/test_random_sequences.py",
)
ARGUMENTS = ("-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "30",
             "-W", "ignore:Module already imported")  # fmt: skip
EVERYWHERE = "everywhere"


class BaselineError(Exception):
    """The tests fail without any mutant."""


@dataclass
class Trace:
    """What one test takes, and what of each machine it touches."""

    seconds: float = 0.0
    touched: dict[str, set[str]] = field(default_factory=dict)
    failed: str = ""


@dataclass
class Options:
    """What to do: which machines, how many mutants of them, how."""

    machines: Sequence[type[Machine[Any]]] = MACHINES
    sample: int | None = None
    kinds: Sequence[str] | None = None
    seed: int = 0
    jobs: int = 2
    timeout_seconds: float = 60.0
    tolerant: bool = False
    explore_seconds: float = 0.0
    each: Callable[[Fate], None] = lambda fate: None


class Campaign:
    """A pytest plugin that runs the collected tests against mutants instead of running them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.reports: list[MutationReport] = []
        self.error: Exception | None = None
        self.items: list[pytest.Item] = []
        self.traces: list[Trace] = []
        self.unread: list[str] = []
        self._failure = ""
        self._tables = {m.__name__: compile_table(m) for m in options.machines}

    # -- pytest ---------------------------------------------------------------------------------

    def pytest_sessionstart(self) -> None:
        """The same examples every time, and none made smaller: a failure is enough."""
        settings.register_profile(
            "mutants",
            _ordinary(),
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
        )
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of running the tests."""
        self.items = [i for i in session.items if "library_agrees" not in i.fixturenames]  # type: ignore[attr-defined]
        try:
            if self.unread:
                raise BaselineError("tests cannot be collected:\n" + "\n".join(self.unread))
            self._run()
        except Exception as error:  # noqa: BLE001 - handed to the caller of pytest
            self.error = error
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file of tests that cannot be read: survivors would prove nothing."""
        if report.failed:
            self.unread.append(f"  {report.nodeid}: {str(report.longrepr).strip()[-300:]}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember that a test failed, and how."""
        if report.failed and not self._failure:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(crash.message).splitlines()[0] if crash else str(report.longrepr)[-200:]
            self._failure = message[:200]

    def _outcome(self, item: pytest.Item) -> str:
        """Run one test; how it failed, or nothing."""
        self._failure = ""
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self._failure

    # -- the campaign ---------------------------------------------------------------------------

    def _run(self) -> None:
        # first of all, while the source is what was imported
        work = [
            (t, m) for t in self._tables.values() for m in mutants_of(t, kinds=self.options.kinds)
        ]
        if self.options.sample is not None and self.options.sample < len(work):
            chance = random.Random(self.options.seed)
            chosen = set(chance.sample(range(len(work)), self.options.sample))
            work = [one for at, one in enumerate(work) if at in chosen]
        self._watch()
        fates: dict[str, list[Fate]] = {name: [] for name in self._tables}
        noticed: dict[str, set[str]] = {name: set() for name in self._tables}
        seconds = dict.fromkeys(self._tables, 0.0)
        order = _Order(self)
        for table, mutant in work:
            why = EQUIVALENT.get((table.name, mutant.name))
            if why:
                fates[table.name].append(fate(table.name, mutant, "equivalent", why))
        left: list[tuple[Table, Mutant]] = []
        for (table, mutant), result in forked(
            self._pieces(work, order),
            jobs=self.options.jobs,
            timeout_seconds=self.options.timeout_seconds,
        ):
            order.learn(table, mutant, result)
            noticed[table.name] |= set(result.get("noticed", ()))
            seconds[table.name] += result.get("seconds", 0.0)
            if result.get("by") == "survived" and self.options.explore_seconds:
                left.append((table, mutant))
                continue
            fates[table.name].append(_fate(table, mutant, result))
            self.options.each(fates[table.name][-1])
        for table, found in self._explored(left):
            fates[table.name].append(found)
            self.options.each(found)
        self.reports = [
            MutationReport(
                machine=name,
                fates=tuple(fates[name]),
                idle=self._idle(self._tables[name], noticed[name]),
                took_seconds=seconds[name],
            )
            for name in self._tables
        ]

    def _pieces(
        self, work: list[tuple[Table, Mutant]], order: _Order
    ) -> Iterator[tuple[tuple[Table, Mutant], Callable[[], Result]]]:
        linted = {name: Linted(table, MACHINES) for name, table in self._tables.items()}
        for table, mutant in work:
            if (table.name, mutant.name) not in EQUIVALENT:
                yield (table, mutant), self._work(table, mutant, linted[table.name], order)

    def _explored(self, left: list[tuple[Table, Mutant]]) -> Iterator[tuple[Table, Fate]]:
        """What exploration says of the mutants that the tests left, a machine at a time."""
        tables = {table.name: table for table, _ in left}
        pieces = (
            (table, self._exploring(table, [m for t, m in left if t is table]))
            for table in tables.values()
        )
        limit = 60 + 30 * self.options.explore_seconds * max(len(left), 1)
        for table, result in forked(pieces, jobs=self.options.jobs, timeout_seconds=limit):
            for other, mutant in left:
                if other is table:
                    told = result.get(mutant.name)
                    by: Any = "exploration" if told else "survived"
                    yield table, fate(table.name, mutant, by, told or "")

    def _exploring(self, table: Table, mutants: list[Mutant]) -> Callable[[], Result]:
        def work() -> Result:
            _import_environments()
            explored = Explored(table, lambda: open_store("sqlite://"), known=MACHINES,
                                budget_seconds=self.options.explore_seconds)  # fmt: skip
            return {mutant.name: explored.finds(mutant) for mutant in mutants}

        return work

    def _idle(self, table: Table, noticed: set[str]) -> tuple[str, ...]:
        if self.options.sample is not None:
            return ()
        strict = [c.name for c in clauses_of(table) if c.kind != "requires"]
        return tuple(name for name in strict if name not in noticed)

    def _work(
        self, table: Table, mutant: Mutant, linted: Linted, order: _Order
    ) -> Callable[[], Result]:
        chosen = order.of(table, mutant)

        def work() -> Result:
            began = time.perf_counter()
            noticed: set[str] = set()
            result = self._judged(table, mutant, linted, chosen, noticed)
            return result | {
                "noticed": sorted(noticed - {mutant.subject}),
                "seconds": time.perf_counter() - began,
            }

        return work

    def _judged(
        self,
        table: Table,
        mutant: Mutant,
        linted: Linted,
        chosen: list[int],
        noticed: set[str],
    ) -> Result:
        install(table, _telling(mutant.table, noticed))
        for at in chosen:
            failure = self._outcome(self.items[at])
            if failure:
                return {"by": "tests", "evidence": f"{self.items[at].nodeid}: {failure}", "at": at}
        found = linted.finds(mutant)
        if found is not None:
            return {"by": "lint", "evidence": found}
        return {"by": "survived"}

    # -- what the tests touch -------------------------------------------------------------------

    def _watch(self) -> None:
        count = len(self.items)
        pieces = ((at, self._watched(range(at, count, 2 * self.options.jobs)))
                  for at in range(2 * self.options.jobs))  # fmt: skip
        self.traces = [Trace() for _ in self.items]
        for _, result in forked(pieces, jobs=self.options.jobs, timeout_seconds=600):
            if "traces" not in result:
                raise BaselineError(f"the tests could not be run: {result}")
            for at, seconds, touched, failed in result["traces"]:
                sets = {name: set(keys) for name, keys in touched.items()}
                self.traces[at] = Trace(seconds, sets, failed)
        failed = [
            f"  {item.nodeid}: {trace.failed}"
            for item, trace in zip(self.items, self.traces, strict=True)
            if trace.failed
        ]
        if failed and not self.options.tolerant:
            raise BaselineError("tests fail without any mutant:\n" + "\n".join(failed[:10]))

    def _watched(self, which: range) -> Callable[[], Result]:
        def work() -> Result:
            found = []
            for at in which:
                touched: dict[str, set[str]] = {name: set() for name in self._tables}
                for name, table in self._tables.items():
                    install(table, _watching(table, touched[name]))
                began = time.perf_counter()
                failed = self._outcome(self.items[at])
                seconds = time.perf_counter() - began
                told = {name: sorted(keys) for name, keys in touched.items() if keys}
                found.append((at, seconds, told, failed))
            return {"traces": found}

        return work


class _Order:
    """Which tests to run against a mutant, and in which order."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self._kills: Counter[tuple[str, int]] = Counter()
        self._by_subject: Counter[tuple[str, str, int]] = Counter()

    def of(self, table: Table, mutant: Mutant) -> list[int]:
        """Numbers of tests."""
        keys = touches(table, mutant)
        found = [
            at
            for at, trace in enumerate(self._campaign.traces)
            if not trace.failed and self._may_see(table, trace.touched.get(table.name), keys, at)
        ]
        return sorted(found, key=lambda at: self._cost(table, mutant, at))

    def learn(self, table: Table, mutant: Mutant, result: Result) -> None:
        """Remember which test killed a mutant."""
        if result.get("by") == "tests":
            self._kills[table.name, result["at"]] += 1
            self._by_subject[table.name, mutant.subject, result["at"]] += 1

    def _may_see(self, table: Table, touched: set[str] | None, keys: Any, at: int) -> bool:
        if keys is None:  # output, helpers, invariants: asked for without a look at the table too
            return bool(touched) or self._is_own(table, at)
        return bool(keys & (touched or set()))

    def _is_own(self, table: Table, at: int) -> bool:
        own = (FLOWS.get(table.name, "-"), f"decisions/test_{table.name.lower()}.py")
        path = str(self._campaign.items[at].path)
        return any(one in path or one in path.replace("_", "") for one in own)

    def _cost(self, table: Table, mutant: Mutant, at: int) -> float:
        kills = self._kills[table.name, at]
        kills += 10 * self._by_subject[table.name, mutant.subject, at]
        seconds = self._campaign.traces[at].seconds + 0.005
        return seconds / (1 + kills) * (1 if self._is_own(table, at) else 3)


def touches(table: Table, mutant: Mutant) -> set[str] | None:
    """What a test has to touch to see a mutant, any of these; None: nothing in particular."""
    if mutant.subject in {part.function.__name__ for part in parts_of(table.machine)}:
        return _users(table.machine).get(mutant.subject)
    changed = mutant.table
    edges = {key for key in {*table.edges, *changed.edges}
             if table.edges.get(key) != changed.edges.get(key)}  # fmt: skip
    places = {n for n, place in table.places.items() if place != changed.places[n]}
    found = {f"{state} {event}" for state, event in edges} | {f"in {name}" for name in places}
    return found | {EVERYWHERE} if found else None


@cache
def _users(machine: type[Machine[Any]]) -> dict[str, set[str] | None]:
    """For each function, the edges and states on whose behalf the engine calls it."""
    table = compile_table(machine)
    found: dict[str, set[str] | None] = {}
    for part in parts_of(machine):
        name = part.function.__name__
        keys = {f"{e.source} {e.event}" for e in table.all_edges() if name in _of_edge(table, e)}
        keys |= {f"in {state.id}" for state in machine.states if name in _of_state(state)}
        found[name] = keys | {EVERYWHERE} if keys else None  # helpers, output, invariants: anywhere
    return found


def _of_edge(table: Table, edge: Edge) -> set[str]:
    transition = next(
        t for t, e in zip(_flat(table.machine), table.all_edges(), strict=True) if e == edge
    )
    clauses = {clause.name for clause in (*edge.requires, *edge.ensures)}
    hooks = {f"on_{edge.event}", f"on_exit_{edge.source}", f"on_enter_{edge.target}"}
    guards = {name for text, _ in guards_of(transition) for name in guard_names(text)}
    return clauses | hooks | guards | set(actions_of(transition))


def _flat(machine: type[Machine[Any]]) -> list[Any]:
    return [t for t in edges_of(machine) for _ in t.events]


def _of_state(state: Any) -> set[str]:
    options = (getattr(state.turtles, k) for k in ("timeout", "every", "child", "invariant"))
    return {one if isinstance(one, str) else getattr(one, "__name__", "") for one in options}


def install(table: Table, mutant: Table) -> None:
    """Put the fields of one table into another, for everybody who holds it."""
    for one in fields(table):
        object.__setattr__(table, one.name, getattr(mutant, one.name))


def _telling(table: Table, noticed: set[str]) -> Table:
    """The table with postconditions and invariants that say when they do not hold."""

    def telling(clause: Clause) -> Clause:
        def call(values: Any) -> bool:
            try:
                holds = bool(clause.call(values))
            except Exception:
                noticed.add(clause.name)
                raise
            if not holds:
                noticed.add(clause.name)
            return holds

        return replaced(clause, call=call)

    for clause in clauses_of(table):
        if clause.kind != "requires":
            table = with_clause(table, clause, telling(clause))
    return table


class _Edges(dict[Any, Any]):
    def __init__(self, some: Any, touched: set[str]) -> None:
        super().__init__(some)
        self._touched = touched

    def get(self, key: Any, default: Any = None) -> Any:
        self._touched.add(f"{key[0]} {key[1]}")
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self._touched.add(f"{key[0]} {key[1]}")
        return super().__getitem__(key)

    def values(self) -> Any:
        self._touched.add(EVERYWHERE)
        return super().values()

    def items(self) -> Any:
        self._touched.add(EVERYWHERE)
        return super().items()


class _Places(_Edges):
    def get(self, key: Any, default: Any = None) -> Any:
        self._touched.add(f"in {key}")
        return dict.get(self, key, default)

    def __getitem__(self, key: Any) -> Any:
        self._touched.add(f"in {key}")
        return dict.__getitem__(self, key)


def _watching(table: Table, touched: set[str]) -> Table:
    edges, places = dict.items(table.edges), dict.items(table.places)  # type: ignore[arg-type]
    return replaced(table, edges=_Edges(edges, touched), places=_Places(places, touched))


def _fate(table: Table, mutant: Mutant, result: Result) -> Fate:
    if "by" not in result:
        told = "the tests died"
        if "timeout" in result:
            told = f"did not end in {result['timeout']:g} s"
        return fate(table.name, mutant, "tests", told)
    return fate(table.name, mutant, result["by"], result.get("evidence", ""))


def _import_environments() -> None:
    """Whatever is said of the machines' outsides: it is found once it is imported."""
    for module in pkgutil.iter_modules([str(ROOT / "machines" / "environments")]):
        importlib.import_module(f"machines.environments.{module.name}")


def _ordinary() -> settings:
    """As many examples as usual, whatever the profile; tests from elsewhere have none."""
    try:
        return settings.get_profile("dev")
    except InvalidArgument:
        return settings()


def run(options: Options, tests: Sequence[str] = TESTS) -> list[MutationReport]:
    """Run the campaign; one report for each machine.

    Raises:
        BaselineError: the tests fail, or cannot be collected, without any mutant.
    """
    campaign = Campaign(options)
    paths = [str(ROOT / test) for test in tests]
    arguments = [*ARGUMENTS, "-c", str(ROOT / "pyproject.toml"), *paths]
    with redirect_stdout(io.StringIO()) as said:
        code = pytest.main(arguments, plugins=[campaign])
    if campaign.error is not None:
        raise campaign.error
    if not campaign.reports:
        raise BaselineError(f"the tests could not be collected (pytest ended with {code}):\n"
                            + said.getvalue()[-2_000:])  # fmt: skip
    return campaign.reports
