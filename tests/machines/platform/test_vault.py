"""The vault: what is text, what is JSON, what is kept, and that values are sealed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.platform import vault
from machines.platform.replies import Problem
from machines.platform.wire import Call

VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5))
def test_what_is_dumped_is_parsed_again(variables: dict[str, str]) -> None:
    assert vault.parse(vault.dump(variables), "env") == variables


def test_text_as_people_write_it() -> None:
    text = """
    # a comment
    A=plain
    export B = spaced out
    C='single $quoted'
    D="double \\"quoted\\" \\n \\\\ \\x"
    E=
    F=a=b#c
    """
    assert vault.parse(text, "env") == {
        "A": "plain",
        "B": "spaced out",
        "C": "single $quoted",
        "D": 'double "quoted" \n \\ \\x',
        "E": "",
        "F": "a=b#c",
    }


@pytest.mark.parametrize("text", ["", "# only", "secret words", "1A=x", "A-B=x", "=x", "A\u00e9=x"])
def test_refused_text_never_shows_a_value(text: str) -> None:
    with pytest.raises(Problem) as refused:
        vault.parse(text, "env")
    assert refused.value.status == 400
    assert "secret" not in refused.value.message


def call(raw: bytes, content_type: str) -> Any:
    from machines.platform.keys import KeyRow

    key = KeyRow(
        public_key="k",
        tier=1,
        status="active",
        created_ms=0,
        expires_ms=1,
        secret_viewed_ms=None,
        generation=1,
    )
    return Call(
        key=key,
        body={},
        path={},
        idempotency_key=None,
        digest="",
        raw=raw,
        content_type=content_type,
    )


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (b"A=1\nB=2\n", "text/plain"),
        (b"A=1\nB=2\n", "text/plain; charset=utf-8"),
        (b"A=1\nB=2\n", ""),
        (b'{"env":{"A":"1","B":"2"}}', "application/json"),
        (b'{"env":"A=1\\nB=2"}', "application/json"),
        (b'{"content":"A=1\\nB=2"}', "application/json"),
        (b'{"A":"1","B":"2"}', "application/json"),
        (b' {"A":"1","B":"2"}', "application/octet-stream"),
    ],
)
def test_every_shape_of_a_put(raw: bytes, content_type: str) -> None:
    assert vault.parse_put(call(raw, content_type)) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("raw", "content_type", "status"),
    [
        (b"", "", 400),
        (b"{}", "application/json", 400),
        (b"[]", "", 400),
        (b"A=1", "application/json", 400),
        (b"A=\xff", "text/plain", 400),
        (b"A=\0", "text/plain", 400),
        (b'{"env":5}', "", 400),
        (b'{"env":{}}', "", 400),
        (b'{"content":{"A":"1"}}', "", 400),
        (b'{"env":{"A":1}}', "", 400),
        (b'{"A":null}', "", 400),
        (b'{"A":"\\u0000"}', "", 400),
        (b"A=" + b"x" * vault.BYTES_MAX, "text/plain", 413),
        (b"A=" + b"x" * vault.BYTES_MAX * 3, "text/plain", 413),
        (b"A" * 300 + b"=1", "text/plain", 400),
    ],
)
def test_refused_puts(raw: bytes, content_type: str, status: int) -> None:
    with pytest.raises(Problem) as refused:
        vault.parse_put(call(raw, content_type))
    assert refused.value.status == status


async def test_writing_merges_removing_removes_and_rows_are_sealed(api: Any) -> None:
    made = await api.call(api.key(), "POST", "/services", {"name": "web"})
    service_id, codec = made.json()["id"], api.codec
    with api.database.transaction() as sql:
        assert vault.read(sql, codec, service_id) is None
        assert vault.remove(sql, codec, service_id, None, 1) is None
        vault.update(sql, codec, service_id, {"A": "hush", "B": "2"}, 1)
        assert vault.update(sql, codec, service_id, {"B": "3"}, 2) == {"A": "hush", "B": "3"}
        row = vault.stored(sql, service_id)
        assert row is not None
        assert (row["count"], row["updated_ms"]) == (2, 2)
        assert "hush" not in row["sealed"]
        assert vault.remove(sql, codec, service_id, ["A", "Z"], 3) == ["A"]
        assert vault.read(sql, codec, service_id) == {"B": "3"}
        assert vault.remove(sql, codec, service_id, None, 4) == ["B"]
        assert vault.read(sql, codec, service_id) is None


async def test_the_whole_vault_has_a_bound(api: Any) -> None:
    made = await api.call(api.key(), "POST", "/services", {"name": "web"})
    half = "x" * (vault.BYTES_MAX // 2)
    with api.database.transaction() as sql:
        vault.update(sql, api.codec, made.json()["id"], {"A": half}, 1)
        with pytest.raises(Problem) as refused:
            vault.update(sql, api.codec, made.json()["id"], {"B": half}, 1)
    assert (refused.value.status, refused.value.error) == (413, "vault_too_large")
    assert "xxx" not in refused.value.message


@pytest.mark.parametrize("keys", ["A", [1], {"A": 1}])
def test_refused_names(keys: Any) -> None:
    with pytest.raises(Problem) as refused:
        vault.parse_names({"keys": keys})
    assert refused.value.fields["field"] == "keys"
