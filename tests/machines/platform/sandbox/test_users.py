"""Root gives each sandbox a host user of its own; an ordinary user has none to give."""

from __future__ import annotations

import os

import pytest

from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.users import free_user_id

WHOLE = "         0          0 4294967295\n"


def test_an_ordinary_user_stays_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert free_user_id(set(), WHOLE) is None


@pytest.mark.parametrize(
    ("uid_map", "base"),
    [(WHOLE, 300_000), ("0 100000 65536\n", 20_000), ("0 1000 1\n1 100000 400000\n", 300_000)],
)
def test_root_gives_an_id_that_is_mapped(
    monkeypatch: pytest.MonkeyPatch, uid_map: str, base: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    user_id = free_user_id(set(), uid_map)
    assert user_id is not None
    assert base <= user_id < base + 40_000


def test_an_id_in_use_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    used = set(range(300_000, 340_000)) - {312_345}
    assert free_user_id(used, WHOLE) == 312_345


def test_root_without_spare_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="start the platform as an ordinary user"):
        free_user_id(set(), "0 1000 1\n")
