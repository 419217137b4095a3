"""Simulated power losses under the real store: no acknowledged commit may be gone afterwards.

    python -m tests.verification.power_loss                   10,000 losses, about a minute
    python -m tests.verification.power_loss --losses 300      a few seconds
    python -m tests.verification.power_loss --synchronous NORMAL --losses 100

The last shows what it looks like when it fails.  Without `--synchronous` the failure is looked for
first, as a control: with `NORMAL` an acknowledged commit must be lost within 10 losses, otherwise
these losses are too gentle to prove anything.

Exit codes: 0 nothing was lost, 1 something was (or else went wrong), 2 a wrong option, 3 the
control failed to fail.

What is not modelled: disks that lie (a sync that returns before the data is safe), sectors that
decay or hold noise where the power went while they were written, file systems that lose what they
had synced, and losses of memory while the program goes on (shared memory, a file system that
reports a failed sync once).  `recorder` says how operations are seen, `disk` what a loss may leave,
`campaign` what must hold then.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection, wait
from pathlib import Path

import structlog

from persistence.database import Synchronous
from tests.verification.power_loss.campaign import Loss, Tally, lose

CONTROL_LOSSES = 10


def main() -> int:
    """The command; its exit code."""
    options = _options()
    _quiet()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, {options.losses:,} power losses, {options.jobs} processes", flush=True)
    if options.synchronous is None and not _control(seed):
        return 3
    total, began = Tally(), time.monotonic()
    synchronous: Synchronous = options.synchronous or "FULL"
    for tally in _tallies(options.losses, options.jobs, seed, synchronous):
        total.add(tally)
        _show(total, options.losses, time.monotonic() - began)
        for bad in tally.bad[:3]:
            _tell(bad, options.keep)
    print(
        f"  {total.operations:,} operations recorded, power lost after {total.points:,} of them; "
        f"{total.promises:,} acknowledgements; {total.images:,} different images looked at; "
        f"{total.went_on:,} programs went on to their end"
    )
    others = sum(bool(bad.problems) for bad in total.bad)
    if others:
        print(f"power loss: {others:,} losses left something else wrong")
    print(f"power loss: {total.losses:,} simulated, {total.lost:,} acknowledged commits lost")
    return 1 if total.bad else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--losses", type=_positive, default=10_000)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=_positive, default=2)
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL"))
    parser.add_argument("--keep", type=Path, help="where to put the files of bad losses")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def _quiet() -> None:
    """Lost leases and refusals are what the program is about; nobody need read of them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _control(seed: int) -> bool:
    """Whether these losses catch a store that does not sync its commits."""
    total = Tally()
    for tally in lose(
        losses=CONTROL_LOSSES,
        seed=f"{seed}/control",
        synchronous="NORMAL",
        checkpoint_pages=1_000,  # as SQLite has it: every checkpoint is a sync that helps
    ):
        total.add(tally)
    bad = [loss for loss in total.bad if loss.lost]
    if not bad:
        print(f"control: NORMAL lost nothing in {total.losses} losses; expected it to fail")
        return False
    print(f"control: NORMAL lost commits in {len(bad)} of {total.losses} losses, as it must:")
    _tell(bad[0], None)
    return True


def _share(pipe: Connection, losses: int, seed: str, synchronous: Synchronous) -> None:
    """What one process does: tallies go into the pipe."""
    _quiet()
    for tally in lose(losses=losses, seed=seed, synchronous=synchronous):
        pipe.send(tally)


def _tallies(losses: int, jobs: int, seed: int, synchronous: Synchronous) -> Iterator[Tally]:
    """What the processes report, as it comes.

    Raises:
        RuntimeError: one of them failed; it has said why.
    """
    running: dict[Connection, Process] = {}
    for number in range(jobs):
        receiver, sender = Pipe(duplex=False)
        share = losses // jobs + (number < losses % jobs)
        process = Process(target=_share, args=(sender, share, f"{seed}/{number}", synchronous))
        process.start()
        sender.close()
        running[receiver] = process
    while running:
        for pipe in wait(list(running)):
            assert isinstance(pipe, Connection)
            try:
                yield pipe.recv()
            except EOFError:
                process = running.pop(pipe)
                process.join()
                if process.exitcode != 0:
                    raise RuntimeError(f"a process ended with {process.exitcode}") from None


def _show(total: Tally, losses: int, seconds: float) -> None:
    rate = total.losses / seconds * 60
    print(
        f"  {total.losses:>7,} / {losses:,}  {seconds:6.1f} s  {rate:,.0f} a minute  "
        f"{total.lost:,} acknowledged commits lost",
        flush=True,
    )


def _tell(bad: Loss, keep: Path | None) -> None:
    print(f"  {bad.where}")
    for label in bad.lost[:5]:
        print(f"    acknowledged, and lost: {label}")
    for problem in bad.problems[:5]:
        print(f"    {problem}")
    if keep is not None:
        folder = keep / "".join(c if c.isalnum() else "-" for c in bad.where)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in bad.image.items():
            (folder / name).write_bytes(content)
        print(f"    files: {folder}")


if __name__ == "__main__":
    sys.exit(main())
