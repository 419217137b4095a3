"""The model of the disk: what was synced stays, of the rest anything may be left."""

from __future__ import annotations

import random

import pytest

from tests.verification.power_loss.disk import (
    SECTOR_BYTES,
    Create,
    Disk,
    Operation,
    Sync,
    SyncDirectory,
    Truncate,
    Unlink,
    Write,
)

OLD, NEW = b"o" * SECTOR_BYTES * 4, b"n" * SECTOR_BYTES * 4


def left(operations: list[Operation], image: dict[str, bytes] | None = None) -> list[dict]:
    """What 300 losses after these operations leave."""
    disk = Disk(image).apply_all(operations)
    return [disk.after_loss(random.Random(seed)) for seed in range(300)]


def test_what_was_synced_stays():
    made = [Create("f", 1), Write(1, 0, NEW), Sync(1), SyncDirectory()]
    assert left(made) == [{"f": NEW}] * 300


def test_sectors_written_since_the_sync_are_kept_lost_or_torn_each_for_itself():
    contents = [image["f"] for image in left([Write(1, 0, NEW)], {"f": OLD})]
    sectors = [c[i : i + SECTOR_BYTES] for c in contents for i in range(0, len(NEW), SECTOR_BYTES)]
    assert {len(content) for content in contents} == {len(OLD)}
    assert {frozenset(sector) for sector in sectors} == {
        frozenset(b"o"), frozenset(b"n"), frozenset(b"on"),
    }  # fmt: skip
    assert {OLD, NEW} < set(contents)
    assert any(c.endswith(NEW[:SECTOR_BYTES]) and c.startswith(OLD[:1]) for c in contents)


def test_bytes_that_no_write_names_are_never_harmed():
    contents = [image["f"] for image in left([Write(1, 700, b"new")], {"f": OLD})]
    assert {c[:700] + c[703:] for c in contents} == {OLD[:700] + OLD[703:]}
    assert {b"ooo", b"new"} < {c[700:703] for c in contents}


def test_an_earlier_write_may_be_what_is_left():
    twice = [Write(1, 0, b"m" * SECTOR_BYTES), Write(1, 0, b"n" * SECTOR_BYTES)]
    found = {image["f"] for image in left(twice, {"f": b"o" * SECTOR_BYTES})}
    assert {b"o" * SECTOR_BYTES, b"m" * SECTOR_BYTES, b"n" * SECTOR_BYTES} < found


def test_a_size_may_be_any_since_the_sync_and_what_was_not_written_is_anything():
    grown = [Write(1, 0, OLD), Write(1, len(OLD), NEW)]
    contents = [image["f"] for image in left(grown, {"f": b"o"})]
    assert {1, len(OLD), len(OLD) + len(NEW)} <= {len(content) for content in contents}
    fillings = [c[-SECTOR_BYTES:] for c in contents if len(c) == len(OLD) + len(NEW)]
    assert {NEW[:SECTOR_BYTES], bytes(SECTOR_BYTES)} < set(fillings)
    assert any(len(set(filling)) > 50 for filling in fillings)  # noise


def test_a_cut_file_may_be_whole_again():
    found = {image["f"] for image in left([Truncate(1, 0)], {"f": OLD})}
    assert {b"", OLD} <= found


@pytest.mark.parametrize("synced", [False, True])
def test_a_new_name_may_be_gone_until_its_directory_is_synced(synced):
    made = [Create("f", 1), Write(1, 0, NEW), Sync(1), *[SyncDirectory()] * synced]
    assert any("f" not in image for image in left(made)) is not synced
    assert {"f": NEW} in left(made)


@pytest.mark.parametrize("synced", [False, True])
def test_a_deleted_file_may_come_back_until_its_directory_is_synced(synced):
    gone = [Unlink("f"), *[SyncDirectory()] * synced]
    assert ({"f": OLD} in left(gone, {"f": OLD})) is not synced
    assert {} in left(gone, {"f": OLD})


def test_a_name_given_anew_is_another_file():
    again = [Unlink("f"), Create("f", 2), Write(2, 0, NEW), Sync(2)]
    disk = Disk({"f": OLD}).apply_all(again)
    assert disk.as_seen() == {"f": NEW}
    assert disk.numbers == {"f": 2}
    found = [image.get("f") for image in left(again, {"f": OLD})]
    assert set(found) == {None, OLD, NEW}


def test_the_running_program_sees_everything():
    grown = [Write(1, 0, b"new"), Write(1, 8, b"far"), Truncate(1, 10), Truncate(1, 12)]
    assert Disk({"f": b"oldold"}).apply_all(grown).as_seen() == {"f": b"newold\0\0fa\0\0"}
