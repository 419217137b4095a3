"""Where a command works: the data directory, and the app that a program makes for it.

A program gives `build_cli` one function, from a `Place` to an app that is ready to be opened::

    def make_app(place: Place) -> App:
        return App([Payment], store=open_store(place.store_url), work=place.work,
                   moved=place.moved)

The store is the file `runs.db` in the directory, or what the url in `TURTLES_STORE` names: a
server's database that many workers share.

Anything that is an async context manager of an `App` will do, so resources can be closed too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import StoreReadOnly, UsageError

if TYPE_CHECKING:
    from engine.app import App
    from engine.decide import Decision

STORE_FILE = "runs.db"
STORE_VARIABLE = "TURTLES_STORE"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an app is made for.

    Args:
        data_dir: the directory of store and keys; None for a store in memory.
        work: whether the app shall move runs.
        moved: called after every transition the app makes.
        url: the store, if it is not the directory's.
    """

    data_dir: Path | None
    work: bool = False
    moved: Callable[[Decision], None] | None = None
    url: str | None = None

    @property
    def store_url(self) -> str:
        """The url of the store, as `persistence.open_store` takes it."""
        if self.url is not None:
            return self.url
        return "sqlite://" if self.data_dir is None else url_of(self.data_dir)


AppFactory = Callable[[Place], "AbstractAsyncContextManager[App]"]


class Schema(Protocol):
    """The database's schema, by url; the module `persistence.schema` is one."""

    def upgrade(self, url: str) -> str:
        """Bring it up to date; the revision it has then."""

    def check(self, url: str) -> list[str]:
        """What is wrong with it."""

    def current(self, url: str) -> str | None:
        """Its revision, if it has one."""

    def scratch(self, url: str) -> AbstractContextManager[str]:
        """The url of a new, empty database beside this one, which is dropped at the end."""


def url_of(data_dir: Path) -> str:
    """The url of a data directory's store: `TURTLES_STORE`, or the file in the directory."""
    return os.environ.get(STORE_VARIABLE) or f"sqlite:///{data_dir / STORE_FILE}"


def make_data_dir(data_dir: Path) -> None:
    """Make the directory, for its owner alone; one that exists stays as it is.

    Raises:
        StoreReadOnly: it cannot be made.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreReadOnly(
            f"data directory {data_dir}: cannot be made ({error.strerror or error}). "
            "Give another with --data-dir or TURTLES_DATA_DIR."
        ) from error


def require_store(data_dir: Path) -> None:
    """Refuse a directory or a file in which nothing has ever run, instead of making a store there.

    Raises:
        UsageError: names it and how to give another.
    """
    given = os.environ.get(STORE_VARIABLE, "")
    _, is_file, path = given.partition("sqlite:///")
    if is_file and path and not Path(path).expanduser().exists():
        raise UsageError(
            f"store {path} (of {STORE_VARIABLE}): no such file, so nothing has run there. "
            "Correct the url, or start a run first."
        )
    if not given and not (data_dir / STORE_FILE).exists():
        raise UsageError(
            f"data directory {data_dir}: no {STORE_FILE} in it, so nothing has run there. "
            "Give the right one with --data-dir or TURTLES_DATA_DIR, or start a run first."
        )


@asynccontextmanager
async def opened(factory: AppFactory, place: Place) -> AsyncIterator[App]:
    """An app at a place, closed with its store at the end."""
    store: Any = None
    try:
        made = factory(place)
        store = getattr(made, "store", None)  # also if it cannot be entered
        async with made as app:
            store = app.store
            yield app
    finally:
        if store is not None:
            store.close()
