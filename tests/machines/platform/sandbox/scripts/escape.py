"""Sets canaries up on the host, runs probes.py and bombs in a sandbox, prints what was reached.

    escape.py ROOT [--user UID] [--no-filter]

`--user` gives up root after imports (an account need not exist). `--no-filter` installs a filter
that allows everything: the control that shows that the probes can fail.
"""

import argparse
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[5]))

from machines.platform.sandbox import start
from machines.platform.sandbox.backend import Command, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend

MIB = 1024 * 1024
SECRET = "canary-environment-7f3a"
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


def canaries(root: Path):
    listener = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0turtles-canary-{os.getpid()}")
    abstract.listen()
    victim = subprocess.Popen(["sleep", "300"])
    file = root / "canary"
    file.write_text("host")
    key = 0x7A000000 | (os.getpid() & 0xFFFFFF)
    segment = ctypes.CDLL(None).shmget(key, 4096, 0o1666)
    values = {
        "file": str(file),
        "port": listener.getsockname()[1],
        "abstract": f"turtles-canary-{os.getpid()}",
        "victim": victim.pid,
        "shm_key": key,
        "secret": SECRET,
        "root": str(root),
    }
    return values, (listener, abstract, victim, segment)


def spec(name: str, **changes) -> Spec:
    limits = {"memory_bytes": 256 * MIB, "disk_bytes": 16 * MIB, "pids": 32, **changes}
    return Spec(name, **limits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--user", type=int)
    parser.add_argument("--no-filter", action="store_true")
    options = parser.parse_args()
    if options.user is not None:
        os.setgroups([])
        os.setresgid(options.user, options.user, options.user)
        os.setresuid(options.user, options.user, options.user)
    if options.no_filter:
        start.build_filter = lambda: struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    os.environ["TURTLES_CANARY"] = SECRET
    values, held = canaries(options.root)
    victim, segment = held[2:]  # the listeners in front only have to stay open
    backend = BubblewrapBackend(options.root / "sandboxes")
    found = {"uid": os.geteuid(), "probe": backend.probe().reason}
    found["enforcement"] = backend.probe().enforcement
    handle = backend.create(spec("escape"))
    try:
        command = Command(
            ("python3", "probes.py"),
            files={"probes.py": Path(__file__).with_name("probes.py").read_bytes()},
        )
        answer = backend.execute(handle, command, stdin=json.dumps(values).encode())
        if answer.exit_code != 0:
            raise SystemExit(answer.stderr.decode())
        found["probes"] = json.loads(answer.stdout)
        for name, code in (("fork", FORK_BOMB), ("memory", MEMORY_BOMB), ("disk", DISK_FILL)):
            bomb = backend.execute(handle, Command(("python3", "-c", code)), timeout_seconds=20)
            found[name] = [bomb.exit_code, bomb.stdout.decode(), bomb.stderr.decode()[-200:]]
            found[f"{name}_oom"] = bomb.oom
            after = backend.execute(handle, Command(("echo", "alive")))
            found[f"after_{name}"] = after.stdout.decode()
        found["victim_alive"] = victim.poll() is None
    finally:
        backend.destroy(handle)
        victim.kill()
        ctypes.CDLL(None).shmctl(segment, 0, None)
    found["left"] = [each.name for each in (options.root / "sandboxes").iterdir()]
    print(json.dumps(found))


main()
