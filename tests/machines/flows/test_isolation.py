"""Profiles are recognised, the innermost wall wins, and confidence grows with evidence only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.flows.isolation import (
    CERTAIN_PERCENT,
    SURE_PERCENT,
    BadEvidence,
    Reason,
    confidence_percent,
    match,
    read_evidence,
    reasons_by_profile,
)

FIRST = {"user": 4026531837, "pid": 4026531836, "uts": 4026531838, "ipc": 4026531839}
INSIDE = {"pid": 4026532600, "uts": 4026532598, "ipc": 4026532599}
ONE_TO_ONE = [[0, 0, 4294967295]]
MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi"]
ETC = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]
VIRTUAL = {"hypervisor": True, "machine_vendor": "QEMU Standard PC"}

RECORDED: dict[str, tuple[str, dict[str, Any]]] = {
    "firecracker guest whose disk was a docker image": (
        "vm",
        {
            "namespaces": FIRST,
            "uid_map": ONE_TO_ONE,
            "init_name": "process_api",
            "kernel_threads": True,
            "root_kind": "ext4",
            "root_source": "/dev/vda",
            "root_is_subtree": False,
            "marks": ["/.dockerenv"],
            "hypervisor": True,
            "interfaces": ["lo", "eth0"],
            "virtio_devices": 5,
            "seccomp": 0,
        },
    ),
    "bubblewrap with its own root": (
        "bubblewrap",
        {
            "namespaces": {"user": 4026532257, **INSIDE},
            "uid_map": [[0, 0, 1]],
            "init_name": "bwrap",
            "processes": 2,
            "no_new_privileges": 1,
            "user_id": 0,
            "root_kind": "tmpfs",
            "root_is_subtree": True,
            "usr_is_bound": True,
            "interfaces": ["lo"],
            "hypervisor": True,
            "masked": ["/proc/bus", "/proc/irq"],
        },
    ),
    "unshare as an ordinary user": (
        "bubblewrap",
        {
            "namespaces": {"user": 4026532257, **INSIDE},
            "uid_map": [[0, 1000, 1]],
            "init_name": "sh",
            "processes": 3,
            "root_kind": "ext4",
            "interfaces": ["lo"],
        },
    ),
    "docker": (
        "docker",
        {
            "namespaces": {**FIRST, **INSIDE},
            "uid_map": ONE_TO_ONE,
            "init_name": "python3",
            "processes": 2,
            "root_kind": "overlay",
            "root_source": "overlay",
            "masked": MASKED,
            "etc_mounts": ETC,
            "marks": ["/.dockerenv"],
            "seccomp": 2,
            "interfaces": ["lo", "eth0"],
            "hostname": "3f2a9c01b7de",
            **VIRTUAL,
        },
    ),
    "docker, nothing to talk to": (
        "docker",
        {
            "namespaces": {**FIRST, **INSIDE},
            "uid_map": ONE_TO_ONE,
            "init_name": "sleep",
            "root_kind": "overlay",
            "masked": MASKED,
            "etc_mounts": ETC,
            "seccomp": 2,
            "marks": ["/.dockerenv"],
            "interfaces": ["lo"],
            "no_new_privileges": 1,
        },
    ),
    "rootless podman": (
        "docker",
        {
            "namespaces": {"user": 4026532257, **INSIDE},
            "container_manager": "podman",
            "uid_map": [[0, 1000, 1], [1, 100000, 65536]],
            "root_kind": "overlay",
            "marks": ["/run/.containerenv"],
            "etc_mounts": ETC,
            "masked": MASKED,
        },
    ),
    "kubernetes without marks": (
        "docker",
        {
            "namespaces": {**FIRST, **INSIDE},
            "init_name": "server",
            "root_kind": "overlay",
            "masked": MASKED,
            "etc_mounts": ETC,
            "interfaces": ["lo", "eth0"],
            **VIRTUAL,
        },
    ),
    "unprivileged lxc": (
        "lxc",
        {
            "namespaces": {"user": 4026532257, **INSIDE},
            "uid_map": [[0, 100000, 65536]],
            "init_name": "systemd",
            "init_program": "init",
            "container_manager": "lxc",
            "lxcfs": True,
            "root_kind": "ext4",
            "root_source": "/dev/sda1",
            "seccomp": 2,
            "root_is_subtree": True,
            "interfaces": ["lo", "eth0"],
            "hypervisor": False,
        },
    ),
    "lxc without a manager's name": (
        "lxc",
        {
            "namespaces": {**FIRST, **INSIDE},
            "init_name": "init",
            "root_is_subtree": True,
            "cgroup_paths": ["/lxc.payload.web"],
            "interfaces": ["lo", "eth0"],
            **VIRTUAL,
        },
    ),
    "systemd-nspawn": (
        "nspawn",
        {
            "namespaces": {"user": 4026532257, **INSIDE},
            "init_name": "systemd",
            "uid_map": [[0, 524288, 65536]],
            "container_manager": "systemd-nspawn",
            "interfaces": ["lo", "host0"],
            "marks": ["/run/host"],
            "seccomp": 2,
        },
    ),
    "machine at a cloud": (
        "vm",
        {
            "namespaces": FIRST,
            "init_name": "systemd",
            "kernel_threads": True,
            "hypervisor": True,
            "machine_vendor": "Amazon EC2 t3.small",
            "root_source": "/dev/nvme0n1p1",
            "root_is_subtree": False,
        },
    ),
    "laptop": (
        "bare",
        {
            "namespaces": FIRST,
            "uid_map": ONE_TO_ONE,
            "init_name": "systemd",
            "kernel_threads": True,
            "hypervisor": False,
            "machine_vendor": "LENOVO 20XW",
            "root_kind": "ext4",
            "root_source": "/dev/nvme0n1p2",
            "root_is_subtree": False,
            "interfaces": ["lo", "wlp0s20f3", "docker0"],
            "seccomp": 0,
        },
    ),
}


@pytest.mark.parametrize("case", RECORDED)
def test_profile_is_recognised(case: str) -> None:
    profile, evidence = RECORDED[case]
    found = match(evidence)
    assert (found.profile, found.confidence_percent >= 70) == (profile, True), found
    assert found.confidence_percent == confidence_percent(found.reasons)
    assert all(reason.seen and 0 < reason.weight < 100 for reason in found.reasons)


def test_a_left_behind_mark_alone_convinces_nobody() -> None:
    assert match({"marks": ["/.dockerenv"]}).profile == "bare"


def test_seeing_nothing_is_no_confidence_in_anything() -> None:
    found = match({})
    assert (found.confidence_percent, found.reasons) == (0, ())


def test_a_container_in_a_virtual_machine_is_a_container() -> None:
    evidence = {**RECORDED["docker"][1], **VIRTUAL, "virtio_devices": 9}
    assert match(evidence).profile == "docker"


@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_less_evidence_never_gives_more_confidence(case: str, data: st.DataObject) -> None:
    whole = RECORDED[case][1]
    kept = data.draw(st.sets(st.sampled_from(sorted(whole))))
    part = {name: value for name, value in whole.items() if name in kept}
    before, after = (reasons_by_profile(read(some)) for some in (part, whole))
    for profile, reasons in before.items():
        assert confidence_percent(reasons) <= confidence_percent(after[profile])
    assert match(part).confidence_percent <= match(whole).confidence_percent or (
        match(part).profile != match(whole).profile
    )


def read(evidence: dict[str, Any]) -> Any:
    import msgspec

    return read_evidence(msgspec.json.encode(evidence).decode())


REASONS = st.builds(
    Reason, name=st.just("clue"), weight=st.integers(1, 99), seen=st.just("something")
)


@given(st.lists(REASONS, max_size=12), REASONS)
def test_one_more_reason_never_lowers_confidence(reasons: list[Reason], more: Reason) -> None:
    before = confidence_percent(tuple(reasons))
    after = confidence_percent((*reasons, more))
    assert 0 <= before <= after <= CERTAIN_PERCENT
    assert after >= min(more.weight, CERTAIN_PERCENT)


@given(st.permutations([Reason(name="a", weight=w, seen="x") for w in (7, 33, 45, 60, 85)]))
def test_order_of_reasons_does_not_matter(reasons: list[Reason]) -> None:
    assert confidence_percent(tuple(reasons)) == 97


TEXT = st.text("0a/\x1b€", max_size=30)
FLAT = st.none() | st.booleans() | st.integers() | TEXT
JSON = FLAT | st.lists(FLAT, max_size=4) | st.dictionaries(TEXT, FLAT, max_size=3)
FIELDS = sorted(read_evidence("{}").__struct_fields__)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_a_lying_sandbox_gets_a_verdict_or_a_clear_no(evidence: dict[str, Any]) -> None:
    try:
        found = match(evidence)
    except BadEvidence as error:
        assert "evidence" in str(error)
        return
    assert 0 <= found.confidence_percent <= CERTAIN_PERCENT


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "truncated"),
        ("[]", "array"),
        ('{"format": 2}', "format"),
        ('{"hostname": 5}', "hostname"),
        ('{"extra": 1}', "extra"),
        ('{"hostname": "\ud800"}', "evidence"),
        ('{"hostname": "' + "x" * 20_000 + '"}', "at most 16384"),
    ],
)
def test_what_is_no_evidence_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(BadEvidence, match=says):
        read_evidence(text)


def test_what_was_seen_is_safe_to_show() -> None:
    found = match({"container_manager": "lxc-" + "\x1b[31m" * 40})
    (reason,) = found.reasons
    assert "\x1b" not in reason.seen
    assert len(reason.seen) <= 80
    assert found.confidence_percent >= SURE_PERCENT
