"""Nobody but its owner may read a data directory: every kind of loose path is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from machines.platform.permissions import loose_paths, require_private
from machines.platform.server import AlreadyServed, DataDirectoryRefused, exclusive, serve


@pytest.fixture
def tight(tmp_path: Path) -> Path:
    data_dir = tmp_path / "platform"
    data_dir.mkdir(mode=0o700)
    for name in ("snapshots", "images", "sandboxes", "images/layers"):
        (data_dir / name).mkdir(mode=0o700)
    for name in (
        "master.key", "platform.db", "platform.db-wal", "tls.key", "platform.log", "ready.json",
        "snapshots/one.tar", "images/layers/two.tar",
    ):  # fmt: skip
        (data_dir / name).touch(0o600)
    (data_dir / "sandboxes" / "free").mkdir()
    (data_dir / "sandboxes" / "free" / "file").touch(0o644)
    assert loose_paths(data_dir) == []
    return data_dir


@pytest.mark.parametrize(
    "name",
    [
        "", "master.key", "platform.db", "platform.db-wal", "tls.key", "snapshots", "images",
        "sandboxes", "snapshots/one.tar", "images/layers", "images/layers/two.tar",
    ],
)  # fmt: skip
@pytest.mark.parametrize("extra", [0o040, 0o004, 0o010])
def test_an_open_secret_is_refused_with_its_remedy(tight: Path, name: str, extra: int) -> None:
    path = tight / name
    path.chmod(path.stat().st_mode & 0o777 | extra)
    with pytest.raises(
        DataDirectoryRefused, match=f"chmod {'700' if path.is_dir() else '600'} {path}"
    ):
        require_private(tight)


@pytest.mark.parametrize("name", ["platform.log", "ready.json"])
def test_what_is_no_secret_is_told(tight: Path, name: str) -> None:
    (tight / name).chmod(0o644)
    (found,) = require_private(tight)
    assert (found.path, found.mode, found.secret) == (tight / name, 0o644, False)
    assert f"chmod 600 {tight / name}" in found.message


def test_links_are_not_followed(tight: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (tight / "snapshots" / "link").symlink_to(outside)
    (tight / "link").symlink_to("/etc")
    assert loose_paths(tight) == []


def test_a_server_does_not_start_over_an_open_secret(tight: Path) -> None:
    (tight / "master.key").chmod(0o644)
    with pytest.raises(DataDirectoryRefused, match=r"master\.key: mode 644"):
        serve(tight)


def test_a_server_warns_of_the_rest_and_looks_before_it_takes_the_lock(
    tight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tight / "platform.log").chmod(0o644)
    with exclusive(tight), pytest.raises(AlreadyServed):
        serve(tight)
    assert "permissions_loose" in capsys.readouterr().out
