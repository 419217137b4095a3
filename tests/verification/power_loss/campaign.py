"""Power losses by the thousand: record a program once, lose the power after each of its operations.

::

    record     run the program over an empty directory (generation 0), or over what a loss of the
               generation before left: then its recovery is what the power is lost in
    baseline   after every promise, what the store holds if nothing is lost; each promise is kept
    sweep      after every file operation, for several seeds: let the power go, open what is left
               with the ordinary store, and look

After a loss at operation k, with n promises made by then, the store must

- open, pass `PRAGMA integrity_check`, have no findings, and every journal must fold to its run;
- hold exactly what it held after promise n, or after promise n + 1, whose transaction was under
  way: every row of every table.  An earlier state means that acknowledged commits were lost, and
  which; any other state means that a transaction was kept in part;
- know every effect that the ledger had seen by k, with its attempt counted;
- now and then, be good enough for the program to go on to its end, with everything in the ledger
  exactly once.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import TurtlesError
from engine.ids import idempotency_key
from engine.journal import fold
from engine.ports import Query
from engine.testing import ManualClock
from persistence.database import Synchronous
from persistence.store import SqlStore, open_store
from persistence.tables import metadata
from tests.verification.power_loss.disk import Disk, Operation
from tests.verification.power_loss.recorder import recorded
from tests.verification.power_loss.workload import Book, Ledger, Program, Promise

FILE = "runs.db"
GENERATIONS = 3
SEEDS_PER_POINT = 2
GO_ON_EVERY = 100
TALLY_EVERY = 250
Image = Mapping[str, bytes]
_TABLES = (*sorted(metadata.tables), "alembic_version", "sqlite_sequence")


@dataclass(frozen=True)
class Seen:
    """What a store held when it was opened, and what was wrong with it."""

    problems: tuple[str, ...]
    content: str
    """A digest of every row of every table."""
    effects: frozenset[str]
    """The keys of the effects of which an attempt was counted."""


@dataclass(frozen=True)
class Loss:
    """One power loss that ended badly."""

    where: str
    lost: tuple[str, ...]
    """The acknowledged transactions that are gone, oldest first."""
    problems: tuple[str, ...]
    image: Image = field(repr=False, default_factory=dict)


@dataclass
class Tally:
    """How many power losses, and what came of them."""

    losses: int = 0
    images: int = 0
    """Different directories among them."""
    points: int = 0
    """Operations after which the power was lost."""
    operations: int = 0
    """Operations recorded."""
    promises: int = 0
    went_on: int = 0
    """Losses after which the program was run to its end."""
    lost: int = 0
    """Acknowledged commits lost, in all losses together."""
    bad: list[Loss] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        for name in ("losses", "images", "points", "operations", "promises", "went_on", "lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bad += other.bad


@dataclass(frozen=True)
class Take:
    """A recorded program: where it began, what it did to the disk, and what it was promised."""

    image: Image
    operations: list[Operation]
    promises: list[Promise]
    done: list[tuple[int, str]]
    """The ledger: what was done after how many operations."""
    ended_ms: int


class Bench:
    """A directory in memory, in which databases are made, broken and looked at."""

    def __init__(
        self, directory: Path, *, synchronous: Synchronous, checkpoint_pages: int | None
    ) -> None:
        self.directory = directory
        self._synchronous = synchronous
        self._checkpoint_pages = checkpoint_pages
        self._known: dict[str, Seen] = {}
        self._sound: dict[str, Seen] = {}

    @property
    def url(self) -> str:
        """The database."""
        return f"sqlite:///{self.directory / FILE}"

    @property
    def images(self) -> int:
        """How many different directories have been looked at."""
        return len(self._known)

    def lay(self, image: Image) -> None:
        """Make the directory hold these files and no others."""
        for path in self.directory.iterdir():
            path.unlink()
        for name, content in image.items():
            (self.directory / name).write_bytes(content)

    def record(self, image: Image, done: list[tuple[int, str]], clock_ms: int, seed: str) -> Take:
        """Run the program from this image on, and write down what it does to the disk."""
        self.lay(image)
        image = _without_memory(image)
        with recorded(self.directory, Disk(image).numbers) as recording:
            book = Book(lambda: len(recording.operations))
            ledger, clock = Ledger(book.now, done), ManualClock(clock_ms)
            self._play(book, ledger, clock, seed)
        written = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        take = Take(image, recording.operations, book.promises, ledger.done, clock.now_ms())
        seen = Disk(image).apply_all(take.operations).as_seen()
        if _without_memory(written) != seen:
            raise AssertionError("the recording is incomplete: the files differ from the disk")
        return take

    def go_on(self, image: Image, take: Take, point: int, seed: str) -> tuple[str, ...]:
        """Run the program to its end on what a loss left; what went wrong."""
        self.lay(image)
        ledger = Ledger(lambda: 0, [(0, key) for at, key in take.done if at <= point])
        try:
            self._play(Book(lambda: 0), ledger, ManualClock(take.ended_ms), seed)
        except (AssertionError, TurtlesError) as error:
            return (f"the program could not go on: {error}",)
        return ()

    def _play(self, book: Book, ledger: Ledger, clock: ManualClock, seed: str) -> None:
        program = Program(
            self.directory / FILE,
            synchronous=self._synchronous,
            book=book,
            ledger=ledger,
            clock=clock,
            chance=random.Random(seed),
            checkpoint_pages=self._checkpoint_pages,
        )
        asyncio.run(program.run(orders=4))

    def look(self, image: Image) -> Seen:
        """Open what is left with the ordinary store, and see what it holds.

        Equal images are looked at once, and the rules that are about rows are asked once for equal
        rows; whether the indexes agree with those is what `integrity_check` says of each image.
        """
        name = _digest_of_image(image)
        if name not in self._known:
            self.lay(image)
            self._known[name] = self._opened()
        return self._known[name]

    def _opened(self) -> Seen:
        try:
            store = open_store(self.url, synchronous=self._synchronous)
        except TurtlesError as error:
            return Seen((f"it cannot be opened: {error}",), "", frozenset())
        try:
            integrity, content = _integrity(store), _content(store)
            if content not in self._sound:
                self._sound[content] = Seen(tuple(_problems(store)), content, _attempted(store))
            sound = self._sound[content]
            return Seen((*integrity, *sound.problems), content, sound.effects)
        except (TurtlesError, sqlite3.Error) as error:
            return Seen((f"it cannot be read: {error}",), "", frozenset())
        finally:
            store.close()

    def broken_promises(self, image: Image, promises: list[Promise]) -> list[str]:
        """Which of these promises, the latest, a store with nothing lost does not keep."""
        self.lay(image)
        store = open_store(self.url, synchronous=self._synchronous)
        try:
            return [one.label for one in promises if not one.kept(store)]
        finally:
            store.close()


def _problems(store: SqlStore) -> Iterator[str]:
    yield from (f"finding: {one.rule} {one.problem}" for one in store.inspector.findings())
    for stored in store.runs.select(Query(limit=1_000)):
        run = stored.run
        try:
            folded = fold(store.journal.read(run.run_id))
        except TurtlesError as error:
            yield str(error)
            continue
        if (folded.seq, folded.state, folded.context) != (run.seq, run.state, run.context):
            yield f"journal of {run.run_id} folds to {folded.state} at {folded.seq}, not to the run"


def _integrity(store: SqlStore) -> tuple[str, ...]:
    answers = _rows(store, "PRAGMA integrity_check")
    return tuple(f"integrity: {answer}" for (answer,) in answers if answer != "ok")


def _content(store: SqlStore) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for table in _TABLES:
        digest.update(repr((table, _rows(store, f"SELECT * FROM {table}"))).encode())  # noqa: S608
    return digest.hexdigest()


def _rows(store: SqlStore, query: str) -> list[tuple[Any, ...]]:
    """The answer of the driver itself, in its own order; a thousand of these cost much."""
    connection = store.database.sa.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(query)
        rows = [tuple(row) for row in cursor.fetchall()]
        cursor.close()
        return rows
    finally:
        connection.close()


def _attempted(store: SqlStore) -> frozenset[str]:
    with store.database.reading() as sql:
        rows = sql.all("SELECT run_id, seq, name FROM turtles_effect WHERE calls > 0")
    return frozenset(idempotency_key(row["run_id"], row["seq"], row["name"]) for row in rows)


def _without_memory(image: Image) -> Image:
    """The files that SQLite writes to; its shared memory is only mapped."""
    return {name: data for name, data in image.items() if not name.endswith("-shm")}


def _digest_of_image(image: Image) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, content in sorted(image.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


class Sweep:
    """Every point of one take.

    Raises:
        AssertionError: without any loss a promise is not kept; then nothing can be concluded.
    """

    def __init__(self, bench: Bench, take: Take, where: str) -> None:
        self.bench, self.take, self.where = bench, take, where
        self.next: tuple[int, Image] = (0, take.image)
        """A point, and what was left there: from this the next generation goes on."""
        self._contents = [bench.look(take.image).content, *self._baseline()]

    def _baseline(self) -> Iterator[str]:
        disk, at = Disk(self.take.image), 0
        promises = self.take.promises
        for number, promise in enumerate(promises):
            disk.apply_all(self.take.operations[at : promise.operations])
            at = promise.operations
            image = disk.as_seen()
            seen = self.bench.look(image)
            wrong = [*seen.problems, *self.bench.broken_promises(image, [promise])]
            if wrong:
                where = f"{self.where}, promise {number + 1} ({promise.label})"
                raise AssertionError(f"{where}: broken without any power loss: {wrong}")
            yield seen.content

    def losses(self, points: list[int], chance_seed: str) -> Iterator[tuple[int, Image]]:
        """What is left after a loss at each of these points, which must not decrease."""
        disk, at = Disk(self.take.image), 0
        for number, point in enumerate(points):
            disk.apply_all(self.take.operations[at:point])
            at = point
            chance = random.Random(f"{chance_seed}/{point}/{number}")
            image = disk.after_loss(chance)
            if chance.random() < 0.25:
                # The shared memory is a file too, with anything in it.
                image[f"{FILE}-shm"] = random.Random(chance.randrange(4)).randbytes(32_768)
            yield point, image

    def judge(self, point: int, image: Image) -> Loss | None:
        """Whether this is what may be left at this point."""
        seen = self.bench.look(image)
        problems = list(seen.problems)
        made = sum(promise.operations <= point for promise in self.take.promises)
        lost: list[str] = []
        if not problems and seen.content not in self._contents[made : made + 2]:
            earlier = [n for n in range(made) if self._contents[n] == seen.content]
            if earlier:
                lost = [one.label for one in self.take.promises[earlier[-1] : made]]
            else:
                problems.append("it holds what it never held: a transaction was kept in part")
        orphans = {key for at, key in self.take.done if at <= point} - seen.effects
        problems += [f"the ledger has {key}, of which the store knows nothing" for key in orphans]
        if not lost and not problems:
            return None
        last = self.take.operations[point - 1] if point else None
        where = f"{self.where}, after operation {point} ({type(last).__name__}), promise {made}"
        return Loss(where, tuple(lost), tuple(problems), image)

    def run(self, points: list[int], chosen: int) -> Iterator[Tally]:
        """Lose the power at each of these points; `chosen` is the number of the one to keep."""
        tally, images, last = Tally(), self.bench.images, -1
        for number, (point, image) in enumerate(self.losses(points, self.where), start=1):
            bad = self.judge(point, image)
            if bad is None and number % GO_ON_EVERY == 0:
                tally.went_on += 1
                bad = self._gone_on(point, image)
            if bad is not None:
                tally.bad.append(bad)
                tally.lost += len(bad.lost)
            elif number == chosen + 1:
                self.next = (point, image)
            tally.losses += 1
            tally.points += point != last
            last = point
            if number % TALLY_EVERY == 0 or number == len(points):
                tally.images = self.bench.images - images
                yield tally
                tally, images = Tally(), self.bench.images

    def _gone_on(self, point: int, image: Image) -> Loss | None:
        problems = self.bench.go_on(image, self.take, point, f"{self.where}/{point}")
        where = f"{self.where}, after operation {point}"
        return Loss(where, (), problems, image) if problems else None


def lose(
    *,
    losses: int,
    seed: str,
    synchronous: Synchronous = "FULL",
    checkpoint_pages: int | None = None,
) -> Iterator[Tally]:
    """So many power losses, in programs and at points that the seed chooses; a tally now and then.

    Args:
        losses: how many; a take of about 1,500 operations is swept `SEEDS_PER_POINT` times when
            there are enough of them left, and sampled when not.
        synchronous: of the store under test.
        checkpoint_pages: see `workload.Program`.

    Raises:
        AssertionError: see `Sweep`; or the recording is not what is on the disk.
    """
    left, chain = losses, 0
    while left > 0:
        with tempfile.TemporaryDirectory(prefix="power-loss-", dir=_memory()) as name:
            bench = Bench(
                Path(name).resolve(), synchronous=synchronous, checkpoint_pages=checkpoint_pages
            )
            for tally in _chain(bench, left, f"{seed}/{chain}"):
                left -= tally.losses
                yield tally
        chain += 1


def _memory() -> str | None:
    """Where files cost no disk: the disk is modelled, not used."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


def _chain(bench: Bench, left: int, seed: str) -> Iterator[Tally]:
    """A few generations: each but the first begins with what a loss in the one before left."""
    image: Image = {}
    done: list[tuple[int, str]] = []
    clock_ms = ManualClock().now_ms()
    for generation in range(GENERATIONS):
        if left <= 0:
            return
        name = f"seed {seed}, generation {generation}"
        take = bench.record(image, done, clock_ms, f"{seed}/{generation}")
        sweep = Sweep(bench, take, name)
        yield Tally(operations=len(take.operations), promises=len(take.promises))
        every = [*range(len(take.operations) + 1)] * SEEDS_PER_POINT
        chance = random.Random(f"{seed}/{generation}/points")
        points = sorted(chance.sample(every, min(left, len(every))))
        for tally in sweep.run(points, chance.randrange(len(points))):
            left -= tally.losses
            yield tally
        point, image = sweep.next
        done = [(0, key) for at, key in take.done if at <= point]
        clock_ms = take.ended_ms
