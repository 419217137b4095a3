"""Signatures: the documented check values, the accepted variants, and nothing besides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machines.platform import auth
from machines.platform.auth import SignedRequest
from machines.platform.keys import KeyRow
from machines.platform.replies import Problem

SECRET = "unsb-sk-aaaaa-bbbbb-ccccc-ddddd"
NOW_MS = 1_700_000_000_000
ROW = KeyRow(
    public_key="unsb-pk-aaaa-bbbb-cccc-dddd",
    tier=1,
    status="active",
    created_ms=0,
    expires_ms=NOW_MS + 1000,
    secret_viewed_ms=None,
    generation=1,
)


def request(
    method: str = "GET",
    path: str = "/jobs",
    query: str = "",
    body: bytes = b"",
    *,
    signed_path: str | None = None,
    signed_body: bytes | None = None,
    timestamp: bytes = b"1700000000",
    signature: bytes | None = None,
) -> SignedRequest:
    target = path + ("?" + query if query else "")
    over_path = (target if signed_path is None else signed_path).encode()
    over_body = body if signed_body is None else signed_body
    made = auth.sign(SECRET, timestamp, method.encode(), over_path, over_body)
    return SignedRequest(
        method=method.encode(),
        path=path.encode(),
        query=query.encode(),
        body=body,
        authorization=f"Bearer {ROW.public_key}".encode(),
        timestamp=timestamp,
        signature=made if signature is None else signature,
    )


def verify(signed: SignedRequest, now_ms: int = NOW_MS) -> KeyRow:
    return auth.authenticate(
        signed,
        now_ms=now_ms,
        find=lambda key: ROW if key == ROW.public_key else None,
        secret_of=lambda _key: SECRET,
    )


def refusal(signed: SignedRequest, now_ms: int = NOW_MS) -> Problem:
    with pytest.raises(Problem) as caught:
        verify(signed, now_ms)
    assert caught.value.status == 401
    return caught.value


@pytest.mark.parametrize(
    ("method", "path", "body", "signature"),
    [
        (
            "POST",
            "/execute",
            b'{"language":"python","code":"print(1)"}',
            b"0a687a7b636796fcd3aca6a545bdc131a1c283c3b9ae711953439a9d450d1c7a",
        ),
        ("GET", "/jobs", b"", b"541580d036838594a38213dafd7294910e61e2b6663140587e8912d41356b646"),
        (
            "POST",
            "/services/x/lock",
            b"{}",
            b"5c322a86a66d192f20668e99f8f39befe3d9b30a4291d64c04b3c84de0bc5fd6",
        ),
    ],
)
def test_check_values_of_the_wire_facts(
    method: str, path: str, body: bytes, signature: bytes
) -> None:
    assert auth.sign(SECRET, b"1700000000", method.encode(), path.encode(), body) == signature
    assert verify(request(method, path, body=body, signature=signature)) is ROW


@pytest.mark.parametrize(
    "made",
    [
        request(query="a=1&b=2"),
        request(query="a=1", signed_path="/jobs"),
        request(query="grep=two%20words", signed_path="/jobs?grep=two words"),
        request(query="grep=two+words"),
        request("POST", "/x/lock", body=b"{}", signed_body=b""),
        request("POST", "/x/lock", body=b"{}"),
        request("DELETE", "/x/env", body=b'{"keys":["a"]}'),
        request("POST", "/x", body=b'{ "spaced" : 1 }'),
    ],
)
def test_accepted_variants(made: SignedRequest) -> None:
    assert verify(made) is ROW


@pytest.mark.parametrize(
    "made",
    [
        request("POST", "/x", body=b'{"a":1}', signed_body=b""),
        request("POST", "/x", body=b"{ }", signed_body=b""),
        request("POST", "/x", body=b"", signed_body=b"{}"),
        request(query="a=1", signed_path="/jobs?a=2"),
        request(path="/jobs/", signed_path="/jobs"),
        request(query="a+b", signed_path="/jobs?a b"),
        request(signature=b""),
        request(signature=b"0" * 64),
    ],
)
def test_nothing_else_is_accepted(made: SignedRequest) -> None:
    assert refusal(made).error == "invalid_signature"


def test_upper_case_signature_is_refused() -> None:
    good = request()
    made = request(signature=good.signature.upper())
    assert refusal(made).error == "invalid_signature"


@pytest.mark.parametrize("apart", [-300, 300])
def test_five_minutes_are_tolerated_on_both_sides(apart: int) -> None:
    assert verify(request(timestamp=str(1_700_000_000 + apart).encode())) is ROW


@pytest.mark.parametrize("apart", [-301, 301, -10_000_000])
def test_a_stale_time_is_refused_with_the_word_timestamp(apart: int) -> None:
    problem = refusal(request(timestamp=str(1_700_000_000 + apart).encode()))
    assert problem.error == "invalid_timestamp"
    assert "timestamp" in problem.message


@pytest.mark.parametrize("text", [b"", b"now", b"1700000000.0", b"-1700000000", b" 1700000000"])
def test_a_malformed_time_is_refused(text: bytes) -> None:
    assert refusal(request(timestamp=text)).error == "invalid_timestamp"


def test_unknown_and_missing_keys_are_refused() -> None:
    good = request()
    for text in (b"", b"Bearer ", b"Basic abc", b"Bearer unsb-pk-none", b"Bearer \xff"):
        made = SignedRequest(
            method=good.method,
            path=good.path,
            query=good.query,
            body=good.body,
            authorization=text,
            timestamp=good.timestamp,
            signature=good.signature,
        )
        assert refusal(made).error == "invalid_key"


@pytest.mark.parametrize(
    ("status", "expected"), [("suspended", "suspended"), ("active", "expired")]
)
def test_standing(status: str, expected: str) -> None:
    row = KeyRow(
        public_key="unsb-pk-x",
        tier=1,
        status=status,
        created_ms=0,
        expires_ms=10,
        secret_viewed_ms=None,
        generation=1,
    )
    with pytest.raises(Problem) as caught:
        auth.check_standing(row, 10)
    assert (caught.value.status, caught.value.error) == (401, expected)


def test_a_header_sent_twice_is_refused() -> None:
    twice = [(b"x-timestamp", b"1"), (b"x-timestamp", b"2")]
    with pytest.raises(Problem) as caught:
        auth.from_headers("GET", b"/", b"", b"", twice)
    assert caught.value.status == 400


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?"))


@settings(max_examples=400)
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH"]),
    path=TEXT.map(lambda text: "/" + text),
    query=TEXT,
    body=st.binary(max_size=40),
    part=st.sampled_from(["method", "path", "query", "body", "timestamp", "signature"]),
    position=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_refused(
    method: str, path: str, query: str, body: bytes, part: str, position: int, bit: int
) -> None:
    good = request(method, path, query, body)
    assert verify(good) is ROW
    fields: dict[str, Any] = {name: getattr(good, name) for name in SignedRequest.__struct_fields__}
    value = bytearray(fields[part])
    if not value:
        return
    value[position % len(value)] ^= 1 << bit
    refusal(SignedRequest(**{**fields, part: bytes(value)}))
