"""`page`: written once, compared afterwards."""

from __future__ import annotations


def test_pages_are_written_and_compared(demo, tmp_path):
    assert demo("page", str(tmp_path)).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"order.md", "shipment.md", "README.md"}
    assert demo("page", str(tmp_path), "--check").code == 0
    (tmp_path / "order.md").write_text("by hand")
    answer = demo("page", str(tmp_path), "--check")
    assert answer.code == 1 and "differs:" in answer.out
    assert (tmp_path / "order.md").read_text() == "by hand"
    assert demo("page", str(tmp_path), "--json").json == {"written": ["order.md"], "pages": 3}
    assert demo("page", str(tmp_path), "--check").code == 0


def test_a_directory_that_is_not_there_is_named(demo, tmp_path):
    answer = demo("page", str(tmp_path / "gone"))
    assert answer.code == 2 and "gone: it is not there" in answer.err
