"""Where groups are made, what is written there, and that only ours are ever removed.

The trees are plain directories: the kernel's own reaction is covered where a machine has it, by
test_bubblewrap.py and test_walls.py with enforcement "cgroup".
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from machines.platform.sandbox.cgroups import (
    PREFIX,
    Cgroup,
    Tree,
    find_tree,
    group_name,
    group_prefix,
    remove_groups,
    thaw_groups,
)

MIB = 1024 * 1024


def membership(path: Path, *lines: str) -> Path:
    file = path / "membership"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def version_2_group(path: Path, controllers: str, members: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers)
    (path / "cgroup.procs").write_text(members)
    (path / "cgroup.subtree_control").write_text("")
    return path


def test_version_1_uses_our_own_group_of_each_controller(tmp_path: Path) -> None:
    for name in ("memory/box", "pids", "cpu"):
        (tmp_path / name).mkdir(parents=True)
    own = membership(tmp_path, "8:pids:/", "4:memory:/box", "1:cpu:/", "0::/")
    tree = find_tree(tmp_path, own)
    assert tree is not None
    assert tree.version == 1
    assert tree.parents["memory"] == tmp_path / "memory" / "box"
    assert tree.parents["pids"] == tmp_path / "pids"


@pytest.mark.parametrize("lines", [(), ("8:pids:/",), ("0::/",), ("5:hugetlb:/", "0::/")])
def test_without_memory_and_pids_there_is_no_tree(tmp_path: Path, lines: tuple[str, ...]) -> None:
    (tmp_path / "pids").mkdir()
    assert find_tree(tmp_path, membership(tmp_path, *lines)) is None


def test_without_any_membership_there_is_no_tree(tmp_path: Path) -> None:
    assert find_tree(tmp_path, tmp_path / "absent") is None


def test_a_delegated_group_is_shared_out_after_we_step_down(tmp_path: Path) -> None:
    version_2_group(tmp_path, "cpu memory pids")
    own = version_2_group(tmp_path / "user" / "scope", "cpu memory pids", f"{os.getpid()}\n")
    version_2_group(own / "turtles-supervisor", "")
    tree = find_tree(tmp_path, membership(tmp_path, "0::/user/scope"))
    assert tree is not None
    assert (tree.version, set(tree.parents.values())) == (2, {own})
    assert (own / "turtles-supervisor" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_after_stepping_down_the_parent_is_found_again(tmp_path: Path) -> None:
    version_2_group(tmp_path, "memory pids")
    own = version_2_group(tmp_path / "scope", "memory pids")
    tree = find_tree(tmp_path, membership(tmp_path, "0::/scope/turtles-supervisor"))
    assert tree is not None
    assert tree.parents["memory"] == own


def test_a_group_with_other_processes_is_not_taken_over(tmp_path: Path) -> None:
    version_2_group(tmp_path, "cpu")
    own = version_2_group(tmp_path / "shared", "memory pids", f"{os.getpid()}\n1\n")
    assert find_tree(tmp_path, membership(tmp_path, "0::/shared")) is None
    assert not (own / "turtles-supervisor").exists()


def test_root_makes_its_groups_below_the_systems_root_group(tmp_path: Path) -> None:
    version_2_group(tmp_path, "memory pids", "1\n")
    version_2_group(tmp_path / "session", "memory pids", f"1\n{os.getpid()}\n")
    version_2_group(tmp_path / "turtles", "memory pids")
    tree = find_tree(tmp_path, membership(tmp_path, "0::/session"))
    assert tree is not None
    assert tree.parents["memory"] == tmp_path / "turtles"


def test_version_2_limits_are_written(tmp_path: Path) -> None:
    group = Tree(2, dict.fromkeys(("memory", "pids", "cpu"), tmp_path)).group(f"{PREFIX}one")
    group.create(memory_bytes=64 * MIB, pids=20, vcpus=2)
    directory = tmp_path / f"{PREFIX}one"
    written = {each.name: each.read_text() for each in directory.iterdir()}
    assert written == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "cpu.max": "200000 100000",
        "pids.max": "20",
    }
    assert group.paths() == (str(directory),)


def test_version_1_limits_are_written(tmp_path: Path) -> None:
    parents = {name: tmp_path / name for name in ("memory", "pids")}
    for parent in parents.values():
        parent.mkdir()
    group = Tree(1, parents).group(f"{PREFIX}one")
    group.create(memory_bytes=64 * MIB, pids=20, vcpus=1)
    assert (parents["memory"] / group_file("memory.limit_in_bytes")).read_text() == str(64 * MIB)
    assert (parents["pids"] / group_file("pids.max")).read_text() == "20"


def group_file(name: str) -> str:
    return f"{PREFIX}one/{name}"


def test_use_is_read_back_in_both_versions(tmp_path: Path) -> None:
    files = {
        "memory.events": "low 0\noom 3\noom_kill 2\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
        "memory.current": "100\n",
        "memory.peak": "200\n",
        "memory.usage_in_bytes": "300\n",
        "memory.max_usage_in_bytes": "400\n",
        "cpu.stat": "usage_usec 1500000\n",
        "cpuacct.usage": "2500000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    places = dict.fromkeys(("memory", "pids", "cpu", "cpuacct"), tmp_path)
    two, one = Cgroup(2, places), Cgroup(1, places)
    assert (two.oom_kills(), two.memory_bytes(), two.memory_peak_bytes()) == (2, 100, 200)
    assert (one.oom_kills(), one.memory_bytes(), one.memory_peak_bytes()) == (5, 300, 400)
    assert (two.cpu_seconds(), one.cpu_seconds()) == (1.5, 2.5)


def test_a_groups_name_tells_the_platform_and_not_the_sandbox() -> None:
    names = {
        group_name(Path(root), sandbox_id)
        for root in ("/here", "/there")
        for sandbox_id in ("unsb-session-1", "unsb-session-2")
    }
    assert len(names) == 4
    assert not any("session" in name for name in names)
    assert sum(name.startswith(group_prefix(Path("/here"))) for name in names) == 2


def test_only_directories_with_our_prefix_are_removed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / f"{PREFIX}gone", tmp_path / "system.slice"
    ours.mkdir()
    theirs.mkdir()
    assert remove_groups((str(ours), str(theirs), str(tmp_path / f"{PREFIX}absent")))
    assert not ours.exists()
    assert theirs.exists()


# -- standing still, other limits, the end -------------------------------------------------------


def hybrid(root: Path, *names: str) -> Tree | None:
    for name in ("memory", "pids", *names):
        (root / name).mkdir(parents=True)
        (root / name / "cgroup.procs").write_text("")
    return find_tree(root, membership(root, "8:pids:/", "6:freezer:/", "4:memory:/", "0::/"))


@pytest.mark.parametrize(
    ("there", "taken"),
    [(("unified", "freezer"), "unified"), (("freezer",), "freezer"), ((), None)],
)
def test_a_group_gets_a_way_to_stand_still(
    tmp_path: Path, there: tuple[str, ...], taken: str | None
) -> None:
    tree = hybrid(tmp_path, *there)
    assert tree is not None
    assert set(tree.parents) - {"memory", "pids"} == ({taken} if taken else set())


def test_version_1_limits_can_be_moved_both_ways(tmp_path: Path) -> None:
    """Memory + swap must not be the smaller number on the way, whichever way that is."""
    group, written = Cgroup(1, dict.fromkeys(("memory", "cpu"), tmp_path)), []
    (tmp_path / "memory.usage_in_bytes").write_text("1000\n")
    sizes = {"limit": 64 * MIB, "memsw": 64 * MIB}

    def write(self: Cgroup, controller: str, name: str, value: int | str) -> None:
        which = "memsw" if "memsw" in name else "limit"
        if controller == "memory":
            changed = {**sizes, which: int(value)}
            if changed["memsw"] < changed["limit"]:
                raise OSError(22, "Invalid argument")
            sizes.update(changed)
        written.append(f"{name}={value}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cgroup, "_write", write)
        group.resize(memory_bytes=128 * MIB, vcpus=2)
        assert sizes == {"limit": 128 * MIB, "memsw": 128 * MIB}
        group.resize(memory_bytes=32 * MIB, vcpus=1)
        assert sizes == {"limit": 32 * MIB, "memsw": 32 * MIB}
    assert [each for each in written if "quota" in each] == [
        "cpu.cfs_quota_us=200000",
        "cpu.cfs_quota_us=100000",
    ]


def test_version_2_limits_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("1000\n")
    Cgroup(2, dict.fromkeys(("memory", "cpu"), tmp_path)).resize(memory_bytes=5000, vcpus=3)
    assert (tmp_path / "memory.max").read_text() == "5000"
    assert (tmp_path / "cpu.max").read_text() == "300000 100000"


def test_a_limit_below_what_is_in_use_changes_nothing(tmp_path: Path) -> None:
    """The kernel would kill to get there."""
    (tmp_path / "memory.current").write_text("6000\n")
    with pytest.raises(OSError, match="6000 bytes are in use"):
        Cgroup(2, dict.fromkeys(("memory", "cpu"), tmp_path)).resize(memory_bytes=5000, vcpus=3)
    assert not (tmp_path / "memory.max").exists()
    assert not (tmp_path / "cpu.max").exists()


def test_only_our_groups_are_thawed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / f"{PREFIX}one", tmp_path / "system.slice"
    for directory in (ours, theirs):
        directory.mkdir()
        (directory / "freezer.state").write_text("FROZEN")
        (directory / "cgroup.freeze").write_text("1")
    thaw_groups((str(ours), str(theirs), str(tmp_path / f"{PREFIX}absent")))
    assert [(ours / name).read_text() for name in ("freezer.state", "cgroup.freeze")] == [
        "THAWED",
        "0",
    ]
    assert (theirs / "freezer.state").read_text() == "FROZEN"


@pytest.mark.parametrize("hierarchy", ["memory", "pids", "freezer", "unified"])
def test_a_group_is_removed_with_frozen_processes_in_it(hierarchy: str) -> None:
    """The kernel's own reaction, where we may make groups: EBUSY until the last has left."""
    group = Path("/sys/fs/cgroup") / hierarchy / f"{PREFIX}test-busy-{os.getpid()}"
    if not os.access(group.parent, os.W_OK):
        assert remove_groups((str(group),))  # no such tree here: nothing to remove
        return
    group.mkdir()
    held = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    try:
        for each in held:
            (group / "cgroup.procs").write_text(str(each.pid))
        for name, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            if (group / name).exists():
                (group / name).write_text(word)
        assert remove_groups((str(group),))
        assert not group.exists()
    finally:
        assert [each.wait(timeout=10) for each in held] == [-9, -9, -9]
