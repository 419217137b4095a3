"""Whatever a user or the machine gets wrong: one message, the documented exit code, nothing lost.

Every command that is refused is a process of its own, as a user would start it; what only looks at
the result afterwards is called in this process.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from engine.secret import Secret
from engine.system import SystemClock
from engine.world import World
from machines import cli
from machines.app import turtles_app
from machines.clients import clients_for
from machines.flows.f04_authentication import Authentication, Proof
from machines.flows.f13_inception import Inception
from machines.flows.layer import Layer
from machines.platform.reports import ledger
from machines.platform.server import find_server, start_server, stop_server
from persistence import open_store

ROOT = Path(__file__).parents[2]
MINUTES = 60_000
FAST = ("--depth", "1", "--trust", "zerotrust", "--block-seconds", "0.05", "--poll-seconds", "0.1")
LONGER = ("--depth", "1", "--trust", "zerotrust", "--block-seconds", "0.2", "--poll-seconds", "0.1")
COIN = ("--currency", "LTC")  # fewer blocks to wait for
NO_NAMESPACES = """#!/bin/sh
echo "bwrap: No permissions to create new namespace, likely because the kernel does not allow \
non-privileged user namespaces." >&2
exit 1
"""


class Answer:
    """What a command did."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n-- stdout\n{self.out}\n-- stderr\n{self.err}"

    @property
    def json(self):
        return json.loads(self.out.splitlines()[-1])

    def refuses(self, code, *texts):
        """One message, on stderr and with --json on stdout, and that exit code."""
        assert self.code == code, self
        assert "Traceback" not in self.out + self.err, self
        (message,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert all(text in message for text in texts), self
        if self.out:
            assert f"error: {self.json['message']}" == message
        return self


class Turtles:
    """The command `turtles` on one data directory, as processes."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        self.processes = []

    def start(self, *arguments, before=None, **env):
        process = subprocess.Popen(
            [sys.executable, "-m", "machines.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TURTLES_DATA_DIR": str(self.data_dir),
                **env,
            },
        )
        self.processes.append(process)
        return process

    def __call__(self, *arguments, before=None, **env):
        process = self.start(*arguments, before=before, **env)
        return answer_of(process)

    def look(self, *arguments):
        """A command that only looks, in this process; its JSON."""
        env = {"TURTLES_DATA_DIR": str(self.data_dir), "TURTLES_LOG_LEVEL": "critical"}
        mask = os.umask(0o077)
        try:
            result = CliRunner().invoke(cli.cli, [*arguments, "--json"], env=env)
        finally:
            os.umask(mask)
            structlog.reset_defaults()
        return json.loads(result.stdout)

    def is_clean(self):
        found = self.look("doctor")
        assert found["findings"] == []
        return True

    def works(self, *options):
        """The proper command in the same directory: it goes on, or begins, and ends well."""
        answer = self("inception", *(options or FAST), "--json")
        assert answer.code == 0, answer
        assert answer.json["state"] == "done"
        return self.is_clean()

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        if server := find_server(self.data_dir / "platform"):
            stop_server(server)


def answer_of(process):
    out, err = process.communicate(timeout=60)
    return Answer(process.returncode, out, err)


def line_with(stream, text):
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came")


@pytest.fixture
def turtles(tmp_path):
    made = Turtles(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A platform that runs elsewhere: its directory and its options for a command."""
    data_dir = tmp_path_factory.mktemp("elsewhere") / "platform"
    server = start_server(data_dir, block_seconds=0.05)
    yield data_dir, server.base_url
    stop_server(server)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, served):
    """A data directory in which a chain of one layer has been built, closed."""
    made = Turtles(tmp_path_factory.mktemp("finished") / "data")
    assert made.works(*FAST, "--platform-url", served[1])
    return made.data_dir


@pytest.fixture
def copy(turtles, finished, served):
    """`turtles` on a copy of the finished chain; it can be looked at and asked for again."""
    shutil.copytree(finished, turtles.data_dir)
    turtles.chain = ("inception", *FAST, "--platform-url", served[1], "--json")
    yield turtles
    again = turtles(*turtles.chain)  # whatever was wrong has been put right: nothing was lost
    assert (again.code, again.json["state"], again.json["spent_cents"]) == (0, "done", 700), again
    assert turtles.is_clean()


