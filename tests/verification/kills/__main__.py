"""Processes killed at exact boundaries, and crashes in memory: nothing may be lost or done twice.

    python -m tests.verification.kills                            every boundary once, then memory
    python -m tests.verification.kills --kills 500 --seed 1       so many SIGKILLs
    python -m tests.verification.kills --memory 20000             so many crashes in memory
    python -m tests.verification.kills --kills 100 --defect "no transactions"    see it fail
    python -m tests.verification.kills --only 1:345               one sequence again (`--memory 1
                                                                  --only 1:345` for one of those)

Controls come first: with a defect planted, something must be found within 60 sequences.  `killing`
says what a boundary is, `memory` how it differs there, `checks` what must hold, `purchase` what is
run.  Rates are deaths a minute by the clock on the wall, all processes together, checks included.

Exit codes: 0 nothing was wrong, 1 something was, 2 a wrong option, 3 a control failed to fail.

What is not done: kills from outside at no boundary at all (they fall between two of these), death
of the whole machine (`power_loss`), two workers at the same time.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection, wait
from typing import Any

import structlog

from tests.verification.kills.defects import DEFECTS, NEEDS_STATEMENTS, planted
from tests.verification.kills.killing import Killer, file_system, work_directory
from tests.verification.kills.memory import Memory
from tests.verification.kills.tally import Make, Sequence, Share, Tally

KILLS, MEMORY = "SIGKILLs", "crashes in memory"
MEMORY_DEATHS = 20_000
CONTROLS = ("intent after effect", "effect inside the transaction", "no transactions")
CONTROL_SEQUENCES = 60
SHOWN = 5


@dataclass
class Campaign:
    """One kind of deaths: what was asked for, and what came of it."""

    kind: str
    deaths: int | None
    names: list[str]
    total: Tally
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        """What is reported, by name."""
        total = self.total
        return {
            "kind": self.kind,
            "deaths": total.deaths,
            "of_them_while_recovering": total.recovering,
            "sequences": total.sequences,
            "boundaries": len(self.names),
            "boundaries_died_at": len(total.boundaries),
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "deaths_a_minute": round(total.deaths / max(self.seconds, 0.001) * 60),
            "violations": len(total.bad),
            "bad": [_as_json(bad) for bad in total.bad],
        }


def _as_json(one: Sequence) -> dict[str, Any]:
    return {"only": one.token, "deaths": one.deaths, "problems": one.bad}


def main() -> int:
    """The command; its exit code."""
    options = _options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    if options.only is not None:
        return _again(options)
    _say(options, f"seed {seed}, {options.jobs} processes, files in {file_system()}")
    campaigns = [_prepared(kind, deaths) for kind, deaths in _asked(options)]
    if options.defect is None:
        for campaign in campaigns:
            if not _controls(options, campaign, seed):
                return 3
    for campaign in campaigns:
        with planted(options.defect):
            _run(options, campaign, seed)
    _report(options, campaigns, seed)
    return 1 if any(campaign.total.bad for campaign in campaigns) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.verification.kills",
        description=str(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=_positive, help="SIGKILLs; default: every boundary once")
    parser.add_argument("--memory", type=_positive, help="crashes in memory")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=_positive, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--defect", choices=sorted(DEFECTS), help="plant it, and no controls")
    parser.add_argument("--only", type=_token, metavar="SEED:NUMBER")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def _token(text: str) -> tuple[int, int]:
    seed, separator, number = text.partition(":")
    if not separator or not seed.isdigit() or not number.isdigit() or number == "0":
        raise argparse.ArgumentTypeError(f"expected SEED:NUMBER, two whole numbers, got {text!r}")
    return int(seed), int(number)


def _asked(options: argparse.Namespace) -> list[tuple[str, int | None]]:
    if options.kills is None and options.memory is None:
        return [(KILLS, None), (MEMORY, MEMORY_DEATHS)]
    asked = [(KILLS, options.kills), (MEMORY, options.memory)]
    return [(kind, deaths) for kind, deaths in asked if deaths is not None]


@contextmanager
def _maker(kind: str) -> Iterator[Killer | Memory]:
    """What makes the sequences of a kind."""
    if kind == KILLS:
        with work_directory() as directory:
            yield Killer(directory)
        return
    memory = Memory()
    try:
        yield memory
    finally:
        memory.close()


def _prepared(kind: str, deaths: int | None) -> Campaign:
    with _maker(kind) as maker:
        return Campaign(kind, deaths, maker.boundaries(), Tally())


def _again(options: argparse.Namespace) -> int:
    """Make one sequence again, and tell all of it."""
    kind = MEMORY if options.memory is not None and options.kills is None else KILLS
    count = len(_prepared(kind, None).names)
    with planted(options.defect), _maker(kind) as maker:
        seed, number = options.only
        one = maker.sequence(seed, number, count)
    if options.json:
        print(json.dumps(_as_json(one)))
    else:
        _tell(one)
    return 1 if one.bad else 0


def _controls(options: argparse.Namespace, campaign: Campaign, seed: int) -> bool:
    """Whether these deaths catch what they are there to catch."""
    for name in CONTROLS:
        if campaign.kind == MEMORY and name in NEEDS_STATEMENTS:
            continue
        with planted(name), _maker(campaign.kind) as maker:
            tried, found = _first(maker.sequence, Share(seed, len(campaign.names), None))
        if found is None:
            print(f"control: {name!r} was not found in {tried} sequences of {campaign.kind}")
            return False
        _say(
            options,
            f"control: {name!r} found by sequence {tried} of {campaign.kind}: {found.bad[0][-99:]}",
        )
    return True


def _first(make: Make, share: Share) -> tuple[int, Sequence | None]:
    """The first sequence in which something is wrong, and how many there were by then."""
    tried = 0
    for tried, number in enumerate(share.numbers(), start=1):
        one = make(share.seed, number, share.boundaries)
        if one.bad:
            return tried, one
        if tried == CONTROL_SEQUENCES:
            break
    return tried, None


def _run(options: argparse.Namespace, campaign: Campaign, seed: int) -> None:
    began, cpu_seconds, shown = time.monotonic(), _cpu_seconds(), 0.0
    for tally in _tallies(campaign, seed, options.jobs):
        campaign.total.add(tally)
        campaign.seconds = time.monotonic() - began
        if campaign.seconds - shown > 2:
            shown = campaign.seconds
            _say(options, _line(campaign))
    campaign.seconds = time.monotonic() - began
    campaign.cpu_seconds = _cpu_seconds() - cpu_seconds


def _cpu_seconds() -> float:
    """Of this process and of all those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _tallies(campaign: Campaign, seed: int, jobs: int) -> Iterator[Tally]:
    """What the processes report, as it comes.

    Raises:
        RuntimeError: one of them failed; it has said why.
    """
    running: dict[Connection, Process] = {}
    for number in range(jobs):
        deaths = campaign.deaths
        quota = None if deaths is None else max(deaths // jobs + (number < deaths % jobs), 1)
        share = Share(seed, len(campaign.names), quota, number, jobs)
        receiver, sender = Pipe(duplex=False)
        process = Process(target=_work, args=(sender, campaign.kind, share))
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


def _work(pipe: Connection, kind: str, share: Share) -> None:
    """What one process does: tallies go into the pipe."""
    with _maker(kind) as maker:
        for tally in share.tallies(maker.sequence):
            pipe.send(tally)


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.json:
        print(text, flush=True)


def _line(campaign: Campaign) -> str:
    total = campaign.total
    asked = "" if campaign.deaths is None else f" / {campaign.deaths:,}"
    rate = total.deaths / campaign.seconds * 60
    return (
        f"  {total.deaths:>7,}{asked} {campaign.kind}  {campaign.seconds:6.1f} s  "
        f"{rate:,.0f} a minute  {len(total.bad)} violations"
    )


def _report(options: argparse.Namespace, campaigns: list[Campaign], seed: int) -> None:
    figures = [campaign.figures() for campaign in campaigns]
    if options.json:
        print(json.dumps({"seed": seed, "files_in": str(file_system()), "campaigns": figures}))
        return
    for campaign in campaigns:
        for bad in campaign.total.bad[:SHOWN]:
            _tell(bad)
    width = max(len(campaign.kind) for campaign in campaigns)
    print(" " * width, "deaths  recovering  boundaries      seconds     cpu  a minute  violations")
    for one in figures:
        print(
            f"{one['kind']:<{width}} {one['deaths']:>6,}  {one['of_them_while_recovering']:>10,}  "
            f"{one['boundaries_died_at']:>5,} / {one['boundaries']:<5,} {one['seconds']:>9.1f}  "
            f"{one['cpu_seconds']:>6.1f}  {one['deaths_a_minute']:>8,}  {one['violations']:>10,}"
        )


def _tell(one: Sequence) -> None:
    print(f"sequence {one.token}" + (":" if one.bad else ": nothing is wrong"))
    for number, death in enumerate(one.deaths, start=1):
        at, _, name = death.partition(" ")
        print(f"  process {number} died at boundary {at}, {name}")
    for problem in one.bad[:SHOWN]:
        print(f"  WRONG {problem}")
    if one.bad:
        print(f"  again: --only {one.token}")


if __name__ == "__main__":
    sys.exit(main())
