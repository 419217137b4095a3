"""Limits in SQL: a row for each slot, a row for each rate.

::

    turtles_limit   name -> slots, rate            locked by who declares, shared by who claims
    turtles_slot    (name, tenant, number) -> run, owner     free when there is no run
    turtles_rate    (name, tenant) -> until when all attempts that were made are paid

A claim takes for each run a slot of every limit that the run needs and pays every rate, or takes
nothing.  Slots are rows, not a count: PostgreSQL gives each to one claim alone (`FOR UPDATE SKIP
LOCKED`), SQLite gives one claim all of them, so many claims at once never overshoot.  Rates are
locked in the order of their names.

Runs that need the same limits for the same tenant are one group, in the index one after the other;
whether one can go is asked once for all of them.  So ten thousand runs that wait for a slot cost a
claim what one costs, and nothing is written while they wait.

Fewer slots than are held: those above the new number stay with their runs, and no slot is given
away before they are free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from engine import limiting
from engine.limiting import Limit, Rate
from engine.ports import Held, Write
from engine.run import TERMINAL
from persistence import tables
from persistence.database import Database, Session
from persistence.fairness import Key, Turns

_l, _s, _p, _r = tables.limit.c, tables.slot.c, tables.rate.c, tables.run.c
_IS_LIMITED = "ready AND owner IS NULL AND limits IS NOT NULL"
_IS_OVERDUE = f"{_IS_LIMITED} AND deadline_ms IS NOT NULL AND NOT effect_open"
_ALL = sa.select(tables.limit).order_by(_l.name)
_ALL_SHARED = _ALL.with_for_update(read=True)
_ALL_LOCKED = _ALL.with_for_update()
_DECLARE = sa.insert(tables.limit)
_REDECLARE = (
    sa.update(tables.limit)
    .where(_l.name == sa.bindparam("of"))
    .values(
        {
            name: sa.bindparam(f"new_{name}", type_=_l[name].type)
            for name in _l.keys()  # noqa: SIM118 - a collection of columns, no mapping
            if name != "name"
        }
    )
)
_PAIRS: sa.BindParameter[Any] = sa.bindparam("pairs", expanding=True)
_COUNTED = (
    sa.select(
        _s.limit_name,
        _s.tenant,
        sa.func.count().label("made"),
        sa.func.count(_s.run_id).label("held"),
        sa.func.max(sa.case((_s.run_id.is_not(None), _s.number), else_=0)).label("highest"),
    )
    .where(sa.tuple_(_s.limit_name, _s.tenant).in_(_PAIRS))
    .group_by(_s.limit_name, _s.tenant)
)
_MAKE_SLOT = (
    "INSERT INTO turtles_slot (limit_name, tenant, number) VALUES (:limit_name, :tenant, :number)"
    " ON CONFLICT DO NOTHING"
)
_FREE_ONES = (
    sa.select(_s.number)
    .where(
        _s.limit_name == sa.bindparam("of"),
        _s.tenant == sa.bindparam("whose"),
        _s.number <= sa.bindparam("slots"),
        _s.run_id.is_(None),
    )
    .order_by(_s.number)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)
_HOLD = (
    sa.update(tables.slot)
    .where(
        _s.limit_name == sa.bindparam("of"),
        _s.tenant == sa.bindparam("whose"),
        _s.number == sa.bindparam("place"),
    )
    .values(run_id=sa.bindparam("the_run"), owner=sa.bindparam("who"))
)
_FREE_OF_RUN = (
    "UPDATE turtles_slot SET run_id = NULL, owner = NULL WHERE run_id = :run_id"
    " AND replace(:keep, ',' || limit_name || ',', '') = :keep"
)
_FREE_LOST = (
    sa.update(tables.slot)
    .where(
        _s.run_id.is_not(None),
        ~sa.exists().where(_r.run_id == _s.run_id, _r.owner == _s.owner),
    )
    .values(run_id=sa.null(), owner=sa.null())
)
_MAKE_RATE = (
    "INSERT INTO turtles_rate (limit_name, tenant, paid_until_us) VALUES (:limit_name, :tenant, 0)"
    " ON CONFLICT DO NOTHING"
)
_PAID = (
    sa.select(tables.rate)
    .where(sa.tuple_(_p.limit_name, _p.tenant).in_(_PAIRS))
    .order_by(_p.limit_name, _p.tenant)
)
_PAID_LOCKED = _PAID.with_for_update()
_PAY = (
    sa.update(tables.rate)
    .where(_p.limit_name == sa.bindparam("of"), _p.tenant == sa.bindparam("whose"))
    .values(paid_until_us=sa.bindparam("until"))
)
_OVERDUE = (
    sa.select(_r.run_id)
    .where(sa.text(_IS_OVERDUE), _r.deadline_ms <= sa.bindparam("now"))
    .order_by(_r.deadline_ms)
    .limit(1_000)
    .with_for_update(skip_locked=True)
)
_LET_OVERDUE_GO = (
    sa.update(tables.run).where(_r.run_id.in_(_OVERDUE.scalar_subquery())).values(limits=sa.null())
)
_NEXT_OVERDUE = (
    sa.select(_r.deadline_ms).where(sa.text(_IS_OVERDUE)).order_by(_r.deadline_ms).limit(1)
)
LIMITED = (
    sa.select(_r.run_id)
    .where(
        sa.text(_IS_LIMITED),
        _r.limits == sa.bindparam("needed"),
        _r.tenant == sa.bindparam("whose"),
        _r.version.in_(sa.bindparam("versions", expanding=True)),
    )
    .order_by(_r.priority.desc(), _r.due_ms)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)
"""Whom to take of one group."""
_ANY_OF = (
    sa.select(_r.run_id)
    .where(
        sa.text(_IS_LIMITED),
        _r.limits == sa.bindparam("needed"),
        _r.tenant == sa.bindparam("whose"),
        _r.version.in_(sa.bindparam("versions", expanding=True)),
    )
    .limit(1)
)
_HELD = (
    sa.select(_s.limit_name, _s.tenant, sa.func.count().label("count"))
    .where(_s.run_id.is_not(None))
    .group_by(_s.limit_name, _s.tenant)
    .order_by(_s.limit_name, _s.tenant)
)

Take = Callable[[Key, int], Sequence[Any]]
"""Takes at most so many runs of a group, and gives their rows."""


class SqlLimits:
    """`engine.ports.Limits` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = Turns(("limits", "tenant"), _IS_LIMITED)
        self.any = False
        """Whether there was a limit when they were last read."""

    def declare(self, limits: Sequence[Limit], now_ms: int) -> list[tuple[Limit, Limit]]:
        """Store limits; those that were there with other numbers, as they were and as they are."""
        with self._database.transaction() as sql:
            known = {one.name: one for one in map(_limit, sql.fetch(_ALL_LOCKED))}
            for one in sorted(limits, key=lambda one: one.name):
                if one.name not in known:
                    sql.execute(_DECLARE, name=one.name, **_values(one, now_ms))
                elif known[one.name] != one:
                    given = {f"new_{name}": v for name, v in _values(one, now_ms).items()}
                    sql.execute(_REDECLARE, of=one.name, **given)
        self.any = self.any or bool(known or limits)
        return [
            (known[one.name], one) for one in limits if one.name in known and known[one.name] != one
        ]

    def all(self) -> list[Limit]:
        """Every limit, by name."""
        with self._database.reading() as sql:
            found = [_limit(row) for row in sql.fetch(_ALL)]
        self.any = bool(found)
        return found

    def remove(self, name: str) -> bool:
        """Forget a limit; what waits for it needs it no longer.  Whether there was one."""
        with self._database.transaction() as sql:
            found = sql.run("DELETE FROM turtles_limit WHERE name = :name", name=name)
            sql.run("DELETE FROM turtles_slot WHERE limit_name = :name", name=name)
            sql.run("DELETE FROM turtles_rate WHERE limit_name = :name", name=name)
            # Whoever takes them asks anew what they need.
            sql.run(
                "UPDATE turtles_run SET limits = NULL WHERE limits IS NOT NULL AND owner IS NULL"
                " AND replace(limits, :mark, '') <> limits",
                mark=f",{name},",
            )
        return found > 0

    def held(self) -> list[Held]:
        """How many slots are taken."""
        with self._database.reading() as sql:
            return [
                Held(limit=row.limit_name, tenant=row.tenant, count=row.count)
                for row in sql.fetch(_HELD)
            ]

    def claim(self, sql: Session, worker_id: str, now_ms: int, most: int, take: Take) -> list[Any]:
        """Give slots and tokens to runs that wait for them; the rows of those runs."""
        groups = self._turns.next(sql)
        if not groups or most < 1:
            return []
        room = _Room(sql, groups, now_ms)

        def admit(group: Key, at_most: int) -> Sequence[Any]:
            places = room.free_places(group, at_most)
            rows = take(group, places.count) if places.count else ()
            room.admit(group, places, [row.run_id for row in rows], worker_id)
            return rows

        taken = self._turns.serve(groups, most, admit)
        room.pay()
        return taken

    def next_ms(self, sql: Session, versions: Collection[str]) -> int | None:
        """When the next run that waits for a rate can go, or its state's timer is due."""
        overdue = sql.fetch(_NEXT_OVERDUE)
        times = [overdue[0].deadline_ms] if overdue else []
        groups = self._turns.next(sql)
        room = _Room(sql, groups, 0, locks=False) if groups else None
        for group in groups if room else ():
            at_ms = room.free_at_ms(group) if room else None
            if at_ms is not None and sql.fetch(
                _ANY_OF, needed=group[0], whose=group[1], versions=versions
            ):
                times.append(at_ms)
        return min(times, default=None)