# -- what was typed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("run", "Incepton"), ("no machine 'Incepton'", "There are: Agent, Authentication, ")),
        (
            ("run", "Authentication", "--input", '{"public_key": 3}'),
            ("--input of machine Authentication: Expected `str`, got `int` - at `$.public_key`",),
        ),
        (("inception", "--depth", "-1"), ("depth -1: expected 1 to 8",)),
        (("inception", "--depth", "9"), ("depth 9: expected 1 to 8",)),
        (("inception", "--currency", "EUR"), ("'EUR': expected one of XMR, BTC, LTC, DOGE",)),
        (("list",), ("nothing has run there", "--data-dir")),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(turtles, arguments, texts):
    turtles(*arguments, "--json").refuses(2, *texts)
    assert not turtles.data_dir.exists()


def test_an_event_that_the_machine_does_not_know_is_not_sent(turtles):
    given = '{"depth": 1, "max_depth": 1, "currency": "LTC", "budget_cents": 700}'
    begun = turtles("run", "Inception", "--input", given, "--key", "k", "--no-wait")
    assert begun.code == 0, begun
    of_inception = "--payload of event 'executed' of Inception: "
    for arguments, text in (
        (("nonsense",), "machine Inception has no event 'nonsense'. Its events: bought, "),
        (
            ("executed", "--payload", '{"stdout": 3, "latency_ms": 1}'),
            f"{of_inception}Expected `str`, got `int` - at `$.stdout`. Expected an object",
        ),
        (("executed", "--payload", '{"stdout": '), f"{of_inception}not JSON"),
        (("executed",), "event 'executed' of Inception"),
    ):
        turtles("send", "Inception:k", *arguments, "--json").refuses(2, text)
    assert turtles.look("why", "Inception:k")["inbox"] == []
    assert turtles.look("show", "Inception:k")["seq"] == 1
    assert turtles.is_clean()


def test_an_event_at_the_wrong_moment_is_rejected_and_changes_nothing(copy):
    payload = '{"stdout": "x", "latency_ms": 1}'
    answer = copy("send", "Inception:default", "executed", "--payload", payload, "--json")
    assert (answer.code, answer.json["receipt"]) == (1, "rejected"), answer
    assert answer.json["reason"] == "the run is completed"


def test_a_key_used_again_with_other_options_names_them(copy):
    asked = ("inception", "--depth", "2", "--currency", "BTC", "--platform-url", copy.chain[-2])
    copy(*asked, "--json").refuses(
        2, "chain 'default'", "--depth 1, now 2", "--currency XMR, now BTC", "another --run KEY"
    )


# -- the platform ---------------------------------------------------------------------------------


def test_a_platform_that_cannot_be_reached(turtles, served):
    answer = turtles("inception", *FAST, "--platform-url", "http://127.0.0.1:9", "--json")
    answer.refuses(3, "platform http://127.0.0.1:9: not reachable", "turtles platform serve")
    assert turtles.works(*FAST, "--platform-url", served[1])


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:9", "http://"])
def test_a_platform_url_that_is_none(turtles, url):
    turtles("inception", "--platform-url", url, "--json").refuses(3, "base URL", "expected http://")


def test_an_empty_wallet_ends_the_chain_as_unaffordable(turtles):
    turtles.data_dir.mkdir(mode=0o700)
    seconds = 10 * 60 + 2  # the invoice's life; for DOGE nothing is sent in its last ten minutes
    poor = start_server(
        turtles.data_dir / "platform", block_seconds=0.05, payer_outputs=0, invoice_seconds=seconds
    )
    answer = turtles("inception", *FAST, "--currency", "DOGE", "--json")
    assert answer.code == 1, answer
    assert "Traceback" not in answer.err
    assert (answer.json["state"], answer.json["status"]) == ("unaffordable", "failed")
    assert answer.json["spent_cents"] == 0 and answer.json["layers"] == []
    assert "unfunded" in answer.json["refusal"]
    told = turtles("inception", *FAST, "--currency", "DOGE")
    assert (told.code, "refused: " in told.out) == (1, True), told
    (invoice,) = ledger(turtles.data_dir / "platform")["invoices"]
    assert invoice["received_atomic"] == 0
    assert find_server(turtles.data_dir / "platform") == poor  # it was there before
    assert turtles.is_clean()


