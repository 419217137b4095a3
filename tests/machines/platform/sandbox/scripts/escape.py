"""Sets canaries up on the host, runs probes.py and bombs in a sandbox, prints what was reached.

    escape.py ROOT [--network zerotrust|semitrusted] [--toolbox] [--user UID] [--no-filter]

`--user` gives up root after imports (an account need not exist). `--no-filter` installs a filter
that allows everything: the control that shows that the probes can fail.
"""

import argparse
import ctypes
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[5]))

from machines.platform.sandbox import layout, processes, start
from machines.platform.sandbox.backend import EGRESS_PORT, Command, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxError, SandboxGone, SandboxLimit
from machines.platform.toolbox import load_toolbox

MIB = 1024 * 1024
LIBC = ctypes.CDLL(None)
SECRET = "canary-environment-7f3a"
CANARY = "canary-of-the-host-7f3a"
VARIABLES = (*layout._PROXY_VARIABLES, *layout._NO_PROXY_VARIABLES)
FORK_BOMB = """
import os, signal
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError as error:
    print(count, error.errno)
"""
MEMORY_BOMB = "print(len(b'x' * (1600 << 20)))"
HOARD = """
import os, signal
first = os.fork()
x = bytearray(b"x") * (160 << 20)
if first:
    os.waitpid(first, 0)
else:
    signal.pause()
"""
DISK_FILL = """
import os
total = 0
for place in ("/root", "/tmp", "/dev/shm"):
    try:
        with open(place + "/fill", "wb", buffering=0) as file:
            for _ in range(512):
                total += file.write(bytes(1 << 20))
    except OSError as error:
        print(place, error.errno)
    os.unlink(place + "/fill")
print(total)
"""


def own_addresses() -> list[str]:
    """Addresses of this machine, loopback excepted."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        try:
            datagram.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return []
        return [datagram.getsockname()[0]]


def canaries(root: Path, network: str):
    listener = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0turtles-canary-{os.getpid()}")
    abstract.listen()
    victim = subprocess.Popen(["sleep", "300"])
    file = root / "canary"
    file.write_text(CANARY)
    key = 0x7A000000 | (os.getpid() & 0xFFFFFF)
    kept = (LIBC.shmget(key, 4096, 0o1666), LIBC.msgget(key, 0o1666), LIBC.semget(key, 1, 0o1666))
    values = {
        "file": str(file),
        "port": listener.getsockname()[1],
        "ports": [EGRESS_PORT] if network == "semitrusted" else [],
        "variables": [each for each in VARIABLES if network == "semitrusted"],
        "addresses": own_addresses(),
        "abstract": f"turtles-canary-{os.getpid()}",
        "victim": victim.pid,
        "key": key,
        "secret": SECRET,
        "root": str(root),
    }
    return values, (listener, abstract, victim, kept)


def forget(kept: tuple[int, int, int]) -> None:
    """What the host kept under a key outlives processes."""
    LIBC.shmctl(kept[0], 0, None)
    LIBC.msgctl(kept[1], 0, None)
    LIBC.semctl(kept[2], 0, 0)


def spec(name: str, **changes) -> Spec:
    limits = {"memory_bytes": 256 * MIB, "disk_bytes": 16 * MIB, "pids": 32, **changes}
    return Spec(name, **limits)


def read_all(descriptor: int) -> str:
    """Everything until the end, which a terminal tells by EIO."""
    os.set_blocking(descriptor, True)
    seen = b""
    try:
        while piece := os.read(descriptor, 4096):
            seen += piece
    except OSError:
        pass
    os.close(descriptor)
    return seen.decode()


def through_the_doors(backend: BubblewrapBackend) -> dict[str, object]:
    """What a semitrusted sandbox hands out, used once."""
    handle = backend.create(spec("doors", network="semitrusted"))
    server = (
        "import socket; s = socket.create_server(('', 8080)); print(1); s.accept()[0].send(b'hi')"
    )
    try:
        program = backend.start_program(handle, Command(("python3", "-uc", server)))
        os.set_blocking(program.output, True)
        os.read(program.output, 1)
        with backend.connect(handle, 8080) as connection, backend.egress(handle) as egress:
            connection.settimeout(20)
            came, listens = connection.recv(9).decode(), egress.getsockname()
        said, code = read_all(program.output), read_all(program.status)
        terminal = read_all(backend.open_terminal(handle, ("stty", "size"), columns=91, rows=37))
        return {"came": came, "listens": listens, "said": said, "code": code, "stty": terminal}
    finally:
        backend.destroy(handle)


# -- tricks on the host's side -------------------------------------------------------------------


def tricks(backend: BubblewrapBackend, root: Path) -> dict[str, list]:
    """The sandbox prepares a trap, the host's own calls walk by. {trick: [reached or null, saw]}"""
    found = {}
    for trick in (collect_links, write_through_links, save_links, load_hostile, stop_strangers):
        handle = backend.create(spec(trick.__name__.replace("_", "-")))
        said: list[str] = []
        try:
            what = trick(backend, handle, root, said)
            if not what and (root / "written").exists():
                what = "a file was written on the host"
        except Exception as error:  # noqa: BLE001 - the next trick has its turn
            what = f"the trick itself failed: {error!r}"
        finally:
            backend.destroy(handle)
        (root / "written").unlink(missing_ok=True)
        found[trick.__name__] = [what, "; ".join(said)[:400]]
    return found


