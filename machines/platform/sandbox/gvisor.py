"""The backend by gVisor: a kernel of its own in user space, and snapshots of whole processes.

What it shares with bubblewrap it inherits: records, groups, limits, the agent's protocol, requests
and their turns.  What differs is how a sandbox is started, ended, reached and kept:

    create   record -> cgroup -> runsc behind the gate -> relay -> the agent answers -> ready
    reach    gVisor lets no descriptor cross its kernel: all streams are relayed over two pipes
    save     "full": the relay stands still -> runsc checkpoint (ends it) -> restored in place
             -> the relay goes on; lower levels by the agent
    load     a full snapshot takes the sandbox's place: its processes end, the image goes on

Served in another way than by bubblewrap, and visible: `connect` gives a unix socket, one end of a
relay; the listener of `egress` stands in an empty network namespace on the host; the size of a
terminal reaches its twin inside within a fraction of a second, and its end, too; in Debian 12's
gVisor a terminal does not make a signal of Ctrl-C.  A bomb of processes or of memory ends the whole
sandbox (SandboxGone), because gVisor's kernel lives under the same limit; /dev is a memory file
system that only this limit bounds.  A full snapshot belongs to the version of runsc and to the
platform that made it; it also needs the files below /usr that its processes had open.  Loading one
ends the programs and terminals of the sandbox it is loaded into; those in the image go on, unheard.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import structlog

from machines.platform.sandbox import archive, doors, gvisor_bundle, gvisor_image, gvisor_walls
from machines.platform.sandbox.backend import Command, Handle, Level, Saved, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.cgroups import Cgroup
from machines.platform.sandbox.channel import BrokenChannel, Channel
from machines.platform.sandbox.errors import (
    PortClosed,
    SandboxGone,
    SandboxUnavailable,
)
from machines.platform.sandbox.gvisor_live import START_SECONDS, Sandbox, begin, set_limits
from machines.platform.sandbox.gvisor_runsc import Runsc, find_runsc
from machines.platform.sandbox.launch import Place, set_up
from machines.platform.sandbox.layout import find_interpreter
from machines.platform.sandbox.live import Live
from machines.platform.sandbox.program import Bubblewrap
from machines.platform.sandbox.selection import Ready
from machines.platform.toolbox import ToolboxUnavailable

__all__ = ["GvisorBackend"]

_log = structlog.get_logger("turtles.platform.sandbox")

_PAUSE_SECONDS = 10.0


class GvisorBackend(BubblewrapBackend):
    """`Backend` by gVisor.  `root`: directory for records, made 0700; not shared with others."""

    name = "gvisor"

    def __init__(self, root: Path) -> None:
        super().__init__(root / "sandboxes")
        self._key_path = root / "key"
        self._common = root / "common"
        self._common.mkdir(mode=0o700, exist_ok=True)
        self._rootfs_lock = threading.Lock()
        self._rootfs: Path | None = None
        self._runsc: Runsc | None = None

    # -- is isolation possible here ------------------------------------------------------------

    def _select(self) -> Ready:
        """runsc, when a sandbox of it passes inspection; remembered for this process."""
        self._ready = None
        ready = Ready(Bubblewrap(Path(find_runsc().program)), False, find_interpreter())
        self._inspect(ready)
        self._ready = ready
        return ready

    def _inspect(self, ready: Ready) -> None:
        handle = self._build(Spec(f"probe-{secrets.token_hex(6)}"), ready)
        try:
            argv = (ready.interpreter.program, "-I", "-S", "-c", gvisor_walls.INSPECTION)
            result = self.execute(handle, Command(argv), timeout_seconds=START_SECONDS)
            outside = [each.pid for each in self._find(handle).inside]
            holes = gvisor_walls.find_holes(result.stdout, outside)
        except SandboxGone as gone:
            raise _unavailable(str(gone)) from gone
        finally:
            self.destroy(handle)
        if holes:
            raise SandboxUnavailable(
                f"a sandbox made by {ready.program.program} is not tight: {'; '.join(holes)}",
                "install a current runsc, or use the backend bubblewrap",
            )

    def _common_files(self) -> Path:
        """The root file system that all sandboxes share; what a dead process left goes away."""
        with self._rootfs_lock:
            if self._rootfs is None:
                for each in self._common.glob("rootfs-*"):
                    shutil.rmtree(each, ignore_errors=True)
                self._rootfs = gvisor_bundle.make_rootfs(self._common)
            return self._rootfs

    def close(self) -> None:
        """Destroy every sandbox of this process. Idempotent."""
        super().close()
        with self._rootfs_lock:
            if self._rootfs is not None:
                shutil.rmtree(self._rootfs, ignore_errors=True)
            self._rootfs = None

    # -- create --------------------------------------------------------------------------------

    def _make_cgroup(self, spec: Spec, directory: Path) -> Cgroup | None:
        cgroup = super()._make_cgroup(spec, directory)
        if cgroup is not None:
            set_limits(cgroup, spec)
        return cgroup

    def _launch(
        self,
        spec: Spec,
        ready: Ready,
        directory: Path,
        cgroup: Cgroup | None,
        user_id: int | None,
    ) -> Live:
        """Start it and meet its agent; when it does not answer, say what runsc said.

        A toolbox is refused: all sandboxes share a root file system without a place for it.
        """
        if spec.toolbox:
            raise ToolboxUnavailable(
                "the backend gvisor has none", "serve the platform with --backend bubblewrap"
            )
        if self._runsc is None:
            self._runsc = find_runsc()
        place = Place(directory, self._me(), cgroup, user_id)
        bundle = directory / "bundle"
        rootfs = self._common_files()
        gvisor_bundle.write_bundle(bundle, rootfs, spec.disk_bytes, ready.interpreter)
        live = begin(spec, self._runsc, place)
        try:
            live.meet(ready)
        except BaseException as error:
            live.end()
            if isinstance(error, BrokenChannel):
                raise _unavailable(live.running.read_said() or str(error)) from error
            raise
        return live

    # -- use -----------------------------------------------------------------------------------

    def connect(self, handle: Handle, port: int) -> socket.socket:
        """One end of a relay to 127.0.0.1:`port` inside: a unix socket, non-blocking."""
        doors.check_port(port)

        def ask(door: Channel) -> socket.socket:
            document, came = door.request_descriptors(
                "connect", {"port": port}, wait_seconds=START_SECONDS, count_max=1
            )
            if "refused" in document and not came:
                raise PortClosed(handle.sandbox_id, port)
            if len(came) != 1:
                raise BrokenChannel(f"its agent passed {len(came)} descriptors instead of 1")
            connection = socket.socket(fileno=came[0])  # made by our relay, not by the agent
            connection.setblocking(False)
            return connection

        return self._at_door(handle, ask)

    # -- snapshots -----------------------------------------------------------------------------

    def save(self, handle: Handle, target: Path, *, level: Level, hot: bool = False) -> Saved:
        """Write its files, variables, or (level "full") everything that runs, to `target`."""
        if level != "full":
            return super().save(handle, target, level=level, hot=hot)
        with self._both_turns(handle) as live:
            return self._save_full(live, target)

    def _save_full(self, live: Sandbox, target: Path) -> Saved:
        key = gvisor_image.load_key(self._key_path)
        with _directory(live.directory / "image") as image:
            live.relay.post(live.relay.hold)
            if not live.relay.paused.wait(_PAUSE_SECONDS):
                raise self._lost(live, "its relay did not stand still")
            try:
                live.runsc.checkpoint(live.directory, live.running.name, image)
                live.running.kill()
                live.go_on(image)
                relay, running = live.relay, live.running
                relay.post(lambda: relay.resume(running.source, running.sink))
                set_up(live, self._require_ready(), live.channel)
                live.note_processes()
            except (OSError, BrokenChannel) as error:
                said = live.running.read_said()
                raise self._lost(live, f"it was lost in a snapshot ({error}) {said}") from error
            bytes_max = live.spec.memory_bytes + archive.bytes_max_for(live.spec)
            return gvisor_image.pack(
                image, target, key=key, runsc=live.runsc.version, bytes_max=bytes_max
            )

    def load(self, handle: Handle, source: Path) -> None:
        """Make it what `save` wrote; a full snapshot takes the place of all that runs in it."""
        if not gvisor_image.is_full(source):
            super().load(handle, source)
            return
        with self._both_turns(handle) as live:
            self._load_full(live, source)
        _log.info("sandbox.loaded", sandbox_id=handle.sandbox_id, left_out=0)

    def _load_full(self, live: Sandbox, source: Path) -> None:
        key = gvisor_image.load_key(self._key_path)
        with _directory(live.directory / "image") as image:
            gvisor_image.unpack(source, image, key=key, runsc=live.runsc.version)
            live.running.kill()
            live.hang_up()
            try:
                live.go_on(image)
                live.running.say_reset()
                live.connect_channels()
                live.meet(self._require_ready())
            except (OSError, BrokenChannel) as error:
                said = live.running.read_said()
                raise self._lost(live, f"it could not be restored ({error}) {said}") from error

    def _lost(self, live: Sandbox, why: str) -> SandboxGone:
        """The end of a sandbox in the middle of a snapshot; `_both_turns` destroys it."""
        live.ended_because = why
        return SandboxGone(live.spec.sandbox_id, why)

    @contextmanager
    def _both_turns(self, handle: Handle) -> Iterator[Sandbox]:
        """Nobody asks the agent or the doorman anything, and nothing is frozen, meanwhile."""
        live = cast(Sandbox, self._find_moving(handle))
        try:
            with live.turn(live.lock), live.turn(live.door_lock), live.changing:
                if live.ending.is_set():
                    raise live.gone()
                self._find_moving(handle)
                self._watchdog.forget(handle.sandbox_id)
                yield live
                if live.cgroup is None:
                    self._watch(live)
        except SandboxGone:
            self.destroy(handle)
            raise


@contextmanager
def _directory(path: Path) -> Iterator[Path]:
    """A new directory that is gone afterwards."""
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(path)


def _unavailable(said: str) -> SandboxUnavailable:
    """The refusal that says what runsc said."""
    message = " ".join(said.split())[:500] or "nothing"
    return SandboxUnavailable(
        f"this machine does not let gVisor build a sandbox (runsc said: {message})",
        "run the platform as root, outside of containers that forbid namespaces or ptrace, "
        "or use the backend bubblewrap",
    )
