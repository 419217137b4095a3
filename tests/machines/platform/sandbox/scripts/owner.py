"""A platform process that makes sandboxes and waits to be killed: owner.py ROOT COUNT.

Prints one JSON line: the processes and cgroup directories of its sandboxes. With `--stuck`, it
also pretends to be a sandbox's leftover: a process in the record that does not end by itself. With
`--frozen`, they stand still when it dies.
"""
# ruff: noqa: E402 - the checkout must be importable, and logging off standard output, first

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[5]))

import structlog

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

from machines.platform.sandbox import processes
from machines.platform.sandbox.backend import MIB, Command, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.records import read_record, write_record


def main() -> None:
    root, count = Path(sys.argv[1]), int(sys.argv[2])
    backend = BubblewrapBackend(root)
    pids, groups = [], []
    for number in range(count):
        spec = Spec(f"orphan-{number}", memory_bytes=256 * MIB, disk_bytes=16 * MIB, pids=40)
        handle = backend.create(spec)
        busy = Command(("bash", "-c", "setsid sleep 600 >/dev/null 2>&1 </dev/null & true"))
        backend.execute(handle, busy)
        record = read_record(root / handle.sandbox_id)
        pids += [each.pid for each in record.processes]
        pids += [each.pid for each in processes.descendants(record.processes[-1].pid)]
        groups += record.cgroups
        if "--frozen" in sys.argv:
            backend.freeze(handle)
    if "--stuck" in sys.argv:
        nothing = subprocess.DEVNULL
        left = subprocess.Popen(
            ["sleep", "600"], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
        identity = processes.identify(left.pid)
        directory = root / "orphan-0"
        record = read_record(directory)
        write_record(directory, replace(record, processes=(*record.processes, identity)))
        pids.append(left.pid)
    print(json.dumps({"pids": sorted(set(pids)), "groups": groups}), flush=True)
    sys.stdin.read()


main()