def prepare(backend, handle, root: Path) -> None:
    """Links to the host's canary, and what else is no plain file, beside one that is."""
    lines = (
        "mkdir /root/out && cd /root/out && echo fine > plain && mkfifo pipe",
        f"ln -s {root}/canary link && ln -s /proc/1/root{root}/canary link2",
        f"ln -s {root} folder && ln -s {root} /root/shortcut && ln -s {root} /tmp/shortcut",
        f"mkdir -p up && ln -s ../../../../../../..{root}/canary up/link",
    )
    done = backend.execute(handle, Command(("sh", "-ec", "\n".join(lines))))
    assert done.exit_code == 0, done.stderr


def collect_links(backend, handle, root: Path, said: list[str]):
    prepare(backend, handle, root)
    traps = ("/root/out", "/root/shortcut", f"/root/../..{root}", str(root), f"/proc/1/root{root}")
    files = backend.collect(handle, traps)
    said.append(f"collected {files}")
    return None if files == {"plain": b"fine\n"} else files


def write_through_links(backend, handle, root: Path, said: list[str]):
    prepare(backend, handle, root)
    for path in ("shortcut/written", f"../../../..{root}/written", f"{root}/written", "out/link"):
        done = backend.execute(handle, Command(("true",), files={path: b"owned"}))
        said.append(f"{path}: {done.exit_code} {done.stderr.decode().strip()}")
    return None if (root / "canary").read_text() == CANARY else "the canary was overwritten"


def save_links(backend, handle, root: Path, said: list[str]):
    prepare(backend, handle, root)
    saved = backend.save(handle, root / "saved", level="files")
    with tarfile.open(root / "saved") as archive:
        members = archive.getmembers()
        contents = [archive.extractfile(each).read() for each in members if each.isreg()]
    said.append(f"{saved.size_bytes} bytes: {[each.name for each in members]}")
    (root / "saved").unlink()
    if not any(each.name == "root/out/plain" for each in members):
        return "nothing was saved"
    return "the canary was saved" if any(CANARY.encode() in each for each in contents) else None


def hostile_members(root: Path) -> dict[str, list[tarfile.TarInfo]]:
    """Archives that no agent of ours would write, by what they try."""

    def member(name: str, **changes) -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.size = 0 if "type" in changes else 5
        for key, value in changes.items():
            setattr(made, key, value)
        return made

    link, hard, disk = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.BLKTYPE
    return {
        "through a link": [
            member("root/evil", type=link, linkname=str(root)),
            member("root/evil/written"),
        ],
        "a link for a top": [member("root", type=link, linkname=str(root)), member("root/written")],
        "upwards": [member(f"root/../../../../..{root}/written")],
        "absolute": [member(f"{root}/written")],
        "another directory": [member("usr/bin/owned"), member("etc/owned")],
        "hard link": [member("root/owned", type=hard, linkname=f"{root}/canary")],
        "hard link upwards": [member("root/owned", type=hard, linkname="../../usr/bin/env")],
        "device": [member("root/owned", type=disk, devmajor=254, devminor=0)],
        "pipe": [member("root/owned", type=tarfile.FIFOTYPE)],
        "another owner": [member("root/fine", uid=1234, gid=1234, mode=0o6755)],
    }


def load_hostile(backend, handle, root: Path, said: list[str]):
    """Whatever an archive holds is made inside, below /root and /tmp, or not at all."""
    found = []
    look = f"ls -d {root}/written /usr/bin/owned /etc/owned /root/owned"
    for name, members in hostile_members(root).items():
        with tarfile.open(root / "hostile", "w", format=tarfile.PAX_FORMAT) as archive:
            for each in [*members, tarfile.TarInfo("state/end")]:
                archive.addfile(each, io.BytesIO(b"owned"[: each.size]))
        try:
            backend.load(handle, root / "hostile")
            answer = "loaded"
        except SandboxLimit as error:
            answer = str(error)[-60:]
        said.append(f"{name}: {answer}")
        seen = backend.execute(handle, Command(("sh", "-c", look))).stdout.decode().split()
        if seen or (root / "written").exists():
            found.append(f"{name}: {seen}")
    (root / "hostile").unlink()
    return found or None


