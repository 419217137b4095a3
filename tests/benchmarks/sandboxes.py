"""Figures of real sandboxes, each as a ratio against a baseline measured in the same run.

    python -m tests.benchmarks.sandboxes            some minutes
    python -m tests.benchmarks.sandboxes --quick    some seconds; for CI
    ... --together 200 --cycles 1000                how many at once, and for the search for leaks

- create, destroy, a warm Python cell, `/bin/true`, freeze and unfreeze: p50 and p95, beside bare
  `bwrap` with a few namespaces running `true`, and bare `python3 -c pass`, one of each in turn;
- memory of an idle session, by its cgroup and by what the machine has less;
- many sandboxes alive at once, each answering;
- after many cycles of create, execute and destroy: the same processes, descriptors, cgroups and
  directories as before. Anything more is printed and the exit code is 1.

No time is asserted: this machine may be busy, and its load is printed beside the figures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog

from machines.platform.sandbox import processes
from machines.platform.sandbox.backend import MIB, Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.layout import find_interpreter
from machines.platform.sandbox.program import find_candidates

TRUE = Command(("/bin/true",))
_WARM_UP = 2


def main() -> int:
    """Print the figures; 0, or 1 when something was left behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--together", type=int)
    parser.add_argument("--cycles", type=int)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    together = options.together or (10 if options.quick else 200)
    cycles = options.cycles or (20 if options.quick else 1000)
    with new_backend() as backend:
        print(f"enforcement {backend.probe().enforcement}; load {loads()} on {os.cpu_count()} CPUs")
        latencies(backend, 5 if options.quick else 50)
        at_once(backend, together)
        print(f"load {loads()}")
        return 1 if leaks(backend, cycles) else 0


@contextmanager
def new_backend() -> Iterator[BubblewrapBackend]:
    """A backend with a root of its own. A machine that cannot isolate is an error."""
    with tempfile.TemporaryDirectory(prefix="turtles-bench-") as name:
        backend = BubblewrapBackend(Path(name))
        probe = backend.probe()
        if not probe.ok:
            raise SystemExit(f"{probe.reason}. Fix: {probe.fix}")
        try:
            yield backend
        finally:
            backend.close()


