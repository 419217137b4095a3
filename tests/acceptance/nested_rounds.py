"""Rounds of the kill storm over a nested chain: every process of it may die at any moment.

::

    the command         starts the platform, builds layer 1        killed, and started again
    the platform        all sandboxes die with it                  killed; its keeper starts it
    an engine inside    builds layer k + 1 in the sandbox of k     killed; its attendant starts it

A round is over when the command has ended by itself.  What is looked at then cannot lie: the
platform's own tables.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

from tests.acceptance.kill_storm import (
    CURRENCIES,
    FINISH_SECONDS,
    ROOT,
    Round,
    check_doctor,
    check_leftovers,
    check_result,
    check_secrets,
    finish,
    kill_platform,
    sandbox_processes,
)

PRICE_CENTS = 700
PAUSE_SECONDS = 0.1


class NestedRound(Round):
    """A round whose layers are inside one another."""

    def command(self) -> list[str]:
        """The one command that is killed and repeated."""
        return self.turtles(
            "inception", "--depth", str(self.depth), "--currency", self.currency,
            "--data-dir", str(self.data_dir), "--json",
        )  # fmt: skip


def run_all(options: argparse.Namespace) -> int:
    """Run the rounds; 0 when all of them hold."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, {options.rounds} nested rounds of depth {options.depth}", flush=True)
    chance = random.Random(seed)
    failed = 0
    for number in range(1, options.rounds + 1):
        with tempfile.TemporaryDirectory(prefix="turtles-storm-") as name:
            one = NestedRound(
                number=number,
                currency=CURRENCIES[number % len(CURRENCIES)],
                depth=options.depth,
                data_dir=Path(name) / "data",
                kill_platform=False,
                kills=chance.randint(1, 4),
            )
            began = time.monotonic()
            problems = storm(one, chance, options.typical_seconds * (1 + options.depth))
            took = time.monotonic() - began
        verdict = "ok" if not problems else "FAILED: " + "; ".join(problems)
        where = " ".join(one.killed_at) or "too late, it was done"
        print(
            f"round {number:3} {one.currency:4} killed {where}  {took:5.1f}s  {verdict}", flush=True
        )
        failed += bool(problems)
    print(f"nested kill storm: {options.rounds - failed} passed, {failed} failed")
    return 1 if failed else 0


def storm(one: NestedRound, chance: random.Random, typical_seconds: float) -> list[str]:
    """Kill and repeat, then check; what is wrong, if anything."""
    before = sandbox_processes()
    try:
        trouble(one, chance, typical_seconds)
        result = finish(one)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return [str(error)]
    finally:
        left = kill_platform(one)
    problems = check_result(one, result)
    if result.get("card_left_cents") != 0:
        problems.append(f"{result.get('card_left_cents')} cents are left on the card")
    problems += check_journals(result) + check_money(one) + check_sessions(one)
    problems += check_doctor(one)
    if left:
        problems.append("the platform was left running")
    return problems + check_leftovers(one, before) + check_secrets(one)


def trouble(one: NestedRound, chance: random.Random, typical_seconds: float) -> None:
    """Kill as often as was drawn, or until the command has ended by itself."""
    kills = one.kills
    while kills:
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                one.command(), stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            kills = _kill_while_it_runs(one, child, chance, typical_seconds, kills)
            output.seek(0)
            one.printed.append(output.read())
        if child.returncode == 0:
            return


def _kill_while_it_runs(
    one: NestedRound,
    child: subprocess.Popen[bytes],
    chance: random.Random,
    typical_seconds: float,
    kills: int,
) -> int:
    """Kill platform and engines under it, and the command itself at last; the kills still due."""
    while kills:
        after_seconds = chance.uniform(0.5, typical_seconds)
        try:
            child.wait(timeout=after_seconds)
            return kills
        except subprocess.TimeoutExpired:
            kills -= 1
        victim = chance.choice(("command", "platform", "engine", "engine"))
        if victim == "engine" and kill_engine(one, chance, after_seconds):
            continue
        if victim == "platform" and kill_platform(one):
            continue
        child.send_signal(signal.SIGKILL)
        child.wait()
        one.killed_at.append(f"command@{after_seconds:.1f}s")
        return kills
    try:
        child.wait(timeout=FINISH_SECONDS)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
    return kills


