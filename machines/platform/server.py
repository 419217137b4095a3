"""The platform as a process: one per data directory, found through `ready.json`.

::

    data directory (0700)
        platform.lock    held (flock) by the one server; the kernel frees it when the server dies
        platform.db      ledgers, keys, sessions
        master.key       0600, opens the secrets (or TURTLES_MASTER_KEY)
        sandboxes/       one directory per live sandbox
        ready.json       written when the server listens, removed when it stops:
                         {"pid", "start_time", "host", "port", "base_url"}
        platform.log     stdout and stderr of a server that `start_server` started

`ready.json` of a killed server stays; `find_server` believes it only while a process of that
number *and* start time lives.  A sandbox that cannot be had does not stop the server: prices,
invoices and keys work, `/health` says `"sandbox":"unavailable"`, sessions answer 503.

Exit codes of the process: 0 stopped on request, 1 failed, 2 wrong arguments, 3 the data
directory is refused (permissions, schema, master key), 4 another server has it.

Only `serve` imports the web framework; the command line imports the rest.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from engine.errors import SecretsError, StoreError, TurtlesError, UsageError
from machines.platform.sandbox.processes import Identity, boot_id, identify

if TYPE_CHECKING:
    from machines.platform.egress import EgressProxy
    from machines.platform.sandbox.backend import Backend

EXIT_FAILED, EXIT_REFUSED, EXIT_TAKEN = 1, 3, 4
START_SECONDS = 30.0
STOP_SECONDS = 15.0

log = structlog.get_logger("turtles.platform.server")
DRAIN_SECONDS = 5


class ServerError(TurtlesError):
    """The platform server could not be started or stopped."""


class DataDirectoryRefused(ServerError):
    """The data directory cannot be used as it is."""


class AlreadyServed(ServerError):
    """Another server has the data directory."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A running server.  `start_time` is `<boot id>/<clock ticks since boot>`."""

    pid: int
    start_time: str
    host: str
    port: int
    base_url: str

    @property
    def identity(self) -> Identity | None:
        """The process, or None when this was written before the machine's last boot."""
        boot, _, ticks = self.start_time.partition("/")
        return Identity(self.pid, int(ticks)) if boot == boot_id() and ticks.isdecimal() else None


def find_server(data_dir: Path) -> ServerInfo | None:
    """The live server of a data directory, or None."""
    try:
        info = msgspec.json.decode((data_dir / "ready.json").read_bytes(), type=ServerInfo)
    except (OSError, msgspec.DecodeError):
        return None
    identity = info.identity
    return info if identity is not None and identity.is_alive() else None


def start_server(
    data_dir: Path,
    *,
    spawned: Callable[[Identity], None] = lambda _identity: None,
    **options: object,
) -> ServerInfo:
    """Start a server that outlives this process, or find the one that is there.

    Args:
        data_dir: made (0700) when absent.
        spawned: told of a process that was started, before it is ready.
        options: those of `serve`: `port=0, block_seconds=1.0, allow_faults=True, ...`.

    Raises:
        DataDirectoryRefused: others can read the directory.
        ServerError: it did not start; the message ends with the tail of its log.
    """
    prepare_data_directory(data_dir)
    if found := find_server(data_dir):
        return found
    log_file = data_dir / "platform.log"
    limit = time.monotonic() + START_SECONDS
    while True:
        child = _spawn(_command(data_dir, options), log_file)
        if identity := identify(child.pid):
            spawned(identity)
        if found := _wait_ready(data_dir, child, log_file, limit):
            return found
        # Another server held the directory: it is starting, and will be found, or stopping.
        time.sleep(0.1)


def _spawn(command: list[str], log_file: Path) -> subprocess.Popen[bytes]:
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            env=_environment(),
        )
    finally:
        os.close(descriptor)
    _CHILDREN[child.pid] = child
    return child


# Children are kept until they are stopped, so that none stays a zombie of a long-lived caller.
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


