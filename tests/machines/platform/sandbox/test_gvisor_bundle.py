"""What an OCI bundle says: read-only, no capability, limited places to write."""

from __future__ import annotations

import json
from pathlib import Path

from machines.platform.sandbox import gvisor_bundle, layout


def test_the_root_holds_our_files_and_nothing_of_the_hosts_accounts(tmp_path: Path) -> None:
    rootfs = gvisor_bundle.make_rootfs(tmp_path)
    names = {each.name for each in (rootfs / "run" / "turtles").iterdir()}
    assert names >= {"agent.py", "agent_doors.py", "gvisor_inside.py", "gvisor_relay.py"}
    assert (rootfs / "etc" / "passwd").read_text().splitlines()[0].startswith("root:x:0:0:")
    assert len((rootfs / "etc" / "passwd").read_text().splitlines()) == 2
    assert not (rootfs / "etc" / "shadow").exists()
    assert list((rootfs / "usr").iterdir()) == []


def test_the_bundle_gives_no_right_and_limits_every_place(tmp_path: Path) -> None:
    interpreter = layout.Interpreter("/usr/bin/python3", None)
    gvisor_bundle.write_bundle(tmp_path / "bundle", tmp_path, 16 << 20, interpreter)
    document = json.loads((tmp_path / "bundle" / "config.json").read_text())
    process = document["process"]
    assert all(names == [] for names in process["capabilities"].values())
    assert process["noNewPrivileges"] is True
    assert document["root"]["readonly"] is True
    assert {each["type"] for each in document["linux"]["namespaces"]} >= {"network", "mount", "pid"}
    binds = [each for each in document["mounts"] if each["type"] == "bind"]
    assert binds
    assert all("ro" in each["options"] for each in binds)
    sizes = {
        each["destination"]: int(each["options"][-1].removeprefix("size="))
        for each in document["mounts"]
        if each["type"] == "tmpfs"
    }
    assert sizes == {"/root": 8 << 20, "/tmp": 6 << 20, "/dev/shm": 2 << 20}  # noqa: S108


def test_an_interpreter_elsewhere_is_shown_too(tmp_path: Path) -> None:
    interpreter = layout.Interpreter("/opt/python/bin/python3", "/opt/python")
    gvisor_bundle.write_bundle(tmp_path / "bundle", tmp_path, 16 << 20, interpreter)
    document = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert document["process"]["args"][0] == "/opt/python/bin/python3"
    assert any(each["destination"] == "/opt/python" for each in document["mounts"])
