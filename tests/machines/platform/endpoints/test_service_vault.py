"""`/services/{id}/env` over HTTP: five ways to write, two to read, nothing shown by accident."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

Pair = tuple[str, str]


async def call(api: Any, pair: Pair, method: str, path: str, body: Any = None) -> Any:
    """A call whose answer is one that the endpoint describes."""
    api.now_ms += 9_000  # stay within the rate of a small key
    answer = await api.call(pair, method, f"/services/web{path}", body)
    bare = path.partition("?")[0]
    endpoint = next(
        each
        for each in api.app.state.api.endpoints()
        if (each.method, each.path) == (method, f"/services/{{service_id}}{bare}")
    )
    assert answer.status_code in endpoint.statuses, (path, answer.text)
    if answer.is_success and answer.headers["content-type"] == "application/json":
        jsonschema_rs.validate(endpoint.answers[200], answer.json())
    return answer


@pytest.fixture
async def pair(api: Any) -> Pair:
    owner: Pair = api.key()
    assert (await api.call(owner, "POST", "/services", {"name": "web"})).status_code == 200
    return owner


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("PUT", b"A=hush\nB=2\n"),
        ("PUT", {"env": {"A": "hush", "B": "2"}}),
        ("PUT", {"content": "A=hush\nB=2\n"}),
        ("POST", {"env": "A=hush\nB=2\n"}),
        ("POST", {"A": "hush", "B": "2"}),
    ],
)
async def test_every_way_to_write(api: Any, pair: Pair, method: str, body: Any) -> None:
    written = await call(api, pair, method, "/env", body)
    shown = written.json()
    assert (written.status_code, shown["success"], shown["count"]) == (200, True, 2)
    assert shown["env"] == {"A": "********", "B": "********"}
    assert "hush" not in written.text
    exported = (await call(api, pair, "POST", "/env/export", {})).json()
    assert exported["env"] == exported["content"] == "A=hush\nB=2\n"


async def test_reading_shows_names_and_an_export_values(api: Any, pair: Pair) -> None:
    await call(api, pair, "PUT", "/env", b"A=hush")
    shown = await call(api, pair, "GET", "/env")
    document = shown.json()
    assert (document["has_vault"], document["count"], document["keys"]) == (True, 1, ["A"])
    assert document["updated_at"] * 1000 in range(api.now_ms - 20_000, api.now_ms)
    assert "hush" not in shown.text
    exported = await call(api, pair, "GET", "/env?format=export")
    assert exported.headers["content-type"].startswith("text/plain")
    assert exported.text == "A=hush\n"


async def test_writes_merge_and_deletes_remove(api: Any, pair: Pair) -> None:
    await call(api, pair, "PUT", "/env", {"env": {"A": "1", "B": "2", "C": "3"}})
    await call(api, pair, "POST", "/env", {"B": "4"})
    removed = await call(api, pair, "DELETE", "/env", {"keys": ["A", "Z"]})
    assert removed.json()["deleted"] == ["A"]
    assert (await call(api, pair, "POST", "/env/export")).json()["env"] == "B=4\nC=3\n"
    assert (await call(api, pair, "DELETE", "/env")).json()["deleted"] == ["B", "C"]
    assert (await call(api, pair, "GET", "/env")).status_code == 404


async def test_without_a_vault(api: Any, pair: Pair) -> None:
    for method, path in (
        ("GET", "/env"),
        ("GET", "/env?format=export"),
        ("DELETE", "/env"),
        ("POST", "/env/export"),
    ):
        answer = await call(api, pair, method, path)
        assert (answer.status_code, answer.json()["error"]) == (404, "no_vault")


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("PUT", b"no equals sign", 400),
        ("PUT", b"[]", 400),
        ("PUT", {"env": 1}, 400),
        ("PUT", b"A=" + b"x" * 70_000, 413),
        ("POST", {}, 400),
        ("POST", {"1A": "x"}, 400),
        ("POST", {"A": 1}, 400),
        ("POST", {"env": "A=" + "x" * 70_000}, 413),
        ("DELETE", {"keys": "A"}, 400),
    ],
)
async def test_refused(api: Any, pair: Pair, method: str, body: Any, status: int) -> None:
    answer = await call(api, pair, method, "/env", body)
    assert answer.status_code == status
    assert (await call(api, pair, "GET", "/env")).status_code == 404


async def test_another_tenants_vault_is_one_that_does_not_exist(api: Any, pair: Pair) -> None:
    await call(api, pair, "PUT", "/env", b"A=hush")
    stranger = api.key()
    for method, path, body in (
        ("GET", "/env", None),
        ("GET", "/env?format=export", None),
        ("PUT", "/env", b"A=2"),
        ("POST", "/env", {"A": "2"}),
        ("DELETE", "/env", None),
        ("POST", "/env/export", None),
    ):
        answer = await call(api, stranger, method, path, body)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert (await call(api, pair, "POST", "/env/export")).json()["env"] == "A=hush\n"


async def test_what_is_stored_is_sealed(api: Any, pair: Pair) -> None:
    await call(api, pair, "PUT", "/env", b"A=hush-hush")
    for file in api.data_dir.glob("platform.db*"):
        assert b"hush-hush" not in file.read_bytes()