def _command(data_dir: Path, options: dict[str, object]) -> list[str]:
    command = [sys.executable, "-m", "machines.platform.server", "--data-dir", str(data_dir)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            command.append(flag)
        elif isinstance(value, list | tuple):
            command += [word for one in value for word in (flag, str(one))]
        elif value is not None and value is not False:
            command += [flag, str(value)]
    return command


def _environment() -> dict[str, str]:
    """Ours, with the import root in front: a checkout need not be installed."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, inherited)))}


def _wait_ready(
    data_dir: Path, child: subprocess.Popen[bytes], log_file: Path, limit: float
) -> ServerInfo | None:
    """The live server; None when the child gave way to another one.

    Raises:
        ServerError: the child failed, or the time is over.
    """
    while time.monotonic() < limit:
        if found := find_server(data_dir):
            if found.pid != child.pid:
                # Ours came too late; left alone it would serve once the other one stops.
                _put_down(child)
            return found
        code = child.poll()
        if code == EXIT_TAKEN:
            return None
        if code == EXIT_REFUSED:
            raise DataDirectoryRefused(_last_words(log_file))
        if code is not None:
            raise ServerError(
                f"platform server for {data_dir}: ended with exit code {code} before it was "
                f"ready. Its log {log_file} ends:\n{_tail(log_file)}"
            )
        time.sleep(0.02)
    _put_down(child)
    raise ServerError(
        f"platform server for {data_dir}: not ready after {START_SECONDS:.0f} s; stopped. "
        f"Its log {log_file} ends:\n{_tail(log_file)}"
    )


def _put_down(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    _CHILDREN.pop(child.pid, None)


def _tail(log_file: Path, lines: int = 12) -> str:
    try:
        text = log_file.read_text(errors="replace")
    except OSError as error:
        return f"(unreadable: {error})"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"


def _last_words(log_file: Path) -> str:
    """Why a server refused to start, as it said itself."""
    last = _tail(log_file, lines=1)
    return f"platform server: {last.removeprefix('turtles: ')}"


def stop_server(info: ServerInfo) -> bool:
    """Stop a server: SIGTERM, and SIGKILL when that takes too long.  False: it was gone.

    Live sandboxes end with it.
    """
    try:
        identity = info.identity
        if identity is None:
            return False
        descriptor = os.pidfd_open(info.pid)
    except ProcessLookupError:
        return False
    try:
        if not identity.is_alive():
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not select.select([descriptor], [], [], STOP_SECONDS)[0]:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], STOP_SECONDS)
    finally:
        os.close(descriptor)
        if child := _CHILDREN.pop(info.pid, None):
            child.wait()
    return True


def prepare_data_directory(data_dir: Path) -> None:
    """Make the directory (0700) or check that only its owner can enter it.

    Raises:
        DataDirectoryRefused: with the command that cures it.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = data_dir.stat()
    except OSError as error:
        raise DataDirectoryRefused(
            f"data directory {data_dir}: cannot be made or read ({error}). "
            "Give another with --data-dir."
        ) from error
    mode = status.st_mode & 0o777
    if mode & 0o077:
        raise DataDirectoryRefused(
            f"data directory {data_dir}: mode {mode:o} lets others in; it holds keys and wallets. "
            f"Run: chmod 700 {data_dir}"
        )


def _check_permissions(data_dir: Path) -> None:
    """Look into the directory, too: refuse open secrets, warn about the rest.

    Raises:
        DataDirectoryRefused: with the command that cures it.
    """
    from machines.platform.permissions import require_private

    for loose in require_private(data_dir):
        log.warning("permissions_loose", path=str(loose.path), problem=loose.message)


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the data directory's lock.

    Raises:
        AlreadyServed: another process holds it.
    """
    descriptor = os.open(data_dir / "platform.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = find_server(data_dir)
            where = f" (pid {found.pid}, {found.base_url})" if found else ""
            raise AlreadyServed(
                f"data directory {data_dir}: another platform server has it{where}. "
                "Use that one, stop it, or give another --data-dir."
            ) from error
        yield
    finally:
        os.close(descriptor)


def serve(
    data_dir: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    block_seconds: float | None = None,
    invoice_seconds: int | None = None,
    allow_faults: bool = False,
    backend: str = "bubblewrap",
    requests_per_minute_per_tier: int = 7,
    payer_outputs: int | None = None,
    operators: Sequence[str] = (),
    egress_allow: Sequence[str] = (),
    egress_requests_per_second: float | None = None,
    egress_burst: int | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code (0).

    Args:
        data_dir: made (0700) when absent; one server each.
        host: a loopback address.
        port: 0 takes a free one.
        block_seconds: a block of every chain this often; 0 mines by hand only.
        invoice_seconds: life of an invoice.
        allow_faults: whether misbehaviour can be injected.
        backend: `bubblewrap`, or `gvisor` (root, and runsc on the PATH).
        requests_per_minute_per_tier: 7 by the price list; another is shown by `/health`.
        payer_outputs: how many coins the payer's wallet of a new platform holds; 0 is a poor one.
        operators: public keys that may read the platform's own log lines.
        egress_allow: what semitrusted sandboxes may reach, `HOST:PORT` or `*.HOST:PORT` each.
        egress_requests_per_second, egress_burst: how fast each of them may ask; 5 and 20.
        tls_certificate, tls_key: PEM files; with both of them it speaks https.
        say: takes the lines meant for a person, the last begins with `ready`.

    Raises:
        DataDirectoryRefused, AlreadyServed, StoreError, SecretsError, UsageError.
    """
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise UsageError(f"host {host!r}: expected a loopback address such as 127.0.0.1")
    from machines.platform.egress import configured
    from machines.platform.tls import load_pair

    proxy = configured(egress_allow, egress_requests_per_second, egress_burst)
    tls = load_pair(tls_certificate, tls_key)
    prepare_data_directory(data_dir)
    _check_permissions(data_dir)
    with exclusive(data_dir):
        from machines.platform.serving import run

        return run(
            data_dir,
            host,
            port,
            block_seconds=block_seconds,
            invoice_seconds=invoice_seconds,
            allow_faults=allow_faults,
            backend=_backend(backend, data_dir, proxy),
            proxy=proxy,
            tls=tls,
            requests_per_minute_per_tier=requests_per_minute_per_tier,
            payer_outputs=payer_outputs,
            operators=operators,
            say=say or (lambda _line: None),
        )


def _backend(name: str, data_dir: Path, proxy: EgressProxy) -> Backend:
    if name not in ("bubblewrap", "gvisor"):
        raise UsageError(f"backend {name!r}: expected 'bubblewrap' or 'gvisor'")
    from machines.platform.egress import proxied

    if name == "gvisor":
        from machines.platform.sandbox.gvisor import GvisorBackend

        return proxied(GvisorBackend(data_dir / "gvisor"), proxy)
    from machines.platform.sandbox.bubblewrap import BubblewrapBackend

    return proxied(BubblewrapBackend(data_dir / "sandboxes"), proxy)


def write_ready(data_dir: Path, host: str, port: int, scheme: str = "http") -> ServerInfo:
    """Announce this process as the server of the data directory, atomically."""
    identity = identify(os.getpid())
    if identity is None:
        raise ServerError("this process has no entry in /proc; mount /proc to run the platform")
    shown = f"[{host}]" if ":" in host else host
    info = ServerInfo(
        pid=identity.pid,
        start_time=f"{boot_id()}/{identity.start_ticks}",
        host=host,
        port=port,
        base_url=f"{scheme}://{shown}:{port}",
    )
    fresh = data_dir / "ready.json.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(info))
    fresh.replace(data_dir / "ready.json")
    return info


def remove_ready(data_dir: Path) -> None:
    """Withdraw the announcement."""
    (data_dir / "ready.json").unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """`python -m machines.platform.server --data-dir D`; the exit code."""
    given = _parser().parse_args(arguments)
    from machines.platform.serving import log_to_stderr

    log_to_stderr()
    try:
        return serve(given.data_dir, **_options(given))
    except AlreadyServed as error:
        return _fail(error, EXIT_TAKEN)
    except (DataDirectoryRefused, StoreError, SecretsError) as error:
        return _fail(error, EXIT_REFUSED)
    except UsageError as error:
        return _fail(error, 2)
    except TurtlesError as error:
        return _fail(error, EXIT_FAILED)


def _options(given: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: value for name, value in vars(given).items() if name != "data_dir"}
    return {**chosen, "say": _say}


def _fail(error: TurtlesError, code: int) -> int:
    sys.stderr.write(f"turtles: {error}\n")
    return code


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m machines.platform.server")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--block-seconds", type=float)
    parser.add_argument("--invoice-seconds", type=int)
    parser.add_argument("--allow-faults", action="store_true")
    parser.add_argument("--backend", default="bubblewrap")
    parser.add_argument("--requests-per-minute-per-tier", type=int, default=7)
    parser.add_argument("--payer-outputs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--operators", action="append", default=[], metavar="PUBLIC_KEY")
    parser.add_argument("--egress-allow", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--egress-requests-per-second", type=float)
    parser.add_argument("--egress-burst", type=int)
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    return parser


if __name__ == "__main__":
    # As `__main__` this module would be a second copy, with error classes of its own.
    from machines.platform.server import main as canonical_main

    sys.exit(canonical_main())
