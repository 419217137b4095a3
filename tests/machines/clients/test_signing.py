"""The signature, by the check values of platform-api.md section 1.1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.secrets import Secret
from machines.clients.ports import Credentials
from machines.clients.signing import headers, sign

SECRET = Secret("unsb-sk-aaaaa-bbbbb-ccccc-ddddd")
AT_SECONDS = 1700000000


@pytest.mark.parametrize(
    ("method", "target", "body", "signature"),
    [
        (
            "POST",
            "/execute",
            b'{"language":"python","code":"print(1)"}',
            "0a687a7b636796fcd3aca6a545bdc131a1c283c3b9ae711953439a9d450d1c7a",
        ),
        ("GET", "/jobs", b"", "541580d036838594a38213dafd7294910e61e2b6663140587e8912d41356b646"),
        (
            "POST",
            "/services/x/lock",
            b"{}",
            "5c322a86a66d192f20668e99f8f39befe3d9b30a4291d64c04b3c84de0bc5fd6",
        ),
    ],
)
def test_check_values(method: str, target: str, body: bytes, signature: str) -> None:
    assert sign(SECRET, method, target, body, AT_SECONDS) == signature
    assert sign(SECRET, method.lower(), target, body, AT_SECONDS) == signature


def test_headers_hold_the_signature_and_never_the_secret() -> None:
    credentials = Credentials(public_key="unsb-pk-1", secret_key=SECRET)
    made = headers(credentials, "GET", "/jobs", b"", AT_SECONDS)
    assert made == {
        "Authorization": "Bearer unsb-pk-1",
        "X-Timestamp": "1700000000",
        "X-Signature": "541580d036838594a38213dafd7294910e61e2b6663140587e8912d41356b646",
    }
    assert SECRET.reveal() not in repr((credentials, made))


@given(st.binary(min_size=1, max_size=60), st.data())
def test_one_flipped_bit_of_the_body_changes_about_half_of_the_signature(
    body: bytes, data: st.DataObject
) -> None:
    bit = data.draw(st.integers(0, len(body) * 8 - 1))
    other = bytearray(body)
    other[bit // 8] ^= 1 << bit % 8
    first = int(sign(SECRET, "POST", "/execute", body, AT_SECONDS), 16)
    second = int(sign(SECRET, "POST", "/execute", bytes(other), AT_SECONDS), 16)
    assert 70 <= (first ^ second).bit_count() <= 186