def test_a_budget_below_the_price_ends_the_chain_as_unaffordable(turtles, served):
    answer = turtles(
        "inception", *FAST, "--budget-cents", "699", "--platform-url", served[1], "--json"
    )
    assert (answer.code, answer.json["state"]) == (1, "unaffordable"), answer
    assert "700 cents are over the budget of 699" in answer.json["refusal"]
    assert turtles.is_clean()


def test_a_key_that_nobody_sold_is_rejected_by_name(turtles):
    turtles.data_dir.mkdir(mode=0o700)
    start_server(turtles.data_dir / "platform", block_seconds=0.05)
    made_up = {"public_key": "unsb-pk-aaaa-bbbb-cccc-dddd", "secret_key": "unsb-sk-never-sold"}
    asked = ("run", "Authentication", "--input", json.dumps(made_up))
    answer = turtles(*asked, "--json")
    assert (answer.code, answer.json["state"]) == (1, "rejected"), answer
    assert answer.json["context"]["reason"] == "invalid_key"
    told = turtles(*asked)
    assert told.code == 1
    assert "failed in rejected" in told.out and '"reason":"invalid_key"' in told.out
    assert "never-sold" not in answer.out + answer.err + told.out + told.err
    assert turtles.is_clean()


@pytest.mark.parametrize(
    ("program", "texts"),
    [
        (NO_NAMESPACES, ("does not let", "create user namespaces", "unprivileged_userns_clone")),
        (None, ("TURTLES_BWRAP names", "not an executable file", "correct or unset")),
    ],
)
def test_no_sandbox_is_a_refusal_with_the_remedy(turtles, tmp_path, program, texts):
    bwrap = tmp_path / "bwrap"
    if program is not None:
        bwrap.write_text(program)
        bwrap.chmod(0o755)
    answer = turtles("inception", *FAST, "--json", TURTLES_BWRAP=str(bwrap))
    answer.refuses(3, "will not be run without isolation", "Fix: ", *texts)
    assert turtles.look("doctor")["runs"] == 0
    if program is not None:
        assert turtles.works()


# -- the clock ------------------------------------------------------------------------------------


class SkewedClock(SystemClock):
    """A clock that goes right but was set wrong."""

    def __init__(self, off_ms):
        self.off_ms = off_ms

    def now_ms(self):
        return super().now_ms() + self.off_ms


async def with_clock(off_ms, data_dir, base_url, body):
    clock = SkewedClock(off_ms)
    clients = clients_for(
        base_url, rpc_username="turtles", rpc_password=Secret("turtles"), clock_ms=clock.now_ms
    )
    data_dir.mkdir(mode=0o700)
    with closing(open_store(f"sqlite:///{data_dir / 'runs.db'}")) as store:
        async with turtles_app(store, clients, world=World(clock=clock)) as app:
            result = await body(app)
        assert store.inspector.findings() == []
    await clients.aclose()
    return result


@pytest.mark.parametrize("off_minutes", [10, -10])
def test_a_clock_ten_minutes_off_is_measured_and_does_not_matter(tmp_path, served, off_minutes):
    async def body(app):
        layer = Layer(depth=1, max_depth=1, currency="LTC", budget_cents=700, poll_ms=100)
        run = await app.start(Inception, layer)
        built = await app.wait(run.run_id, timeout_seconds=40)
        key = built.context
        proof = Proof(public_key=key.public_key, secret_key=key.secret_key)
        run = await app.start(Authentication, proof)
        return built, await app.wait(run.run_id, timeout_seconds=20)

    off_ms = off_minutes * MINUTES
    built, proven = asyncio.run(with_clock(off_ms, tmp_path / "data", served[1], body))
    assert (built.state, built.context.refusal) == ("done", "")
    assert built.context.stdout.startswith("turtle 1 of 1 was here")
    assert proven.state == "authenticated"
    for measured in (built.context.offset_ms, proven.output.offset_ms):
        assert abs(measured + off_ms) < 3000  # `Date` has whole seconds