class _Places:
    """Free slots of every limit that a group needs, locked."""

    def __init__(self, count: int, numbers: dict[tuple[str, str], list[int]]) -> None:
        self.count = count
        self.numbers = numbers


class _Room:
    """What is free for some groups.

    Args:
        locks: to take it, and not only to look.
    """

    def __init__(
        self, sql: Session, groups: Sequence[Key], now_ms: int, *, locks: bool = True
    ) -> None:
        self._sql = sql
        self._now_ms = now_ms
        self._limits = {
            one.name: one for one in map(_limit, sql.fetch(_ALL_SHARED if locks else _ALL))
        }
        asked = sorted({pair for group in groups for pair, _ in self._of(group)})
        slots = [pair for pair in asked if self._limits[pair[0]].slots is not None]
        rates = [pair for pair in asked if self._limits[pair[0]].rate is not None]
        self._free = self._count(slots, make=locks) if slots else {}
        self._paid = self._read_rates(rates, locks) if rates else {}
        self._to_pay: set[tuple[str, str]] = set()

    def _of(self, group: Key) -> list[tuple[tuple[str, str], Limit]]:
        """The limits of a group with whose they are; those that were removed bind nobody."""
        names, tenant = group
        known = (self._limits[n] for n in sorted(limiting.read(names)) if n in self._limits)
        return [((one.name, one.tenant_of(tenant)), one) for one in known]

    def _count(self, pairs: list[tuple[str, str]], *, make: bool) -> dict[tuple[str, str], int]:
        found = {
            (row.limit_name, row.tenant): row for row in self._sql.fetch(_COUNTED, pairs=pairs)
        }
        free, missing = {}, []
        for pair in pairs:
            row, slots = found.get(pair), self._limits[pair[0]].slots or 0
            held, highest, made = (row.held, row.highest, row.made) if row else (0, 0, 0)
            free[pair] = 0 if highest > slots else max(slots - held, 0)
            if made < slots:
                missing += [
                    {"limit_name": pair[0], "tenant": pair[1], "number": number}
                    for number in range(1, slots + 1)
                ]
        if make:
            self._sql.run_many(_MAKE_SLOT, missing)
        return free

    def _read_rates(self, pairs: list[tuple[str, str]], locks: bool) -> dict[tuple[str, str], int]:
        query = _PAID_LOCKED if locks else _PAID
        rows = self._sql.fetch(query, pairs=pairs)
        if locks and len(rows) < len(pairs):
            self._sql.run_many(
                _MAKE_RATE, [{"limit_name": name, "tenant": tenant} for name, tenant in pairs]
            )
            rows = self._sql.fetch(query, pairs=pairs)
        paid = {(row.limit_name, row.tenant): row.paid_until_us for row in rows}
        return {pair: paid.get(pair, 0) for pair in pairs}

    def free_places(self, group: Key, most: int) -> _Places:
        """Lock what at most so many runs of a group may have."""
        count = most
        for pair, one in self._of(group):
            if one.slots is not None:
                count = min(count, self._free[pair])
            if one.rate is not None:
                count = min(count, one.rate.free(self._paid[pair], self._now_ms))
        numbers: dict[tuple[str, str], list[int]] = {}
        for pair, one in self._of(group) if count else ():
            if one.slots is None:
                continue
            rows = self._sql.fetch(
                _FREE_ONES, of=pair[0], whose=pair[1], slots=one.slots, most=count
            )
            numbers[pair] = [row.number for row in rows]
            count = min(count, len(rows))
        return _Places(count, numbers)

    def admit(self, group: Key, places: _Places, run_ids: list[str], worker_id: str) -> None:
        """These runs of the group have been taken."""
        if not run_ids:
            return
        self._sql.execute_many(
            _HOLD,
            [
                {"of": name, "whose": tenant, "place": number, "the_run": run_id, "who": worker_id}
                for (name, tenant), free in places.numbers.items()
                for number, run_id in zip(free, run_ids, strict=False)
            ],
        )
        for pair, one in self._of(group):
            if one.slots is not None:
                self._free[pair] -= len(run_ids)
            if one.rate is not None:
                self._paid[pair] = one.rate.paid(self._paid[pair], self._now_ms, len(run_ids))
                self._to_pay.add(pair)

    def pay(self) -> None:
        """Write down what was taken of the rates."""
        self._sql.execute_many(
            _PAY,
            [
                {"of": name, "whose": tenant, "until": self._paid[name, tenant]}
                for name, tenant in sorted(self._to_pay)
            ],
        )

    def free_at_ms(self, group: Key) -> int | None:
        """When a run of the group may go, 0 for now; None: when somebody gives a slot back."""
        at_ms = 0
        for pair, one in self._of(group):
            if one.slots is not None and self._free[pair] < 1:
                return None
            if one.rate is not None:
                at_ms = max(at_ms, one.rate.free_at_ms(self._paid[pair]))
        return at_ms


