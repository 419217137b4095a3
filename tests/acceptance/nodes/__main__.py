"""Money on real nodes: exactly-once under SIGKILL of ourselves and of the nodes.

    python -m tests.acceptance.nodes                 every boundary, 60 examples, all of monero
    python -m tests.acceptance.nodes --quick         as .ci/run: three minutes at most
    python -m tests.acceptance.nodes --only litecoin --seed 7

The two coins run side by side, in processes of their own.  Daemons are those of Debian, in regtest,
on ports of 127.0.0.1 that nobody used, in directories that are removed::

    apt-get install -y --no-install-recommends litecoind monero

Exit codes: 0 nothing was wrong, 1 something was, 2 a wrong option, 3 a daemon is not installed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import traceback
from pathlib import Path

import structlog

from tests.acceptance.nodes import litecoin_suite, monero_suite, purchase
from tests.acceptance.nodes.conformance import conforms
from tests.acceptance.nodes.daemon import BinariesMissing, die_with_parent, need
from tests.acceptance.nodes.leg import stopwatch
from tests.acceptance.nodes.litecoin import BINARY, Litecoin
from tests.acceptance.nodes.monero import DAEMON, WALLET_RPC, Monero, snapshot

EXAMPLES, EXAMPLES_QUICK = 60, 25
BAD, MISSING = 1, 3


def main() -> int:
    """The command; its exit code."""
    options = _options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        _need_daemons(options.only)
    except BinariesMissing as error:
        print(error, file=sys.stderr)
        return MISSING
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    coins = (options.only,) if options.only else ("litecoin", "monero")
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_coin, args=(coin, options.quick, seed), name=coin) for coin in coins
    ]
    elapsed = stopwatch()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    good = all(worker.exitcode == 0 for worker in workers)
    print(f"{'ok' if good else 'FAILED'} in {elapsed()} s", flush=True)
    return 0 if good else BAD


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance.nodes",
        description=str(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("litecoin", "monero"))
    parser.add_argument("--seed", type=int)
    return parser.parse_args()


def _need_daemons(only: str | None) -> None:
    if only != "monero":
        need(BINARY, "litecoind")
    if only != "litecoin":
        need(DAEMON, "monero")
        need(WALLET_RPC, "monero")


def _coin(coin: str, quick: bool, seed: int) -> None:
    """One coin's suite in a directory that is removed; exit code 1 when something is wrong."""
    die_with_parent()
    try:
        with tempfile.TemporaryDirectory(prefix=f"turtles-{coin}-") as name:
            suite = _litecoin if coin == "litecoin" else _monero
            suite(Path(name), quick, seed)
    except BaseException:  # noqa: BLE001 - whatever it was, the other coin's suite goes on
        print(f"{coin}: FAILED\n{traceback.format_exc()}", flush=True)
        sys.exit(BAD)


def _litecoin(directory: Path, quick: bool, seed: int) -> None:
    elapsed = stopwatch()
    node, tally = Litecoin(directory), litecoin_suite.Tally()
    try:
        _say("litecoin", f"up in {elapsed()} s")
        elapsed = stopwatch()
        checks = conforms(node)
        _say("litecoin", f"wallet conformance: {checks} checks in {elapsed()} s")
        elapsed = stopwatch()
        for script in litecoin_suite.SCRIPTS:
            script(node, tally)
        _say("litecoin", f"{len(litecoin_suite.SCRIPTS)} scripts in {elapsed()} s")
        elapsed = stopwatch()
        deaths = purchase.whole_purchases(node)
        _say("litecoin", f"{deaths + 1} whole purchases, {deaths} deaths in {elapsed()} s")
        elapsed = stopwatch()
        points = litecoin_suite.every_boundary(node, tally, quick=quick)
        _say("litecoin", f"{tally.deaths} deaths at boundaries in {elapsed()} s")
        elapsed = stopwatch()
        examples = EXAMPLES_QUICK if quick else EXAMPLES
        litecoin_suite.random_troubles(node, points, tally, examples=examples, seed=seed)
        _say("litecoin", f"{examples} examples in {elapsed()} s: {dict(tally.done)}")
        _say("litecoin", f"{tally.payments} payments, {tally.deaths} deaths, {dict(tally.ends)}")
    finally:
        node.close()


def _monero(directory: Path, quick: bool, seed: int) -> None:
    elapsed = stopwatch()
    snapshot()
    _say("monero", f"snapshot ready in {elapsed()} s")
    elapsed = stopwatch()
    node = Monero(directory)
    try:
        _say("monero", f"up in {elapsed()} s")
        elapsed = stopwatch()
        _say("monero", f"{monero_suite.errors_are_those_of_the_catalogue(node)}")
        _say("monero", f"{monero_suite.every_point(node)} in {elapsed()} s")
        elapsed = stopwatch()
        _say("monero", f"{monero_suite.reorganised(node)} in {elapsed()} s")
    finally:
        node.close()


def _say(coin: str, line: str) -> None:
    print(f"{coin}: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
