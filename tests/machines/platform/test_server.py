"""The server as a process: found, stopped, killed in the middle, started again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import os
import select
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from wsproto import ConnectionType, WSConnection
from wsproto import events as told

from engine.secrets import load_codec
from machines.platform import keys, server
from machines.platform.database import open_platform_database
from machines.platform.reports import platform_doctor
from machines.platform.sandbox.processes import descendants, wait_until_gone
from machines.platform.server import ServerInfo
from persistence.sqlite import SqliteDatabase

ROOT = Path(server.__file__).resolve().parents[2]


class Running:
    """A started server, a key bought behind its back, and signed calls over a real socket."""

    trusted: Path | None = None

    def __init__(self, data_dir: Path, **options: object) -> None:
        self.data_dir = data_dir
        self.info = server.start_server(data_dir, **options)
        database = open_platform_database(data_dir)
        keys.bind(database, load_codec(data_dir / "master.key", os.environ))
        with database.transaction() as sql:
            self.public_key = keys.issue(sql, 8, 1, time.time_ns() // 1_000_000)
            self.secret_key = keys.secret(sql, self.public_key)
        database.close()

    def restart(self) -> None:
        self.info = server.start_server(self.data_dir)

    def kill(self) -> None:
        descriptor = os.pidfd_open(self.info.pid)
        os.kill(self.info.pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        content = b"" if body is None else json.dumps(body).encode()
        timestamp = str(int(time.time()))
        message = f"{timestamp}:{method}:{path}:".encode() + content
        signed = {
            "Authorization": f"Bearer {self.public_key}",
            "X-Timestamp": timestamp,
            "X-Signature": hmac.new(self.secret_key.encode(), message, hashlib.sha256).hexdigest(),
            **headers,
        }
        verify = ssl.create_default_context(cafile=self.trusted) if self.trusted else True
        with httpx.Client(base_url=self.info.base_url, timeout=60, verify=verify) as client:
            return client.request(method, path, content=content, headers=signed)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path / "data")
    yield started
    if found := server.find_server(started.data_dir):
        server.stop_server(found)


def test_first_to_last(running: Running) -> None:
    health = httpx.get(running.info.base_url + "/health")
    told = health.json()
    assert told.pop("enforcement") in ("cgroup", "rlimit")
    assert told == {"status": "ok", "sandbox": "available"}
    session_id = running.call("POST", "/sessions", {}).json()["id"]
    path = f"/sessions/{session_id}"
    ran = running.call("POST", path + "/execute", {"command": "echo hi"}).json()
    assert (ran["stdout"], ran["exit_code"]) == ("hi\n", 0)
    body = {"language": "python", "code": "print(6 * 7)"}
    assert running.call("POST", "/execute", body).json()["stdout"] == "42\n"
    assert running.call("DELETE", path).json()["status"] == "terminated"
    assert list((running.data_dir / "sandboxes").iterdir()) == []
    assert platform_doctor(running.data_dir) == []
    assert server.stop_server(running.info)
    assert server.find_server(running.data_dir) is None
    assert not (running.data_dir / "ready.json").exists()
    assert not server.stop_server(running.info)


SIBLING = """
import hashlib, hmac, json, sys, time, urllib.error, urllib.request
public_key, secret = sys.stdin.read().split()
def call(method, path, body):
    at = str(int(time.time()))
    content = json.dumps(body).encode()
    message = f"{at}:{method}:{path}:".encode() + content
    signature = hmac.new(secret.encode(), message, hashlib.sha256)
    headers = {"Authorization": f"Bearer {public_key}", "X-Timestamp": at,
               "X-Signature": signature.hexdigest(), "Content-Type": "application/json"}
    url = "http://platform.turtles" + path
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
made = call("POST", "/sessions", {})
ran = call("POST", "/sessions/" + made[1]["id"] + "/execute", {"command": "echo sibling"})
wallets = [call("POST", path, {})[1]["error"] for path in ("/rpc/btc", "/_test/faults")]
print(json.dumps([made[0], made[1]["id"], ran[1]["stdout"], wallets]))
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_code_inside_makes_a_sibling_and_touches_no_wallet(
    tmp_path: Path, scheme: str, certificate: tuple[Path, Path]
) -> None:
    tls = {"tls_certificate": certificate[0], "tls_key": certificate[1]}
    options: dict[str, object] = {"allow_faults": True, **(tls if scheme == "https" else {})}
    running = Running(tmp_path / "data", **options)
    try:
        running.trusted = certificate[0]
        assert running.info.base_url.startswith(f"{scheme}://127.0.0.1:")
        made = running.call("POST", "/sessions", {"network_mode": "semitrusted"}).json()
        path = f"/sessions/{made['id']}/execute"
        pair = f"{running.public_key} {running.secret_key}"
        command = f"printf %s {shlex.quote(pair)} | python3 -c {shlex.quote(SIBLING)}"
        ran = running.call("POST", path, {"command": command}).json()
        assert ran["exit_code"] == 0, ran
        status, sibling, said, wallets = json.loads(ran["stdout"])
        assert (status, said) == (200, "sibling\n")
        assert wallets == ["not_from_inside", "not_from_inside"]
        assert running.call("GET", f"/sessions/{sibling}").json()["status"] == "running"
        text = (running.data_dir / "platform.log").read_text()
        assert '"host": "platform.turtles"' in text
        assert running.secret_key not in text
    finally:
        server.stop_server(running.info)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "turtles test")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    place = tmp_path_factory.mktemp("tls")
    (place / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (place / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return place / "cert.pem", place / "key.pem"


SERVICE = """#!/usr/bin/python3
import http.server, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        if self.path == "/for-ever":
            self.send_header("Content-Length", "1000000000")
        self.end_headers()
        self.wfile.write(b"hello " + self.headers["X-Forwarded-Host"].encode())
        while self.path == "/for-ever":
            self.wfile.write(b".")
            time.sleep(0.01)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Answer).serve_forever()
"""


def test_visitors_of_a_service_wake_it_and_do_not_hold_up_a_stop(running: Running) -> None:
    order = {
        "name": "hello", "ports": [8000], "bootstrap_content": SERVICE, "unfreeze_on_demand": True,
    }  # fmt: skip
    service_id = running.call("POST", "/services", order).json()["service_id"]
    host = {"Host": "hello.on.unsandbox.com"}
    limit = time.monotonic() + 20
    while (answer := httpx.get(running.info.base_url, headers=host)).status_code == 503:
        assert time.monotonic() < limit, answer.text
        select.select([], [], [], 0.1)
    assert answer.text == "hello hello.on.unsandbox.com"
    frozen = running.call("POST", f"/services/{service_id}/freeze", {})
    assert frozen.json()["state"] == "frozen"
    assert httpx.get(running.info.base_url, headers=host).text == "hello hello.on.unsandbox.com"
    url = running.info.base_url + "/for-ever"
    with httpx.stream("GET", url, headers=host, timeout=30) as endless:
        parts = endless.iter_bytes()
        assert next(parts).startswith(b"hello")
        began = time.monotonic()
        assert server.stop_server(running.info)
        assert time.monotonic() - began < 12
        with pytest.raises(httpx.RemoteProtocolError):
            for _part in parts:
                pass


SOCKET = """#!/usr/bin/python3
import base64, hashlib, socket
served = socket.create_server(("127.0.0.1", 8000))
while True:
    one, _ = served.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head and (data := one.recv(4096)):
        head += data
    _, named, rest = head.lower().partition(b"sec-websocket-key: ")
    if not named:
        one.close()
        continue
    key = head[-len(rest):].split()[0]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    accept = base64.b64encode(digest)
    one.sendall(b"HTTP/1.1 101 Up\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                b"Sec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
    size, mask = one.recv(2)[1] & 127, one.recv(4)
    text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(one.recv(size)))
    one.sendall(bytes([0x81, len(text)]) + text)
    one.recv(100)
"""


def test_a_visitors_socket_reaches_a_service(running: Running) -> None:
    order = {"name": "sock", "ports": [8000], "bootstrap_content": SOCKET}
    running.call("POST", "/services", order)
    limit = time.monotonic() + 20
    while (answer := _greeted(running)).status_code == 503:
        assert time.monotonic() < limit, answer.text
        select.select([], [], [], 0.1)
    assert answer.json()["error"] == "service_failed", "it speaks sockets only"
    side = WSConnection(ConnectionType.CLIENT)
    with socket.create_connection((running.info.host, running.info.port), 20) as connection:
        request = told.Request(host="sock.on.unsandbox.com", target="/any")
        connection.sendall(side.send(request))
        assert isinstance(_heard(connection, side), told.AcceptConnection)
        connection.sendall(side.send(told.TextMessage(data="hi there")))
        heard = _heard(connection, side)
        assert isinstance(heard, told.TextMessage)
        assert heard.data == "hi there"
        began = time.monotonic()
        assert server.stop_server(running.info)
        assert time.monotonic() - began < 12
        assert isinstance(_heard(connection, side), told.CloseConnection)


def _greeted(running: Running) -> httpx.Response:
    return httpx.get(running.info.base_url, headers={"Host": "sock.on.unsandbox.com"}, timeout=20)


def _heard(connection: socket.socket, side: WSConnection) -> told.Event:
    while True:
        side.receive_data(connection.recv(4096) or None)
        for event in side.events():
            return event


def test_who_asks_is_who_is_connected(running: Running) -> None:
    """A sandbox comes over the loopback, too, and may say what it likes."""
    running.call("POST", "/sessions", {}, **{"X-Forwarded-For": "6.6.6.6"})
    database = SqliteDatabase(running.data_dir / "platform.db")
    with database.reading() as sql:
        assert sql.all("SELECT DISTINCT client_ip FROM audit_entry") == [{"client_ip": "127.0.0.1"}]
    database.close()


def test_killed_in_the_middle(running: Running) -> None:
    session_id = running.call("POST", "/sessions", {}, **{"Idempotency-Key": "k"}).json()["id"]
    path = f"/sessions/{session_id}"
    once = {"Idempotency-Key": "e1"}
    ran = running.call("POST", path + "/execute", {"command": "echo hi"}, **once).json()
    inside = descendants(running.info.pid)
    assert inside
    first_pid = running.info.pid
    running.kill()
    assert server.find_server(running.data_dir) is None
    # The kernel ends what is inside when its parent dies, but not in the same instant.
    assert wait_until_gone(inside, 20)
    checks = {finding.check for finding in platform_doctor(running.data_dir)}
    assert checks <= {"sessions", "sandboxes"}
    assert "sessions" in checks

    running.restart()
    assert running.info.pid != first_pid
    assert not any(identity.is_alive() for identity in inside)
    assert list((running.data_dir / "sandboxes").iterdir()) == []
    shown = running.call("GET", path).json()
    assert (shown["status"], shown["reason"]) == ("terminated", "platform_restarted")
    again = running.call("POST", path + "/execute", {"command": "echo hi"}, **once)
    assert again.json() == ran
    gone = running.call("POST", path + "/execute", {"command": "echo new"})
    assert (gone.status_code, gone.json()["error"]) == (410, "session_terminated")
    assert running.call("DELETE", path).status_code == 200
    assert running.call("POST", "/sessions", {}).json()["status"] == "running"
    assert platform_doctor(running.data_dir) == []


def test_killed_during_a_command(running: Running) -> None:
    path = f"/sessions/{running.call('POST', '/sessions', {}).json()['id']}"
    outcome: list[Exception] = []

    def run() -> None:
        try:
            running.call("POST", path + "/execute", {"command": "sleep 50"}, **once)
        except httpx.HTTPError as error:
            outcome.append(error)

    once = {"Idempotency-Key": "e1"}
    caller = threading.Thread(target=run)
    caller.start()
    _wait_for_running_command(running)
    running.kill()
    caller.join(20)
    assert len(outcome) == 1
    running.restart()
    again = running.call("POST", path + "/execute", {"command": "sleep 50"}, **once)
    assert (again.status_code, again.json()["error"]) == (410, "session_terminated")


@pytest.mark.parametrize("one_off", [True, False])
def test_a_stop_does_not_wait_for_a_long_command(running: Running, one_off: bool) -> None:
    if one_off:
        path, body = "/execute", {"language": "bash", "code": "sleep 50"}
        # Refused when the stop came before the sandbox was there.
        expected = {(500, "sandbox_died"), (503, "stopping")}
    else:
        session_id = running.call("POST", "/sessions", {}).json()["id"]
        path, body = f"/sessions/{session_id}/execute", {"command": "sleep 50"}
        expected = {(410, "session_terminated")}
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(running.call("POST", path, body)))
    caller.start()
    _wait_for_running_command(running)
    began = time.monotonic()
    assert server.stop_server(running.info)
    caller.join(20)
    assert time.monotonic() - began < 10
    assert (answers[0].status_code, answers[0].json()["error"]) in expected
    assert platform_doctor(running.data_dir) == []


def _wait_for_running_command(running: Running) -> None:
    # By the database, not by GET /jobs: polling would use up the key's requests.
    database = SqliteDatabase(running.data_dir / "platform.db")
    limit = time.monotonic() + 20
    count = 0
    while not count:
        assert time.monotonic() < limit
        with database.reading() as sql:
            count = sql.scalar("SELECT count(*) FROM execution WHERE state = 'running'")
    database.close()


def test_no_secret_reaches_the_log_and_all_files_are_private(running: Running) -> None:
    body = {"language": "bash", "code": "echo body-secret"}
    running.call("POST", "/execute", body)
    running.call("GET", "/sessions?token=query-secret")
    httpx.get(running.info.base_url + "/payment/invoice-secret/status")
    httpx.get(running.info.base_url + "/path-secret")
    text = (running.data_dir / "platform.log").read_text()
    assert '"route": "/execute"' in text
    for secret in (running.secret_key, "body-secret", "query-secret", "invoice-secret"):
        assert secret not in text
    assert "path-secret" not in text
    for path in running.data_dir.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_one_server_for_one_data_directory(running: Running) -> None:
    assert server.start_server(running.data_dir) == running.info
    command = [sys.executable, "-m", "machines.platform.server", "--data-dir"]
    second = subprocess.run(
        [*command, str(running.data_dir)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 4
    assert "another platform server has it" in second.stderr
    assert running.info.base_url in second.stderr
    assert server.find_server(running.data_dir) == running.info


def test_sigint_stops_with_exit_code_zero(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "machines.platform.server", "--data-dir"]
    child = subprocess.Popen(
        [*command, str(tmp_path / "data")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    lines = [child.stdout.readline(), child.stdout.readline()]
    assert lines[0].startswith("portal and API: http://127.0.0.1:")
    assert lines[1].startswith("ready http://127.0.0.1:")
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 0
    child.stdout.close()


def test_a_cut_reply_and_the_same_key_give_one_session(running: Running) -> None:
    server.stop_server(running.info)
    running.info = server.start_server(running.data_dir, allow_faults=True)
    fault = {"name": "drop_reply_after_commit", "route": "POST /sessions"}
    assert httpx.post(running.info.base_url + "/_test/faults", json=fault).status_code == 200
    once = {"Idempotency-Key": "k"}
    with pytest.raises(httpx.RemoteProtocolError):
        running.call("POST", "/sessions", {}, **once)
    made = running.call("POST", "/sessions", {}, **once).json()
    listed = running.call("GET", "/sessions").json()
    assert [each["id"] for each in listed["sessions"]] == [made["id"]]


def test_another_master_key_is_refused_at_the_start(running: Running) -> None:
    server.stop_server(running.info)
    key_file = running.data_dir / "master.key"
    key_file.write_bytes(base64.b64encode(b"x" * 32))
    with pytest.raises(server.ServerError, match="sealed with master key"):
        running.restart()


def test_parallel_starts_give_one_server(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    found: list[ServerInfo] = []
    starts = [
        threading.Thread(target=lambda: found.append(server.start_server(data_dir)))
        for _ in range(4)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert server.stop_server(found[0])
    # No late starter is left to take over.
    mine = [each for each in descendants(os.getpid()) if _serves(each.pid, data_dir)]
    assert mine == []


def _serves(pid: int, data_dir: Path) -> bool:
    try:
        return str(data_dir).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(server.DataDirectoryRefused, match=f"chmod 700 {tmp_path}"):
        server.start_server(tmp_path)


def test_a_refused_directory_is_told_in_the_words_of_the_server(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "platform.db").touch(0o600)
    (tmp_path / "platform.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(server.DataDirectoryRefused) as caught:
        server.start_server(tmp_path)
    expected = f"platform server: database {tmp_path / 'platform.db'}: not a readable SQLite"
    assert str(caught.value).startswith(expected)
    assert len(str(caught.value).splitlines()) == 1


def test_a_failed_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(server.ServerError, match="exit code 1") as caught:
            server.start_server(tmp_path / "data", port=port)
    assert f"127.0.0.1:{port}: cannot be bound" in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        {"host": "0.0.0.0"},  # noqa: S104
        {"backend": "none"},
        {"egress_allow": ["example.org"]},
        {"egress_burst": 0},
        {"tls_key": "/nowhere"},
        {"tls_key": "/nowhere", "tls_certificate": "/nowhere"},
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, option: dict[str, object]) -> None:
    with pytest.raises(server.ServerError, match="exit code 2"):
        server.start_server(tmp_path / "data", **option)


def test_an_old_announcement_is_not_believed(tmp_path: Path) -> None:
    announced = server.write_ready(tmp_path, "127.0.0.1", 80)
    assert server.find_server(tmp_path) == announced
    boot, _, ticks = announced.start_time.partition("/")
    for changed in (f"{boot}/{int(ticks) + 1}", f"other-boot/{ticks}", "nonsense"):
        stale = msgspec.structs.replace(announced, start_time=changed)
        (tmp_path / "ready.json").write_bytes(msgspec.json.encode(stale))
        assert server.find_server(tmp_path) is None
    (tmp_path / "ready.json").write_text("{")
    assert server.find_server(tmp_path) is None


def test_a_stranger_process_is_never_signalled(tmp_path: Path) -> None:
    mine = server.write_ready(tmp_path, "127.0.0.1", 80)
    recycled = msgspec.structs.replace(mine, start_time=mine.start_time + "0")
    assert isinstance(recycled, ServerInfo)
    assert not server.stop_server(recycled)


def test_finding_and_starting_need_no_web_framework() -> None:
    code = (
        "import sys, machines.platform.server\n"
        "heavy = {'starlette', 'uvicorn', 'sqlalchemy', 'alembic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
