"""python-statemachine with persistence written by hand: what a careful user would do.

A machine over an order row, an ORM session, and for each transition one commit that updates the
order and adds a row of history.  `shipped` leaves SQLite as it is (DELETE, FULL); `FULL` and
`NORMAL` are with WAL.
"""

from __future__ import annotations

import json
import time
from typing import Any

import sqlalchemy as sa
from common import (
    HALF,
    STEPS,
    Options,
    Watch,
    check,
    file_bytes,
    idle_cores,
    latencies,
    main,
    order,
    pure,
    resident_bytes,
    stay,
    tell,
    threads,
    timed_ms,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from statemachine import State, StateMachine


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """A run."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    version: Mapped[int]
    data: Mapped[str]


class History(Base):
    """A transition of a run."""

    __tablename__ = "history"
    order_id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    event: Mapped[str]
    source: Mapped[str]
    target: Mapped[str]
    data: Mapped[str]


class Walk(StateMachine):
    """Ten steps; the session commits after each."""

    walking = State(initial=True)
    waiting = State()
    arrived = State(final=True)
    stepped = (
        walking.to(arrived, cond="last") | walking.to(waiting, cond="half") | walking.to.itself()
    )
    go = waiting.to(walking)

    def __init__(self, session: Session, row: Order, *, waits: bool) -> None:
        self.session = session
        self.waits = waits
        super().__init__(row, start_value=row.state)

    def last(self) -> bool:
        """Whether this is the last step."""
        return json.loads(self.model.data)["count"] + 1 >= STEPS

    def half(self) -> bool:
        """Whether the run waits after this step."""
        return self.waits and json.loads(self.model.data)["count"] + 1 == HALF

    def on_stepped(self) -> None:
        """The step."""
        self.model.data = json.dumps(pure(json.loads(self.model.data)))

    def after_transition(self, event: str, source: State, target: State) -> None:
        """Durable before the next step."""
        row = self.model
        row.version += 1
        self.session.add(
            History(
                order_id=row.id, version=row.version, event=str(event), source=source.id,
                target=target.id, data=row.data,
            )
        )  # fmt: skip
        self.session.commit()


def open_database(options: Options) -> sa.Engine:
    """The file."""
    database = sa.create_engine(f"sqlite:///{options.directory}/orders.db")
    if options.synchronous != "shipped":

        @sa.event.listens_for(database, "connect")
        def prepare(raw: Any, _record: Any) -> None:
            raw.execute("PRAGMA journal_mode=WAL")
            raw.execute(f"PRAGMA synchronous={options.synchronous}")

    Base.metadata.create_all(database)
    return database


def walk(database: sa.Engine, number: int, *, waits: bool = False) -> None:
    """A run until it ends, or waits."""
    with Session(database) as session:
        row = Order(state="walking", version=0, data=json.dumps(order(number)))
        session.add(row)
        session.commit()
        machine = Walk(session, row, waits=waits)
        while row.state == "walking":
            machine.send("stepped")
        if not waits:
            check(json.loads(row.data))


def w1(options: Options) -> dict[str, Any]:
    """Throughput."""
    database = open_database(options)
    walk(database, options.runs)
    watch = Watch()
    for number in range(options.runs):
        walk(database, number)
    result = watch.throughput(options.runs)
    result["bytes_per_run"] = file_bytes(options.directory) / (options.runs + 1)
    return result


def w2(options: Options) -> dict[str, Any]:
    """Latency."""
    database = open_database(options)
    for number in range(5):
        walk(database, number)
    return latencies(
        [timed_ms(lambda number=number: walk(database, number)) for number in range(options.runs)]
    )


def w3_prepare(options: Options) -> None:
    """Runs in their middle."""
    database = open_database(options)
    for number in range(options.runs):
        walk(database, number, waits=True)
    tell({"waiting": options.runs})
    stay()


def w3_recover(options: Options) -> dict[str, Any]:
    """A query and a loop, both the user's."""
    database = open_database(options)
    launched = time.monotonic() - options.spawned_at
    with Session(database) as session:
        ids = list(session.scalars(sa.select(Order.id).where(Order.state == "waiting")))
    for order_id in ids:
        with Session(database) as session:
            row = session.get_one(Order, order_id)
            machine = Walk(session, row, waits=True)
            machine.send("go")
            while row.state == "walking":
                machine.send("stepped")
            check(json.loads(row.data))
    took = time.monotonic() - options.spawned_at
    return {"runs": len(ids), "launch_seconds": launched, "seconds": took}


def w5(options: Options) -> dict[str, Any]:
    """Runs that wait."""
    database = open_database(options)
    for number in range(200):
        walk(database, number, waits=True)
    resident, many, began = resident_bytes(), threads(), time.perf_counter()
    for number in range(options.runs):
        walk(database, number, waits=True)
    waiting = time.perf_counter() - began
    return {
        "started_seconds": waiting,
        "waiting_seconds": waiting,
        "bytes_per_waiting": (resident_bytes() - resident) / options.runs,
        "threads_per_waiting": (threads() - many) / options.runs,
        "idle_cores": idle_cores(options.idle_seconds),
        "resident_bytes": resident_bytes(),
    }


if __name__ == "__main__":
    main({"w1": w1, "w2": w2, "w3-prepare": w3_prepare, "w3-recover": w3_recover, "w5": w5})
