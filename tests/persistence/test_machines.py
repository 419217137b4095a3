"""Machine versions: remembered once, as they were first seen."""

from __future__ import annotations


def test_a_version_is_remembered_once(store):
    store.machines.register("Payment", "abc", b'{"states":[]}', 1000)
    store.machines.register("Payment", "abc", b"{}", 2000)
    assert store.machines.shape("abc") == b'{"states":[]}'
    assert store.machines.shape("unknown") is None
