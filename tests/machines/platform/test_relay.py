"""Headers of one hop, lengths that can be read in two ways, and bounds of an exchange."""

from __future__ import annotations

import pytest

from machines.platform.relay import Ambiguous, Meter, TooMuchData, end_to_end, is_chunked


def test_what_is_meant_for_one_hop_ends_there() -> None:
    given = [
        (b"Host", b"a"), (b"Connection", b"X-Mine, keep-alive"), (b"X-Mine", b"1"),
        (b"connection", b"x-other"), (b"X-Other", b"2"), (b"TE", b"trailers"),
        (b"Transfer-Encoding", b"chunked"), (b"Upgrade", b"h2c"), (b"Keep-Alive", b"5"),
        (b"Proxy-Authorization", b"x"), (b"Proxy-Connection", b"x"), (b"Trailer", b"x"),
        (b"X-Kept", b"3"), (b"x-kept", b"4"),
    ]  # fmt: skip
    assert end_to_end(given) == [(b"host", b"a"), (b"x-kept", b"3"), (b"x-kept", b"4")]


def test_a_length_that_can_be_read_in_two_ways() -> None:
    assert not is_chunked([(b"content-length", b"3")])
    assert is_chunked([(b"Transfer-Encoding", b"chunked")])
    with pytest.raises(Ambiguous, match="send one of them"):
        is_chunked([(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")])


def test_an_exchange_is_bounded_in_bytes_and_in_silence() -> None:
    now = 100.0
    meter = Meter(bytes_max=10, idle_seconds=5, now=lambda: now)
    now = 104.9
    assert not meter.is_idle
    now = 105.0
    assert meter.is_idle
    meter.moved(10)
    assert not meter.is_idle
    with pytest.raises(TooMuchData, match="more than 10 bytes"):
        meter.moved(1)
