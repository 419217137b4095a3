"""Bodies about snapshots and images: the forms that the endpoints' tests do not tell apart."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform import archive_orders
from machines.platform.replies import Problem

KEY = "unsb-pk-aaaa-bbbb-cccc-dddd"


def test_both_forms_of_a_snapshot_mean_the_same() -> None:
    more = {"name": "n", "hot": True, "ttl": 5}
    one = archive_orders.parse_snapshot({"source_type": "service", "source_id": "s", **more})
    other = archive_orders.parse_snapshot({"service_id": "s", **more})
    assert one == other
    assert (one.source_type, one.source_id, one.name, one.hot) == ("service", "s", "n", True)
    assert one.ttl_seconds == 5


def test_what_is_null_or_empty_is_absent() -> None:
    body = {"session_id": "s", "service_id": None, "name": "", "hot": None, "ttl": 0}
    order = archive_orders.parse_snapshot(body)
    assert (order.source_type, order.name, order.hot, order.ttl_seconds) == (
        "session",
        None,
        False,
        None,
    )


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\udfff end"])
def test_text_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="half surrogates"):
        archive_orders.plain({"name": text}, "name", 100)


@pytest.mark.parametrize("name", archive_orders.KEY_FIELDS)
def test_a_trusted_key_has_three_names(name: str) -> None:
    assert archive_orders.parse_trusted_key({name: KEY}) == KEY
    assert archive_orders.parse_trusted_key(dict.fromkeys(archive_orders.KEY_FIELDS, KEY)) == KEY


@pytest.mark.parametrize("value", [None, 1, "", KEY + "\n", "unsb-sk-aaaa", "unsb-pk-" + "a" * 81])
def test_what_is_no_public_key_is_named(value: Any) -> None:
    with pytest.raises(Problem, match="'api_key'"):
        archive_orders.parse_public_key({"api_key": value}, "api_key")


def test_filters_and_visibilities_have_their_other_names() -> None:
    assert archive_orders.parse_filter({}) is None
    assert archive_orders.parse_filter({"filter": "all"}) is None
    assert archive_orders.parse_filter({"filter": "shared"}) == "shared"
    assert archive_orders.parse_visibility({"visibility": "shared"}) == "unlisted"
    assert archive_orders.parse_listing({}) is None
    assert archive_orders.parse_listing({"source_type": "service"}) == "service"
