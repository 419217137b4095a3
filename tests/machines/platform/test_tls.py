"""Files for TLS: what is wrong with them is said before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UsageError
from machines.platform.tls import load, load_pair

PEM = "-----BEGIN {0}-----\nAAAA\n-----END {0}-----\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_text(PEM.format("CERTIFICATE"))
    key.write_text(PEM.format("PRIVATE KEY"))
    return certificate, key


def test_a_file_that_is_not_there(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"--tls-certificate .*gone.pem: cannot be read \(No such"):
        load(tmp_path / "gone.pem", files[1])
    with pytest.raises(UsageError, match=r"--tls-key .* cannot be read"):
        load(files[0], tmp_path)


def test_a_file_that_is_no_pem(tmp_path: Path, files: tuple[Path, Path]) -> None:
    files[0].write_bytes(b"\0\1\2")
    with pytest.raises(UsageError, match=r"--tls-certificate .*not a PEM file"):
        load(*files)


def test_files_that_are_no_pair(files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="not a certificate and its key without a password"):
        load(*files)


def test_one_without_the_other(files: tuple[Path, Path]) -> None:
    assert load_pair(None, None) is None
    with pytest.raises(UsageError, match="expected both or neither"):
        load_pair(files[0], None)
    with pytest.raises(UsageError, match="expected both or neither"):
        load_pair(None, files[1])
