"""Sessions and services as the source of archives, and as what is written back to.

One place knows which of them can be packed (those that run), how their sandbox is called, and what
it means when it is refused or gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from machines.platform.context import PlatformContext
from machines.platform.copies import Kind, Recipe, recipe_of_service, recipe_of_session
from machines.platform.orders import Caller
from machines.platform.refusals import sandbox_refusals, terminated
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Handle, Level, Saved
from machines.platform.sandbox.errors import SandboxFrozen, SandboxGone
from machines.platform.service_orders import Redeploy
from machines.platform.service_sandboxes import wrong_state
from machines.platform.services import Services
from machines.platform.sessions import Sessions
from persistence.database import Row


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A session or service that runs, and belongs to the caller."""

    kind: Kind
    source_id: str
    recipe: Recipe

    @property
    def handle(self) -> Handle:
        """Its sandbox, which has its id."""
        return Handle(self.source_id)


class Sources:
    """What there is to pack, and to write back to."""

    def __init__(
        self, context: PlatformContext, backend: Backend, sessions: Sessions, services: Services
    ) -> None:
        self._context = context
        self._backend = backend
        self._sessions = sessions
        self._services = services

    def find(self, public_key: str, kind: Kind, name: str) -> Source:
        """A source by its id (or its container's name, or the service's name).

        Raises:
            Problem: 404; 409 it does not run; 410 the session has ended.
        """
        if kind == "service":
            row = self._services.find(public_key, name)
            self._services.sandbox(row)
            return Source(kind=kind, source_id=row["service_id"], recipe=recipe_of_service(row))
        row = self._sessions.find(public_key, name)
        with self._context.database.transaction() as sql:
            # Being packed or written to is activity.
            row = self._sessions.claim(sql, row["session_id"])
        return Source(kind=kind, source_id=row["session_id"], recipe=recipe_of_session(row))

    def save(self, source: Source, target: Path, *, hot: bool) -> Saved:
        """Pack it into a file, as much as the backend can.

        Raises:
            Problem: 400 too large; 409 frozen meanwhile; 410 or 503 its sandbox died.
        """
        with self._told(source):
            # A service's program is started anew from its bootstrap: its processes are not kept.
            level: Level = "full" if source.kind == "session" else "files+vars"
            return self._backend.save(source.handle, target, level=level, hot=hot)

    def load(self, caller: Caller, source: Source, path: Path) -> Row:
        """Write an archive back over it.  A service's bootstrap is then run again.

        Raises:
            Problem: as `save`; 400 the archive cannot be unpacked; 409 a service that is being
                deployed, or whose program failed meanwhile, which ended its sandbox.
        """
        if source.kind == "service":
            self._require_running(caller, source)
        with self._told(source):
            self._backend.load(source.handle, path)
        if source.kind == "session":
            return self._sessions.find(caller.public_key, source.source_id)
        row = self._require_running(caller, source)
        if row["bootstrap"] is None:
            return row
        return self._services.redeploy(caller, source.source_id, Redeploy())

    def _require_running(self, caller: Caller, source: Source) -> Row:
        row = self._services.find(caller.public_key, source.source_id)
        if row["state"] != "running":
            raise wrong_state(row, "it can be restored while it runs; redeploy it, or clone")
        return row

    @contextmanager
    def _told(self, source: Source) -> Iterator[None]:
        """Say what its sandbox refuses, and that it died, as an answer."""
        try:
            with sandbox_refusals():
                yield
        except SandboxFrozen as error:
            raise Problem(
                409,
                f"{source.kind}_frozen",
                f"{source.kind} {source.source_id} is frozen; nothing was done. Unfreeze it first.",
            ) from error
        except SandboxGone as error:
            if source.kind == "session":
                self._sessions.died(source.source_id)
                row = self._sessions.named(source.source_id)
                raise terminated(source.source_id, row["reason"] if row else None) from error
            raise Problem(
                503,
                "sandbox_died",
                f"the sandbox of service {source.source_id} died: {error}. Redeploy it.",
            ) from error