def kill_engine(one: NestedRound, chance: random.Random, after_seconds: float) -> bool:
    """SIGKILL one engine inside a sandbox of this round; whether there was one."""
    found = engines(one)
    if not found:
        return False
    victim = chance.choice(found)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return False
    one.killed_at.append(f"engine {found.index(victim) + 1}/{len(found)}@{after_seconds:.1f}s")
    return True


def engines(one: NestedRound) -> list[int]:
    """The engines that work inside sandboxes of this round's platform, as the host sees them."""
    try:
        platform = json.loads((one.data_dir / "platform" / "ready.json").read_text())["pid"]
    except (OSError, ValueError):
        return []
    parents, serving = {}, []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if b"layer" in words and b"serve" in words and b"-m" in words:
            serving.append(int(entry.name))
    return sorted(pid for pid in serving if _descends(pid, platform, parents))


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = parents.get(pid, 0)
    return False


def check_journals(result: dict[str, object]) -> list[str]:
    """Every sandbox has told the journal of its own engine; the last one ended at the bound."""
    layers = result["layers"]
    assert isinstance(layers, list)
    problems = [f"layer {one['depth']} has no journal" for one in layers if not one["journal"]]
    ends = {step["target"] for step in layers[-1]["journal"]} if layers else set()
    if not problems and "too_deep" not in ends:
        problems.append("the engine in the deepest sandbox did not end as too_deep")
    return problems


def _rows(one: NestedRound, query: str) -> list[tuple[object, ...]]:
    file = one.data_dir / "platform" / "platform.db"
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchall()


def check_money(one: NestedRound) -> list[str]:
    """Two payments, the first key and the card; one redemption for each further layer."""
    command = one.turtles("platform", "ledger", "--data-dir", str(one.data_dir), "--json")
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=60)
    one.printed += [done.stdout, done.stderr]
    if done.returncode != 0:
        return [f"ledger: exit {done.returncode} {done.stderr[-300:]!r}"]
    ledger = json.loads(done.stdout)
    problems = [] if ledger["consistent"] else ["money is not conserved"]
    paid = [invoice for invoice in ledger["invoices"] if invoice["received_atomic"]]
    prices = sorted(invoice["price_cents"] for invoice in paid)
    expected = sorted([PRICE_CENTS, PRICE_CENTS * (one.depth - 1)] if one.depth > 1 else [700])
    if prices != expected:
        problems.append(f"paid were invoices of {prices} cents instead of {expected}")
    for invoice in paid:
        if invoice["confirmed_spends"] != 1 or len(invoice["transactions"]) != 1:
            problems.append(f"an invoice was paid by {invoice['confirmed_spends']} spends")
    redeemed = _rows(one, "SELECT state, price_cents FROM gift_redemption")
    if sorted(redeemed) != [("redeemed", PRICE_CENTS)] * (one.depth - 1):
        problems.append(f"redemptions: {redeemed}")
    left = [cents for (cents,) in _rows(one, "SELECT balance_cents FROM gift_card WHERE "
            "card_id IN (SELECT card_id FROM gift_redemption)")]  # fmt: skip
    if left != [0] * (one.depth > 1):
        problems.append(f"balances of cards: {left}")
    return problems


def check_sessions(one: NestedRound) -> list[str]:
    """No sandbox is left that anybody believes alive."""
    live = _rows(one, "SELECT session_id, state FROM session WHERE state <> 'terminated'")
    return [f"sessions that live on: {live}"] if live else []