@pytest.mark.parametrize("off_hours", [25, -25])
def test_a_clock_25_hours_off_is_named_and_not_followed(tmp_path, served, finished, off_hours):
    async def the_key():
        with closing(open_store(f"sqlite:///{finished / 'runs.db'}")) as store:
            app = turtles_app(store, work=False)
            run_id = await app.find(Inception, "default")
            return (await app.get(run_id)).context

    async def body(app):
        key = await the_key()
        proof = Proof(public_key=key.public_key, secret_key=key.secret_key)
        run = await app.start(Authentication, proof)
        return await app.wait(run.run_id, timeout_seconds=20)

    off_ms = off_hours * 60 * MINUTES
    judged = asyncio.run(with_clock(off_ms, tmp_path / "data", served[1], body))
    assert (judged.state, judged.status) == ("skewed", "failed")
    side = "ahead of" if off_hours > 0 else "behind"
    assert judged.context.reason.endswith(f"{side} the server's")
    assert judged.context.offset_ms == 0


# -- the store ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["garbage at its beginning", "half of it is gone"])
def test_a_damaged_database(copy, finished, damage):
    file = copy.data_dir / "runs.db"
    if damage == "half of it is gone":
        os.truncate(file, file.stat().st_size // 2)
    else:
        with file.open("r+b") as opened:
            opened.write(b"not a database" * 10)
    before = file.read_bytes()
    for asked in (copy.chain, ("list", "--json"), ("doctor", "--json")):
        copy(*asked).refuses(3, str(file), "not a readable SQLite database", "Restore it")
    assert file.read_bytes() == before
    for left in copy.data_dir.glob("runs.db-*"):
        left.unlink()
    shutil.copy(finished / "runs.db", file)


def test_a_newer_schema(copy):
    def change(revision):
        with closing(sqlite3.connect(copy.data_dir / "runs.db")) as database, database:
            (old,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
            database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
            return old

    revision = change("9999")
    for asked in (("list", "--json"), copy.chain):
        copy(*asked).refuses(3, "schema revision 9999 is unknown here")
    assert change(revision) == "9999"


def obeying_modes():
    """Root, too, shall be stopped by a mode: give up the two capabilities that ignore modes."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def test_a_data_directory_that_cannot_be_written(copy):
    before = (copy.data_dir / "runs.db").read_bytes()
    copy.data_dir.chmod(0o500)
    try:
        answer = copy(*copy.chain, before=obeying_modes)
        answer.refuses(3, "runs.db", "cannot be opened for writing", "writable by this user")
        own = copy("inception", *FAST, "--json", before=obeying_modes)
        own.refuses(3, str(copy.data_dir / "platform"), "cannot be made", "--data-dir")
    finally:
        copy.data_dir.chmod(0o700)
    assert (copy.data_dir / "runs.db").read_bytes() == before


def test_a_data_directory_that_cannot_be_made(turtles):
    turtles.data_dir = Path("/proc/turtles")
    turtles("inception", "--json").refuses(3, "/proc/turtles: cannot be made", "--data-dir")
    turtles("run", "Discovery", "--json").refuses(3, "/proc/turtles: cannot be made", "--data-dir")


def test_no_space_left(turtles, served):
    assert turtles("db", "upgrade").code == 0
    size = (turtles.data_dir / "runs.db").stat().st_size

    def little_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    chain = ("inception", *FAST, "--platform-url", served[1], "--json")
    answer = turtles(*chain, before=little_space)
    answer.refuses(3, str(turtles.data_dir / "runs.db"), "free space", "was not committed")
    assert turtles.is_clean()
    assert turtles.works(*FAST, "--platform-url", served[1])
    paid = [one for one in ledger(served[0])["invoices"] if one["confirmed_spends"]]
    assert {one["confirmed_spends"] for one in paid} == {1}


# -- secrets --------------------------------------------------------------------------------------


def test_a_lost_master_key(copy, finished):
    (copy.data_dir / "runs.db.key").unlink()
    for asked in (copy.chain, ("show", "Inception:default", "--json")):
        answer = copy(*asked)
        answer.refuses(3, "runs.db.key: missing", "TURTLES_MASTER_KEY", "Restore the file")
        assert not (copy.data_dir / "runs.db.key").exists(), "a new key would hide the loss"
    shutil.copy(finished / "runs.db.key", copy.data_dir)


def test_a_lost_master_key_of_the_platform(turtles):
    assert turtles.works()
    key_file = turtles.data_dir / "platform" / "master.key"
    kept = key_file.read_bytes()
    key_file.unlink()
    answer = turtles("inception", *FAST, "--json")
    answer.refuses(3, "platform server: stored secret was sealed with master key", "restore")
    key_file.write_bytes(kept)
    assert turtles.works()


def test_a_key_file_that_others_can_read(copy):
    key_file = copy.data_dir / "runs.db.key"
    key_file.chmod(0o644)
    for asked in (copy.chain, ("list", "--json")):
        copy(*asked).refuses(3, f"{key_file}: mode 644", f"chmod 600 {key_file}")
    key_file.chmod(0o600)


# -- signals and second processes -----------------------------------------------------------------


def test_sigterm_stops_after_the_step_in_hand_and_can_be_gone_on_with(turtles):
    process = turtles.start("inception", *LONGER, *COIN, "--json")
    line_with(process.stderr, "Payment  paying -> confirming")
    process.send_signal(signal.SIGTERM)
    answer = answer_of(process)
    assert (answer.code, answer.json["error"]) == (130, "interrupted"), answer
    assert "Traceback" not in answer.err
    assert find_server(turtles.data_dir / "platform") is None
    assert turtles.is_clean()
    assert turtles.works(*LONGER, *COIN)
    (invoice,) = ledger(turtles.data_dir / "platform")["invoices"]
    assert invoice["confirmed_spends"] == 1


def test_a_second_sigint_ends_at_once(turtles):
    process = turtles.start("inception", *LONGER, *COIN, "--json")
    line_with(process.stderr, "Payment  paying -> confirming")
    server = find_server(turtles.data_dir / "platform")
    os.kill(server.pid, signal.SIGSTOP)  # it will not stop when it is asked to
    signals = 0
    while process.poll() is None and signals < 20:
        process.send_signal(signal.SIGINT)
        signals += 1
        try:
            process.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            continue
    answer = answer_of(process)
    os.kill(server.pid, signal.SIGCONT)
    assert signals >= 2
    assert answer.code == 130, answer
    assert "Traceback" not in answer.err
    assert turtles.works(*LONGER, *COIN)
    assert find_server(turtles.data_dir / "platform") is None
    (invoice,) = ledger(turtles.data_dir / "platform")["invoices"]
    assert invoice["confirmed_spends"] == 1


@pytest.mark.parametrize(
    "interrupted", ["front.Front.main", "front.Front.invoke", "engine.log.configure_from"]
)
def test_ctrl_c_at_any_moment_is_one_line_and_130(turtles, interrupted):
    code = (
        "import sys, engine.log, engine.cli.front as front\n"
        "import machines.cli as cli\n"
        "def ctrl_c(*_): raise KeyboardInterrupt\n"
        f"{interrupted} = ctrl_c\n"
        "sys.argv = ['turtles', 'list', '--json']\n"
        "cli.main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TURTLES_DATA_DIR": str(turtles.data_dir)},
    )
    answer = Answer(process.returncode, process.stdout, process.stderr)
    assert answer.err.strip() == "stopped; run the same command again to go on"
    assert (answer.code, answer.json["error"]) == (130, "interrupted")


def test_two_processes_on_the_same_chain_do_its_work_once(turtles):
    first = turtles.start("inception", *LONGER, "--json")
    line_with(first.stderr, "Payment  paying -> confirming")
    second = turtles("inception", *LONGER, "--json")
    one = answer_of(first)
    assert (one.code, second.code) == (0, 0), (one, second)
    assert one.json == second.json
    (invoice,) = ledger(turtles.data_dir / "platform")["invoices"]
    assert invoice["confirmed_spends"] == 1
    assert find_server(turtles.data_dir / "platform") is None
    assert turtles.is_clean()


# -- the ledger -----------------------------------------------------------------------------------


def test_the_ledger_shows_whole_invoice_ids_in_json_only(turtles, served, finished):
    asked = ("platform", "ledger", "--data-dir", str(served[0]))
    listed = turtles.look(*asked)["invoices"]
    shown = turtles(*asked).out
    assert listed
    for invoice in listed:
        assert invoice["invoice_id"] not in shown
        assert f"{invoice['invoice_id'][:12]}..." in shown
