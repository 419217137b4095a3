"""The real platform, killed at random moments under clients that use the whole wire.

    python -m tests.acceptance.platform_storm --rounds 20 [--seed N] [--deaths 3] [--clients 5]

Each round makes a data directory with tier-32 keys and starts the server process on it, with real
bubblewrap sandboxes.  Clients (platform_traffic.py) send random requests that change something.
Several times a round the server is killed (SIGKILL, sometimes before it is ready; in one of four
cases SIGTERM) and started again on the same directory.  Then, with nobody asking:

- `platform_doctor` has nothing to say; nor has it while sandboxes live, before a death;
- no process, control group or directory of a sandbox is left, and after a SIGTERM not even
  before the next start;
- no row is in a state that only a living process gives; each that was is ended with a reason;
- every ready snapshot and image has its file, with its hash, and there is no other file;
- every row was asked for by a client, once: none has two things for one Idempotency-Key;
- every client's acknowledged facts are still true.

At the end of a round every paid invoice completes, a clone of a snapshot and of an image hold what
was kept, and neither platform.log, the database nor what is printed here holds a secret.  Every
answer of 500 and above has to be one of `platform_wire.REFUSALS`.  Violations are printed with
the seed; exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from engine.secrets import SecretsCodec
from machines.platform import keys
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.reports import platform_doctor
from machines.platform.sandbox.cgroups import group_prefix
from machines.platform.server import find_server
from tests.acceptance.platform_kills import MASTER, Platform, new_platform, problems_after
from tests.acceptance.platform_traffic import Client
from tests.acceptance.platform_wire import DOOR_REFUSALS, REFUSALS, Cut, Pair, Wire

ROOT = Path(__file__).resolve().parents[2]
SECRET = re.compile(r"unsb-sk-[a-z0-9]{5}(?:-[a-z0-9]{5}){3}", re.IGNORECASE)
KEYS = 3
READY_SECONDS = 40.0
QUIET_SECONDS = 60.0
GONE_SECONDS = 5.0
PAID_SECONDS = 20.0
FACTS_AFTER_A_DEATH = 12
SHOWN = 25
TARGETS = (
    "POST /sessions",
    "DELETE /sessions/{id}",
    "POST /sessions/{id}/snapshot",
    "POST /sessions/{id}/freeze",
    "POST /sessions/{id}/restore",
    "POST /services",
    "DELETE /services/{id}",
    "POST /services/{id}/redeploy",
    "POST /services/{id}/snapshot",
    "POST /snapshots/{id}/clone",
    "POST /images",
    "POST /images/{id}/spawn",
    "POST /execute",
    "POST /execute/async",
    "POST /api/gift-cards/redeem",
)
"""Requests that a death is aimed at."""
LIVING = {
    "session": "state IN ('starting', 'running', 'frozen') OR reason IS NULL",
    "service": "state IN ('starting', 'running', 'redeploying', 'frozen') "
    "OR state IN ('stopped', 'failed') AND reason IS NULL",
    "execution": "state IN ('pending', 'running') OR state = 'lost' AND error IS NULL",
}
"""Rows that no platform at its start may leave."""


@dataclass
class Round:
    """One data directory, its server, its clients."""

    number: int
    data_dir: Path
    chance: random.Random
    deaths: int
    wire: Wire = field(default_factory=Wire)
    pairs: list[Pair] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    server: subprocess.Popen[bytes] | None = None
    killed: Counter[str] = field(default_factory=Counter)
    facts: int = 0
    seen_alive: int = 0

    # -- the server ----------------------------------------------------------------------------

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process."""
        log_file = self.data_dir / "platform.log"
        log_file.touch(mode=0o600)
        with log_file.open("ab") as log:
            self.server = subprocess.Popen(
                [
                    *(sys.executable, "-m", "machines.platform.server"),
                    *("--data-dir", str(self.data_dir), "--block-seconds", "0.2"),
                    *("--requests-per-minute-per-tier", "100000"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        return self.server

    def start(self) -> None:
        """Start it, now and then in vain, and wait until it serves."""
        while self.chance.random() < 0.25:
            child = self.spawn()
            time.sleep(self.chance.uniform(0.1, 1.5))
            child.kill()
            child.wait()
            self.killed["at its start"] += 1
        child = self.spawn()
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and child.poll() is None:
            if (found := find_server(self.data_dir)) and found.pid == child.pid:
                self.wire.base = found.base_url
                self.wire.gate.begin_life()
                return
            time.sleep(0.02)
        child.kill()
        tail = (self.data_dir / "platform.log").read_text()[-1500:]
        raise AssertionError(f"the platform did not start: {tail}")

    def aim(self) -> None:
        """Let it die in the middle of a long request, or at any moment."""
        if self.chance.random() < 0.7:
            self.wire.wait_for(self.chance.choice(TARGETS), 3.0)
        time.sleep(self.chance.uniform(0.0, 0.15))

    def end(self) -> None:
        """SIGKILL it, or ask it to stop; then nobody is inside."""
        assert self.server is not None
        gate = self.wire.gate
        politely = self.chance.random() < 0.25
        if politely:
            self.server.terminate()
            try:
                self.server.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                self.wire.wrong(f"SIGTERM: still there after {READY_SECONDS:.0f} s")
                self.server.kill()
            if self.server.returncode not in (0, -signal.SIGKILL):
                self.wire.wrong(f"SIGTERM: exit code {self.server.returncode}")
            gate.close()
        else:
            gate.close()
            self.server.kill()
        self.server.wait()
        self.killed["SIGTERM" if politely else "SIGKILL"] += 1
        self.quiet()
        if politely:
            self.check_leftovers("after SIGTERM")

    def quiet(self) -> None:
        """Wait until no client is in the middle of something."""
        if not self.wire.gate.quiet(QUIET_SECONDS):
            self.wire.wrong(f"clients were still busy after {QUIET_SECONDS:.0f} s")

    # -- checks --------------------------------------------------------------------------------

    def check_living(self) -> None:
        """A platform whose sandboxes live, with nobody asking."""
        self.wire.gate.close()
        self.quiet()
        self.seen_alive += len(leftovers(self.data_dir))
        for one in platform_doctor(self.data_dir):
            self.wire.wrong(f"while it lives, doctor: {one.check}: {one.message}")
        self.wire.gate.open()

    def check_started(self) -> None:
        """A platform that was just started."""
        for one in problems_after(Platform(self.data_dir), "no such key"):
            self.wire.wrong(f"after a start: {one}")
        self.check_leftovers("after a start")
        self.check_rows()
        self.check_files()
        for client in self.clients:
            try:
                self.facts += client.check(FACTS_AFTER_A_DEATH)
            except Cut:
                self.wire.wrong("the platform went away while it was asked for facts")

    def check_rows(self) -> None:
        """Everything ended, and everything asked for, once."""
        database = open_platform_database(self.data_dir)
        names = {"session": "session_id", "service": "service_id", "execution": "job_id"}
        names |= {"snapshot": "snapshot_id", "image": "image_id"}
        known = {each.identity for client in self.clients for each in client.things}
        doubtful = {each for client in self.clients for each in client.doubtful | client.refused}
        with database.reading() as sql:
            for table, condition in LIVING.items():
                rows = sql.all(f"SELECT * FROM {table} WHERE {condition}")  # noqa: S608
                for row in rows:
                    why = row.get("reason") or row.get("error")
                    self.wire.wrong(f"after a start: a {table} is {row['state']}, {why}")
            for table, name in names.items():
                for row in sql.all(f"SELECT {name}, idempotency_key FROM {table}"):  # noqa: S608
                    once = row["idempotency_key"]
                    commands = table == "execution" and not once
                    if commands or row[name] in known or once in doubtful:
                        continue
                    self.wire.wrong(f"{table} {row[name]}: nobody was told of it ({once})")
        database.close()

    def check_files(self) -> None:
        """The archives of ready rows, and nothing else."""
        database = open_platform_database(self.data_dir)
        for table in ("snapshot", "image"):
            with database.reading() as sql:
                rows = sql.all(
                    f"SELECT {table}_id AS id, sha256 FROM {table} WHERE status = 'ready'"  # noqa: S608
                )
            wanted = {f"{row['id']}.tar": row["sha256"] for row in rows}
            for file in (self.data_dir / f"{table}s").glob("*"):
                if file.name not in wanted:
                    self.wire.wrong(f"a stray file {table}s/{file.name}")
                elif hashlib.sha256(file.read_bytes()).hexdigest() != wanted[file.name]:
                    self.wire.wrong(f"{table}s/{file.name}: its hash is not that of its row")
        database.close()

    def check_leftovers(self, when: str) -> None:
        """No process, group or directory of a sandbox."""
        deadline = time.monotonic() + GONE_SECONDS
        while (left := leftovers(self.data_dir)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for each in sorted(left):
            self.wire.wrong(f"{when}: {each}")

    def check_paid(self) -> None:
        """Every paid invoice completes."""
        deadline = time.monotonic() + PAID_SECONDS
        while waiting := [each for client in self.clients for each in client.unpaid()]:
            if time.monotonic() > deadline:
                self.wire.wrong(f"paid, and never completed: {waiting}")
                return
            time.sleep(0.2)

    def check_copies(self) -> None:
        """Every client's archives can be used."""
        for client in self.clients:
            client.copies_hold()

    def check_secrets(self) -> None:
        """No secret in the log or in a file of the database."""
        for file in sorted(self.data_dir.iterdir()):
            if not file.is_file() or file.name == "master.key":
                continue
            text = file.read_bytes().decode("latin-1")
            if SECRET.search(text):
                self.wire.wrong(f"a secret key in {file.name}")
            for secret in self.wire.secrets:
                if secret in text:
                    self.wire.wrong(f"a secret ({len(secret)} characters) in {file.name}")

    # -- a round -------------------------------------------------------------------------------

    def run(self, clients: int, seed: int) -> None:
        """All of it."""
        self.pairs = prepare(self.data_dir)
        self.wire.keep_secret(*(secret for _, secret in self.pairs))
        others = [public for public, _ in self.pairs]
        for number in range(clients):
            pair = self.pairs[number % KEYS]
            other = others[(number + 1) % KEYS]
            name = f"{chr(97 + number)}"
            client = Client(name, self.wire, pair, other, f"{seed}/{self.number}/{name}")
            self.clients.append(client)
            client.start()
        try:
            for number in range(self.deaths):
                self.start()
                self.check_started()
                self.wire.gate.open()
                time.sleep(self.chance.choice((0.5, 2.0, 4.0)) * self.chance.uniform(0.2, 1.0))
                if number == 0 or self.chance.random() < 0.4:
                    self.check_living()
                self.aim()
                self.end()
            self.finish()
        finally:
            self.wire.gate.finish()
            if self.server is not None:
                self.server.kill()
                self.server.wait()

    def finish(self) -> None:
        """The last start: what is in doubt is asked again, then everything is looked at."""
        self.start()
        self.check_started()
        for client in self.clients:
            try:
                client.resolve()
                self.facts += client.check()
            except Cut:
                self.wire.wrong("the platform went away although nobody killed it")
        self.check_paid()
        self.check_copies()
        assert self.server is not None
        self.server.terminate()
        self.server.wait(READY_SECONDS)
        self.check_leftovers("at the end")
        for one in platform_doctor(self.data_dir):
            self.wire.wrong(f"at the end, doctor: {one.check}: {one.message}")
        self.check_secrets()


def prepare(data_dir: Path) -> list[Pair]:
    """A data directory with three keys of tier 32, not served yet."""
    new_platform(data_dir)
    database = open_platform_database(data_dir)
    open_money(database, SecretsCodec(MASTER), _now_ms, PlatformConfig())
    with database.transaction() as sql:
        names = [keys.issue(sql, 32, 12, _now_ms()) for _ in range(KEYS)]
        pairs = [(name, keys.secret(sql, name)) for name in names]
    database.close()
    return pairs


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def leftovers(data_dir: Path) -> set[str]:
    """Processes, control groups and directories of the sandboxes of a data directory."""
    root = data_dir / "sandboxes"
    prefix = group_prefix(root)
    found = set()
    if root.is_dir():
        found = {f"directory {each.name}" for each in root.iterdir() if each.is_dir()}
    for file in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if prefix in file.read_text() and (file.parent / "cmdline").read_bytes():
                found.add(f"process {file.parent.name}")
        except OSError:
            continue  # it ended meanwhile
    for group in _groups(prefix):
        found.add(f"control group {group}")
    return found


def _groups(prefix: str) -> set[str]:
    lines = Path("/proc/self/cgroup").read_text().split()
    own = {"", "turtles"} | {line.rpartition(":")[2].lstrip("/") for line in lines}
    found = set()
    mounts = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")]
    for mount in mounts:
        for below in own:
            found |= {str(each) for each in (mount / below).glob(f"{prefix}*")}
    return found


def main() -> int:
    """Run the rounds; 0 when all of them hold."""
    options = _options()
    # A storm that is ended takes its server with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"platform storm: seed {seed}, {options.rounds} rounds", flush=True)
    total: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    refused: Counter[tuple[int, str]] = Counter()
    for number in range(1, options.rounds + 1):
        if options.only is not None and number != options.only:
            continue
        one = storm(number, seed, options)
        problems = one.wire.problems()
        counts.update(one.wire.counts)
        refused.update(one.wire.refused)
        requests = sum(one.wire.counts.values())
        total["requests"] += requests
        total["deaths"] += sum(one.killed.values())
        total["facts checked"] += one.facts
        total["signs of living sandboxes"] += one.seen_alive
        total["problems"] += len(problems)
        deaths = ", ".join(f"{many} {how}" for how, many in sorted(one.killed.items()))
        verdict = "ok" if not problems else f"FAILED (seed {seed})"
        told = f"{requests:5} requests, {one.facts:4} facts, deaths: {deaths}"
        print(f"round {number:3}  {told}  {verdict}", flush=True)
        for each in problems[:SHOWN]:
            print("    " + SECRET.sub("<a secret>", each), flush=True)
    _summary(total, counts, refused, seed)
    return 1 if total["problems"] else 0


def storm(number: int, seed: int, options: argparse.Namespace) -> Round:
    """One round; what was wrong is in its wire."""
    with tempfile.TemporaryDirectory(prefix="turtles-storm-") as name:
        chance = random.Random(f"{seed}/{number}")
        one = Round(number, Path(name) / "data", chance, options.deaths)
        try:
            one.run(options.clients, seed)
        except (AssertionError, Cut, subprocess.TimeoutExpired) as error:
            one.wire.wrong(f"{type(error).__name__}: {error}")
        if options.keep and one.wire.problems():
            kept = Path(tempfile.gettempdir()) / f"turtles-storm-kept-{seed}-{number}"
            shutil.copytree(one.data_dir, kept, dirs_exist_ok=True)
    return one


def _summary(
    total: Counter[str], counts: Counter[str], refused: Counter[tuple[int, str]], seed: int
) -> None:
    for where, many in sorted(counts.items()):
        print(f"  {many:6}  {where}")
    for (status, error), many in sorted(refused.items()):
        why = (REFUSALS | DOOR_REFUSALS).get((status, error), "")
        print(f"  {many:6}  answers {status} {error}{': ' if why else ''}{why}")
    names = ("requests", "deaths", "facts checked", "signs of living sandboxes")
    what = ", ".join(f"{total[name]} {name}" for name in names)
    print(f"platform storm: {what}, {total['problems']} problems, seed {seed}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--deaths", type=int, default=3, help="how often a round's server ends")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", type=int, help="this round of the seed only")
    parser.add_argument("--keep", action="store_true", help="copy the directory of a bad round")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
