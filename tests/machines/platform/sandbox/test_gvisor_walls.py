"""What counts as a hole in a gVisor sandbox."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from machines.platform.sandbox import gvisor_walls

TIGHT: dict[str, Any] = {
    "status": [{"CapEff": "0" * 16, "CapBnd": "0" * 16}] * 2,
    "kernel": "Linux sandbox 4.4.0 #1 SMP",
    "interfaces": ["lo"],
    "processes": 4,
    "writable": [],
}


def holes(**changes: Any) -> list[str]:
    found = gvisor_walls.find_holes(json.dumps({**TIGHT, **changes}).encode(), [])
    return [hole for hole in found if hole != "its kernel was not found among the host's processes"]


def test_a_tight_one_has_no_hole_inside() -> None:
    assert holes() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": [{"CapEff": "1", "CapBnd": "0"}]}, "capabilities"),
        ({"kernel": f"Linux sandbox {os.uname().release} #1"}, "the host's kernel"),
        ({"interfaces": ["lo", "eth0"]}, "interfaces"),
        ({"processes": 90}, "90 processes"),
        ({"writable": ["/usr/x"]}, "/usr/x"),
    ],
)
def test_each_missing_wall_is_named(changes: dict[str, Any], said: str) -> None:
    assert [said in hole for hole in holes(**changes)] == [True]


@pytest.mark.parametrize("output", [b"", b"{}", b"[]", b'{"status": 1}'])
def test_an_answer_that_says_nothing_is_a_hole(output: bytes) -> None:
    assert "could not be inspected" in gvisor_walls.find_holes(output, [])[0]


def test_a_kernel_that_is_an_ordinary_process_of_the_host_is_a_hole() -> None:
    assert gvisor_walls._outside([os.getpid()]) == [
        "its kernel was not found among the host's processes"
    ]