def let_overdue_go(sql: Session, now_ms: int) -> None:
    """Runs whose state's timer has come while they waited for a limit need none to hear of it."""
    overdue = sql.fetch(_NEXT_OVERDUE)
    if overdue and overdue[0].deadline_ms <= now_ms:
        sql.execute(_LET_OVERDUE_GO, now=now_ms)


def free_slots(sql: Session, writes: Iterable[Write]) -> None:
    """Free what these writes no longer need: all when they give the run up, else what is left."""
    for write in writes:
        over = write.release or write.after.status in TERMINAL
        sql.run(
            _FREE_OF_RUN,
            run_id=write.after.run_id,
            keep="" if over else write.limits or "",
        )


def free_lost_slots(sql: Session) -> None:
    """Free every slot whose run is no longer its owner's."""
    sql.execute(_FREE_LOST)


def _values(one: Limit, now_ms: int) -> dict[str, Any]:
    return {
        "machine": one.machine,
        "state": one.state,
        "per_tenant": one.per_tenant,
        "slots": one.slots,
        "rate_count": one.rate.count if one.rate else None,
        "rate_per_ms": one.rate.per_ms if one.rate else None,
        "rate_burst": one.rate.burst if one.rate else None,
        "declared_ms": now_ms,
    }


def _limit(row: Any) -> Limit:
    rate = None
    if row.rate_count is not None:
        rate = Rate(row.rate_count, row.rate_per_ms, row.rate_burst)
    return Limit(
        name=row.name,
        machine=row.machine,
        state=row.state,
        slots=row.slots,
        rate=rate,
        per_tenant=row.per_tenant,
    )