def stop_strangers(backend, handle, root: Path, said: list[str]):
    """Numbers that name no program of the background: process 1, the agent, everybody."""
    for number in (-1, 0, 1, 2, 3, 4, 2**31):
        try:
            backend.stop_program(handle, number)
            said.append(f"{number}: nothing")
        except SandboxError as error:
            said.append(f"{number}: {error}")
    alive = backend.execute(handle, Command(("echo", "alive"))).stdout
    return None if alive == b"alive\n" else "something was stopped"


# -- all of it -----------------------------------------------------------------------------------


def bombs(backend: BubblewrapBackend, handle) -> dict[str, object]:
    """Each has a limit, and the sandbox answers afterwards."""
    found = {}
    for name, code in (("fork", FORK_BOMB), ("memory", MEMORY_BOMB), ("disk", DISK_FILL)):
        bomb = backend.execute(handle, Command(("python3", "-c", code)), timeout_seconds=20)
        found[name] = [bomb.exit_code, bomb.stdout.decode(), bomb.stderr.decode()[-200:]]
        found[f"{name}_oom"] = bomb.oom
        after = backend.execute(handle, Command(("echo", "alive")))
        found[f"after_{name}"] = after.stdout.decode()
    return found


def hoard(backend: BubblewrapBackend) -> dict[str, object]:
    """Two processes, each below the limit of the sandbox, together above it."""
    handle = backend.create(spec("hoard"))
    try:
        result = backend.execute(handle, Command(("python3", "-c", HOARD)), timeout_seconds=20)
        return {"oom": result.oom, "ended": None}
    except SandboxGone as gone:
        return {"oom": False, "ended": gone.reason}
    finally:
        backend.destroy(handle)


def stand_still(backend: BubblewrapBackend) -> dict[str, object]:
    """Whether a busy program uses no time while the sandbox is frozen, and goes on after."""
    handle = backend.create(spec("still"))

    def moves(looks: int) -> bool:
        inside = processes.descendants(backend._find(handle).process.pid)
        stats = [Path(f"/proc/{each.pid}/stat") for each in inside]
        before = [each.read_text().split()[13] for each in stats]
        return any([each.read_text().split()[13] for each in stats] != before for _ in range(looks))

    try:
        backend.start_program(handle, Command(("sh", "-c", "while :; do :; done")))
        moved = moves(10**6)
        backend.freeze(handle)
        still = not moves(1000)
        backend.unfreeze(handle)
        return {"moved": moved, "still": still, "moves": moves(10**6)}
    finally:
        backend.destroy(handle)


def become(user_id: int) -> None:
    """Another user, without a way back and without groups."""
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--user", type=int)
    parser.add_argument("--network", default="zerotrust")
    parser.add_argument("--toolbox", action="store_true")
    parser.add_argument("--no-filter", action="store_true")
    options = parser.parse_args()
    if options.toolbox:
        load_toolbox()  # the user we become may not read what is still to be imported for it
    if options.user is not None:
        become(options.user)
    if options.no_filter:
        start.build_filter = lambda: struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    os.environ["TURTLES_CANARY"] = SECRET
    values, held = canaries(options.root, options.network)
    victim, kept = held[2:]  # the listeners in front only have to stay open
    backend = BubblewrapBackend(options.root / "sandboxes")
    probed = backend.probe()
    found = {"uid": os.geteuid(), "probe": probed.reason, "enforcement": probed.enforcement}
    handle = backend.create(spec("escape", network=options.network, toolbox=options.toolbox))
    try:
        shown = Command(("ls", "/opt/turtles"))
        found["toolbox"] = backend.execute(handle, shown).stdout.decode().split()
        script = Path(__file__).with_name("probes.py").read_bytes()
        command = Command(("python3", "probes.py"), files={"probes.py": script})
        answer = backend.execute(handle, command, stdin=json.dumps(values).encode())
        if answer.exit_code != 0:
            raise SystemExit(answer.stderr.decode())
        *lines, last = answer.stdout.decode().splitlines()
        print("\n".join(lines))
        found["probes"] = json.loads(last)
        if not options.no_filter:
            found |= bombs(backend, handle)
            found["tricks"] = tricks(backend, options.root)
            found["hoard"] = hoard(backend)
            found["standstill"] = stand_still(backend)
            found["doors"] = through_the_doors(backend)
        found["victim_alive"] = victim.poll() is None
    finally:
        backend.close()
        victim.kill()
        forget(kept)
    found["left"] = [each.name for each in (options.root / "sandboxes").iterdir()]
    print(json.dumps(found))


main()
