"""Where groups are made, what is written there, and that only ours are ever removed.

The trees are plain directories: the kernel's own reaction is covered where a machine has it, by
test_bubblewrap.py and test_walls.py with enforcement "cgroup".
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from machines.platform.sandbox.cgroups import PREFIX, Cgroup, Tree, find_tree, remove_groups

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


def test_only_directories_with_our_prefix_are_removed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / f"{PREFIX}gone", tmp_path / "system.slice"
    ours.mkdir()
    theirs.mkdir()
    assert remove_groups((str(ours), str(theirs), str(tmp_path / f"{PREFIX}absent")))
    assert not ours.exists()
    assert theirs.exists()
