"""Clients with the habits of published ones, against a real server with real sandboxes.

Each client is taken from its file with nothing changed but the base address, and does what a user
of it would do.  What they rely on: sections 1.3 (signing) and 1.7 (spelling) of the wire facts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.secrets import load_codec
from machines.platform import keys
from machines.platform.database import open_platform_database
from machines.platform.server import prepare_data_directory, start_server, stop_server

HERE = Path(__file__).parent
BASE = 'API_BASE = "https://api.unsandbox.com"'
STARTS_SECONDS = 30.0
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, tuple[str, str]]]:
    """A served platform's base address, and a bought key of its highest tier."""
    data_dir = tmp_path_factory.mktemp("platform", numbered=False) / "data"
    prepare_data_directory(data_dir)
    database = open_platform_database(data_dir)
    keys.bind(database, load_codec(data_dir / "master.key", os.environ))
    with database.transaction() as sql:
        public_key = keys.issue(sql, 32, 1, time.time_ns() // 1_000_000)
        pair = (public_key, keys.secret(sql, public_key))
    database.close()
    info = start_server(
        data_dir,
        payer_outputs=2,
        requests_per_minute_per_tier=10_000,
        operators=(public_key,),
    )
    yield info.base_url, pair
    stop_server(info)


def readdressed(name: str, base_url: str, directory: Path) -> Path:
    """A copy of a client, with its base address changed."""
    text = (HERE / name).read_text()
    assert text.count(BASE) == 1
    copy = directory / name
    copy.write_text(text.replace(BASE, f'API_BASE = "{base_url}"'))
    return copy


def loaded(name: str, base_url: str, directory: Path) -> Any:
    """A Python client as a module."""
    spec = importlib.util.spec_from_file_location(
        f"client_{name[:-3]}", readdressed(name, base_url, directory)
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until_running(state_of: Any) -> None:
    limit = time.monotonic() + STARTS_SECONDS
    while state_of() == "starting":
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert state_of() == "running"


def test_the_python_client(platform: tuple[str, tuple[str, str]], tmp_path: Path) -> None:
    un = loaded("un.py", platform[0], tmp_path)
    client = un.Client(*platform[1])
    told = client.validate_keys()
    assert (told["valid"], told["tier"]) == (True, 32)
    assert {"python", "bash"} <= set(client.languages())
    assert client.execute_code("python", "print(6 * 7)")["stdout"] == "42\n"
    failed = client.execute_code("bash", "echo oops >&2; exit 1")
    assert (failed["success"], failed["exit_code"], failed["stderr"]) == (False, 1, "oops\n")
    assert client.wait_for_job(client.execute_async("bash", "echo later"))["stdout"] == "later\n"

    session_id = client.create_session(network_mode="zerotrust")["session_id"]
    assert session_id in [each["session_id"] for each in client.list_sessions()]
    client.shell_session(session_id, "x=42; echo kept > /tmp/file")
    assert client.change("sessions", session_id, "freeze")["status"] == "frozen"
    client.change("sessions", session_id, "unfreeze")
    assert client.shell_session(session_id, "echo $x")["stdout"] == "42\n"
    assert client.change("sessions", session_id, "boost")["vcpu"] == 2
    assert client.change("sessions", session_id, "unboost")["vcpu"] == 1
    client.change("sessions", session_id, "lock")
    with pytest.raises(un.ApiError) as refused:
        client.delete("sessions", session_id)
    assert refused.value.status == 409
    client.change("sessions", session_id, "unlock")

    snapshot_id = client.session_snapshot(session_id, "one")["snapshot_id"]
    client.shell_session(session_id, "echo lost > /tmp/file")
    client.restore_snapshot(snapshot_id)
    assert client.shell_session(session_id, "cat /tmp/file")["stdout"] == "kept\n"
    clone_id = client.clone_snapshot(snapshot_id, "twin")["session_id"]
    client.shell_session(clone_id, "echo own > /tmp/file")
    assert client.shell_session(session_id, "cat /tmp/file")["stdout"] == "kept\n"
    assert client.shell_session(clone_id, "cat /tmp/file")["stdout"] == "own\n"

    service_id = client.create_service("py-service", [8080], "echo up")["service_id"]
    until_running(lambda: client.get("services", service_id)["state"])
    assert client.execute_in_service(service_id, "echo inside")["stdout"] == "inside\n"
    client.set_service_env(service_id, "A=1\nB=two\n")
    exported = client.export_service_env(service_id)
    assert exported["env"] == exported["content"]
    assert set(exported["env"].split()) >= {"A=1"}
    assert "up" in client.service_logs(service_id)
    assert client.change("services", service_id, "redeploy")["service_id"] == service_id

    image_id = client.image_publish("snapshot", snapshot_id, "py image")["image_id"]
    assert client.grant_image_access(image_id, platform[1][0])["id"] == image_id
    assert image_id in [each["id"] for each in client.list_images("owned")]
    for kind, thing_id in (
        ("images", image_id),
        ("snapshots", snapshot_id),
        ("services", service_id),
        ("sessions", clone_id),
        ("sessions", session_id),
    ):
        client.delete(kind, thing_id)
    assert client.list_jobs() == []


def test_the_c_client(platform: tuple[str, tuple[str, str]], tmp_path: Path) -> None:
    un = loaded("un_c.py", platform[0], tmp_path)
    client = un.Client(*platform[1])
    assert client.validate() == (True, 32)
    assert client.execute("python", 'print("a\\tb")') == ("a\\tb\n", 0)
    assert client.execute("bash", "exit 7")[1] == 7

    session_id = client.create_session(audited=True)
    assert client.session_id_of(client.container_of(session_id)) == session_id
    assert client.session_state(session_id) == "running"
    client.freeze(session_id)
    assert client.session_state(session_id) == "frozen"
    client.unfreeze(session_id)
    client.boost(session_id)
    snapshot_id = client.session_snapshot(session_id, "c")
    client.restore(snapshot_id)

    service_id = client.create_service("c-service", "echo up")
    until_running(lambda: client.service_state(service_id))
    client.set_vault(service_id, "A=1\nB=two words\n")
    assert "A=1" in client.export_vault(service_id)
    assert client.service_execute(service_id, "echo inside") == ("inside\n", 0)
    image_id = client.publish(service_id, "c image")
    assert f'"{image_id}"' in client.owned_images()
    spawned_id = client.spawn(image_id, "c-spawned")
    assert spawned_id != service_id
    client.delete("services", spawned_id)
    client.delete("services", service_id)
    client.delete("snapshots", snapshot_id)
    client.delete("images", image_id)
    recorded = client.delete("sessions", session_id, "?audit=1")
    assert '"artifacts":[' in recorded


def test_an_operator_reads_the_logs_as_the_c_client_asks(
    platform: tuple[str, tuple[str, str]], tmp_path: Path
) -> None:
    un = loaded("un_c.py", platform[0], tmp_path)
    client = un.Client(*platform[1])
    client.execute("bash", "echo logged")
    for source, expected in (("all", '{"source":"api","line":"'), ("pool/local", "sandbox.")):
        path = f"/logs/{source}"
        query = "?lines=500&since=1h&level=info"
        text = client.expect((200,), "GET", path + query, signed_path=path)
        assert '"lines":[' in text
        assert expected in text
        assert platform[1][1] not in text
        assert "echo logged" not in text


def run_the_javascript_client(platform: tuple[str, tuple[str, str]], tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "UNSANDBOX_PUBLIC_KEY": platform[1][0],
        "UNSANDBOX_SECRET_KEY": platform[1][1],
    }
    ran = subprocess.run(
        [str(NODE), str(readdressed("un.mjs", platform[0], tmp_path))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == "done"


if NODE is not None:  # a machine without it has no JavaScript clients either; CI installs it
    test_the_javascript_client = run_the_javascript_client
