"""What may be reached: rules, addresses in every disguise, and the bucket."""

from __future__ import annotations

import ipaddress

import pytest

from engine.errors import UsageError
from machines.platform.egress_policy import (
    Destination,
    EgressPolicy,
    PlatformAddress,
    TokenBucket,
    denied,
    is_public,
    parse_destination,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org:443", "example.org", 443),
        ("Example.ORG.:80", "example.org", 80),
        ("*.example.org:443", "*.example.org", 443),
        ("[2001:db8::1]:8080", "2001:db8::1", 8080),
        ("192.0.2.7:1", "192.0.2.7", 1),
    ],
)
def test_a_rule_is_read(text: str, host: str, port: int) -> None:
    assert parse_destination(text) == Destination(host, port)


@pytest.mark.parametrize(
    "text", ["", "example.org", "example.org:", ":80", "a:0", "a:65536", "*:80", "a b:80",
             "http://a:80", "a*.org:80", "2001:db8::1:80", "a:80:80", "*.:1", "a/b:1"],
)  # fmt: skip
def test_another_shape_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        parse_destination(text)


def test_a_wildcard_covers_names_below_and_not_the_name_itself() -> None:
    rule = parse_destination("*.example.org:443")
    assert rule.covers("a.example.org", 443)
    assert rule.covers("a.b.example.org", 443)
    assert not rule.covers("example.org", 443)
    assert not rule.covers(".example.org", 443)
    assert not rule.covers("badexample.org", 443)
    assert not rule.covers("a.example.org", 80)
    assert not parse_destination("example.org:443").covers("a.example.org", 443)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.0.3", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "0.0.0.0", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",  # noqa: S104
        "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1", "ff02::1", "ff0e::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1",
    ],
)  # fmt: skip
def test_no_address_of_this_side_is_dialled(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert EgressPolicy().dialable([ipaddress.ip_address(address)]) == []


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_an_address_of_the_open_internet_is(address: str) -> None:
    parsed = ipaddress.ip_address(address)
    assert EgressPolicy().dialable([ipaddress.ip_address("10.0.0.1"), parsed]) == [parsed]


def test_the_bucket_lets_a_burst_through_and_then_a_steady_rate() -> None:
    bucket = TokenBucket(5.0, 3, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(100.0) == pytest.approx(0.2)
    assert bucket.take(100.1) == pytest.approx(0.1)
    assert bucket.take(100.25) == 0.0
    assert bucket.take(1000.0) == 0.0
    assert [bucket.take(1000.0) for _ in range(3)][:2] == [0.0, 0.0]
    assert bucket.take(999.0) > 0, "a clock that goes back gives nothing"


def test_a_refusal_names_the_host_and_what_is_allowed() -> None:
    policy = EgressPolicy(allow=(parse_destination("a.org:443"),))
    problem = denied("b.org", 80, "no", policy, PlatformAddress("127.0.0.1", 8000).ports)
    assert (problem.status, problem.error) == (403, "egress_denied")
    assert problem.fields["allowed"] == [
        "api.unsandbox.com:80", "platform.turtles:80", "unsandbox.com:80", "a.org:443",
    ]  # fmt: skip
    assert "b.org:80: no. Allowed from here: " in problem.message


@pytest.mark.parametrize("wrong", [{"requests_per_second": 0}, {"burst": 0}])
def test_limits_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="egress"):
        EgressPolicy(**wrong)  # type: ignore[arg-type]
