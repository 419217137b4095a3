"""Kill it anywhere: `turtles inception`, SIGKILLed at random moments, until it is done.

    python -m tests.acceptance.kill_storm --rounds 50
    python -m tests.acceptance.kill_storm --nested --depth 4 --rounds 25

Each round starts the command in a fresh directory, kills it 1 to 5 times (in every second round
the platform too), starts it again until it is done, and then looks at what cannot lie:

- the ledger: exactly one confirmed spend for each invoice, one invoice for each layer;
- `turtles doctor`: clean;
- no sandbox process and no sandbox directory is left;
- no secret in plain text in any file of the directory, nor in anything that was printed.

With `--nested` each layer is an engine inside the sandbox above it (tests/acceptance/
nested_rounds.py): the victims are then the command, the platform, and the engines, found on the
host by /proc.  Two invoices are paid, the first key and the card, whatever died; every further
layer has one redemption; nothing is left on the card.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CURRENCIES = ("XMR", "BTC", "LTC", "DOGE")
SECRET = re.compile(rb"unsb-sk-[a-z0-9]{5}(?:-[a-z0-9]{5}){3}", re.IGNORECASE)
ATTEMPTS_MAX = 12
FINISH_SECONDS = 180


@dataclass
class Round:
    """One round: where it lives, and what was done to it."""

    number: int
    currency: str
    depth: int
    data_dir: Path
    kill_platform: bool
    kills: int
    printed: list[bytes] = field(default_factory=list)
    killed_at: list[str] = field(default_factory=list)

    def turtles(self, *arguments: str) -> list[str]:
        """The command line of the program under test."""
        return [sys.executable, "-m", "machines.cli", *arguments]

    def command(self) -> list[str]:
        """The one command that is killed and repeated."""
        return self.turtles(
            "inception", "--trust", "zerotrust", "--depth", str(self.depth),
            "--currency", self.currency,
            "--data-dir", str(self.data_dir), "--json",
        )  # fmt: skip


def main() -> int:
    """Run the rounds; 0 when all of them hold."""
    options = _options()
    if options.nested:
        from tests.acceptance import nested_rounds

        return nested_rounds.run_all(options)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, {options.rounds} rounds", flush=True)
    chance = random.Random(seed)
    typical, passed, failed = options.typical_seconds, 0, 0
    for number in range(1, options.rounds + 1):
        with tempfile.TemporaryDirectory(prefix="turtles-storm-") as name:
            one = Round(
                number=number,
                currency=CURRENCIES[number % len(CURRENCIES)],
                depth=options.depth,
                data_dir=Path(name) / "data",
                kill_platform=number % 2 == 0,
                kills=chance.randint(1, 5),
            )
            began = time.monotonic()
            problems = storm(one, chance, typical)
            took = time.monotonic() - began
        verdict = "ok" if not problems else "FAILED: " + "; ".join(problems)
        where = " ".join(one.killed_at) or "too late, it was done"
        line = f"round {number:3} {one.currency:4} killed {where}  {took:5.1f}s  {verdict}"
        print(line, flush=True)
        passed, failed = passed + (not problems), failed + bool(problems)
    print(f"kill storm: {passed} passed, {failed} failed")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--nested", action="store_true", help="layers inside sandboxes")
    parser.add_argument("--typical-seconds", type=float, default=5.0)
    return parser.parse_args()


def storm(one: Round, chance: random.Random, typical_seconds: float) -> list[str]:
    """Kill and repeat, then check; what is wrong, if anything."""
    before = sandbox_processes()
    for _ in range(one.kills):
        if run_and_kill(one, chance.uniform(0.1, typical_seconds)):
            break
        if one.kill_platform:
            kill_platform(one)
    try:
        result = finish(one)
    except AssertionError as error:
        return [str(error)]
    finally:
        left = kill_platform(one)
    problems = check_result(one, result)
    problems += check_ledger(one)
    problems += check_doctor(one)
    if left:
        problems.append("the platform was left running")
    problems += check_leftovers(one, before)
    problems += check_secrets(one)
    return problems


def run_and_kill(one: Round, after_seconds: float) -> bool:
    """Start the command and kill it after a while; True when it had ended by itself."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            one.command(), stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            child.wait(timeout=after_seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            one.killed_at.append(f"{after_seconds:.1f}s")
        output.seek(0)
        one.printed.append(output.read())
    return child.returncode == 0


