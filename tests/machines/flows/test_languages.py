"""The 42 names, and what people write instead."""

from __future__ import annotations

from machines.flows.languages import ALIASES, LANGUAGES, canonical, like
from machines.platform import languages as platform


def test_they_are_those_of_the_platform() -> None:
    assert tuple(each.name for each in platform.LANGUAGES) == LANGUAGES
    assert len(LANGUAGES) == 42
    assert platform.ALIASES == ALIASES


def test_names() -> None:
    assert [canonical(name) for name in ("Python", " c++ ", "py", "mumble", "")] == [
        "python", "cpp", "python", None, None,
    ]  # fmt: skip
    assert like("pyhton")[0] == "python" and like("zzzzzz") == ()