def loads() -> str:
    """Load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{each:.1f}" for each in os.getloadavg())


def spec(name: str) -> Spec:
    """A small session."""
    return Spec(name, memory_bytes=256 * MIB, disk_bytes=16 * MIB, pids=40)


# -- latencies -----------------------------------------------------------------------------------


def latencies(backend: BubblewrapBackend, count: int) -> None:
    """Times of single operations, taken in turn with their baselines."""
    found: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        call()
        found.setdefault(name, []).append((time.perf_counter() - began) * 1000)

    for number in range(count + _WARM_UP):
        if number == _WARM_UP:
            found.clear()
        handle = Handle(f"bench-{number}")
        timed("bare bwrap true", bare_bubblewrap)
        timed("bare python3 -c pass", bare_python)
        timed("create", partial(backend.create, spec(handle.sandbox_id)))
        timed("first Python cell", partial(backend.cell, handle, "python3", "x = 1"))
        for _ in range(6):
            timed("warm Python cell", partial(backend.cell, handle, "python3", "x"))
            timed("execute /bin/true", partial(backend.execute, handle, TRUE))
            timed("freeze", partial(backend.freeze, handle))
            timed("unfreeze", partial(backend.unfreeze, handle))
        timed("destroy", partial(backend.destroy, handle))
    base = quantile(found["bare python3 -c pass"], 0.5)
    print(f"ms, {count} sandboxes           p50      p95   ratio of p50 to bare python3 -c pass")
    for name, times in found.items():
        middle, high = quantile(times, 0.5), quantile(times, 0.95)
        print(f"  {name:22} {middle:9.2f} {high:8.2f}   {middle / base:6.3f}")


def bare_bubblewrap() -> None:
    """What the namespaces alone cost, with nothing of ours."""
    program = find_candidates()[0]
    words = ("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts")
    with program.opened() as opened:
        subprocess.run(
            [opened.path, *words, "--ro-bind", "/", "/", "--proc", "/proc", "/bin/true"],
            env=dict(opened.environment),
            pass_fds=opened.descriptors,
            check=True,
        )


def bare_python() -> None:
    """What one start of an interpreter costs."""
    subprocess.run([find_interpreter().program, "-I", "-S", "-c", "pass"], check=True)


def quantile(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


# -- many at once --------------------------------------------------------------------------------


def at_once(backend: BubblewrapBackend, count: int) -> None:
    """All alive together, each answering; memory of one while idle."""
    handles = [Handle(f"together-{number}") for number in range(count)]
    before, began = available_bytes(), time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda handle: backend.create(spec(handle.sandbox_id)), handles))
        created = time.perf_counter() - began
        less = before - available_bytes()
        counted = sum(backend.stats(handle).memory_bytes for handle in handles)
        began = time.perf_counter()
        codes = set(pool.map(lambda handle: backend.execute(handle, TRUE).exit_code, handles))
        answered = time.perf_counter() - began
        began = time.perf_counter()
        list(pool.map(backend.destroy, handles))
        destroyed = time.perf_counter() - began
    if codes != {0}:
        raise SystemExit(f"{count} at once: /bin/true ended with {sorted(codes)}")
    each = [f"{seconds / count * 1000:.1f}" for seconds in (created, answered, destroyed)]
    print(f"{count} sandboxes at once, all of them answered")
    print(f"  ms each, by 4 threads: create {each[0]}, execute {each[1]}, destroy {each[2]}")
    print(
        f"  MB of an idle session: {counted / count / 1e6:.1f} as counted for it, "
        f"{less / count / 1e6:.1f} less available on the machine"
    )


def available_bytes() -> int:
    """Memory that the machine could still give."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/meminfo tells no MemAvailable")


# -- leaks ---------------------------------------------------------------------------------------


def leaks(backend: BubblewrapBackend, cycles: int) -> bool:
    """Whether anything is left after many cycles; printed when so."""
    cycle(backend, "warm-up")
    before, began = inventory(backend), time.perf_counter()
    for number in range(cycles):
        cycle(backend, f"cycle-{number}")
    took = time.perf_counter() - began
    after = inventory(backend)
    print(f"{cycles} cycles of create, execute, destroy: {took / cycles * 1000:.1f} ms each")
    for name, there in before.items():
        more = sorted(after[name] - there)
        print(f"  {name}: {len(there)} before, {len(after[name])} after {more[:10] or ''}")
    return any(len(after[name]) != len(there) for name, there in before.items())


def cycle(backend: BubblewrapBackend, name: str) -> None:
    """A life of a sandbox, with something in its background and a standstill."""
    handle = backend.create(spec(name))
    try:
        text = "sleep 600 >/dev/null 2>&1 & echo ok"
        if backend.execute(handle, Command(("sh", "-c", text))).stdout != b"ok\n":
            raise SystemExit(f"{name}: the sandbox did not answer")
        backend.freeze(handle)
    finally:
        backend.destroy(handle)


def inventory(backend: BubblewrapBackend) -> dict[str, set[str]]:
    """What a sandbox could leave behind."""
    parents = backend._tree.parents.values() if backend._tree else ()
    groups = [each for parent in parents for each in parent.glob(f"{backend._group_prefix}*")]
    return {
        "processes": {str(each.pid) for each in processes.descendants(os.getpid())},
        "descriptors": {each.name for each in Path("/proc/self/fd").iterdir()},
        "cgroups": {str(each) for each in groups},
        "directories": {each.name for each in backend._root.iterdir()},
    }


if __name__ == "__main__":
    sys.exit(main())