def finish(one: Round) -> dict[str, object]:
    """Repeat the command until it is done; its last line."""
    for _ in range(ATTEMPTS_MAX):
        done = subprocess.run(
            one.command(), capture_output=True, cwd=ROOT, timeout=FINISH_SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        one.printed += [done.stdout, done.stderr]
        if done.returncode == 0:
            found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
            return found
        assert done.returncode in (3, 4), (
            f"exit {done.returncode}: {done.stdout[-500:]!r} {done.stderr[-1500:]!r}"
        )
    raise AssertionError(f"not done after {ATTEMPTS_MAX} runs: {one.printed[-1][-1500:]!r}")


def kill_platform(one: Round) -> bool:
    """SIGKILL the platform of this round; whether there was one."""
    try:
        ready = json.loads((one.data_dir / "platform" / "ready.json").read_text())
        command = Path(f"/proc/{ready['pid']}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    if b"machines.platform" not in command:
        return False
    os.kill(ready["pid"], signal.SIGKILL)
    one.killed_at.append("platform")
    while Path(f"/proc/{ready['pid']}").exists() and not _is_zombie(ready["pid"]):
        os.sched_yield()
    return True


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def check_result(one: Round, result: dict[str, object]) -> list[str]:
    """The command's own account of what it did."""
    layers = result["layers"]
    assert isinstance(layers, list)
    problems = []
    if result["state"] != "done" or len(layers) != one.depth:
        problems.append(f"state {result['state']}, {len(layers)} layers")
    if result["spent_cents"] != 700 * one.depth:
        problems.append(f"spent {result['spent_cents']} cents")
    if len({layer["public_key"] for layer in layers}) != one.depth:
        problems.append("layers share a key")
    return problems


def check_ledger(one: Round) -> list[str]:
    """Exactly one confirmed spend for each invoice, one invoice for each layer."""
    command = one.turtles("platform", "ledger", "--data-dir", str(one.data_dir), "--json")
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=60)
    one.printed += [done.stdout, done.stderr]
    if done.returncode != 0:
        return [f"ledger: exit {done.returncode} {done.stderr[-300:]!r}"]
    ledger = json.loads(done.stdout)
    problems = []
    if len(ledger["invoices"]) != one.depth:
        problems.append(f"{len(ledger['invoices'])} invoices for {one.depth} layers")
    for invoice in ledger["invoices"]:
        spends, seen = invoice["confirmed_spends"], len(invoice["transactions"])
        if spends != 1 or seen != 1 or invoice["received_atomic"] != invoice["amount_atomic"]:
            problems.append(
                f"invoice {invoice['invoice_id']}: {spends} confirmed spends of {seen}, "
                f"received {invoice['received_atomic']} of {invoice['amount_atomic']}"
            )
    if not ledger["consistent"]:
        problems.append("money is not conserved")
    return problems


def check_doctor(one: Round) -> list[str]:
    """`turtles doctor` finds nothing."""
    command = one.turtles("doctor", "--data-dir", str(one.data_dir), "--json")
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=60)
    one.printed += [done.stdout, done.stderr]
    if done.returncode == 0:
        return []
    return [f"doctor: exit {done.returncode} {done.stdout[-600:]!r} {done.stderr[-300:]!r}"]


def sandbox_processes() -> set[int]:
    """Every process that looks like a sandbox's."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"bwrap" in command.split(b"\0")[0]:
                found.add(int(entry.name))
    return found


def check_leftovers(one: Round, before: set[int]) -> list[str]:
    """No process and no directory of a sandbox."""
    problems = []
    left = sandbox_processes() - before
    if left:
        problems.append(f"sandbox processes left: {sorted(left)}")
    sandboxes = one.data_dir / "platform" / "sandboxes"
    if sandboxes.is_dir():
        kept = [path.name for path in sandboxes.iterdir() if path.is_dir()]
        if kept:
            problems.append(f"sandbox directories left: {kept}")
    return problems


def check_secrets(one: Round) -> list[str]:
    """No secret key in plain text anywhere."""
    problems = []
    for file in sorted(one.data_dir.rglob("*")):
        if file.is_file() and SECRET.search(file.read_bytes()):
            problems.append(f"a secret in {file.name}")
    if any(SECRET.search(text) for text in one.printed):
        problems.append("a secret was printed")
    return problems


if __name__ == "__main__":
    sys.exit(main())
