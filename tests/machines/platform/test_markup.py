"""XML, YAML and the page: whatever may be written is read back the same."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from machines.platform.context import PlatformConfig
from machines.platform.markup import write_page, write_xml, write_yaml
from machines.platform.pricing import price_list

NASTY = "a & b <c> \"d\" 'e' ]]> # : - {x} [y] %, \\ no"
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}(_[a-z0-9]{1,3})?", fullmatch=True)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
SCALARS = TEXTS | st.integers() | st.decimals(-(10**6), 10**6, places=2)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4)
)


def read_yaml(text: str) -> Any:
    """A second reading of the subset of YAML that is written: blocks by indent, JSON scalars."""
    value, rest = _block(text.splitlines())
    assert rest == []
    return value


def _block(lines: list[str]) -> tuple[Any, list[str]]:
    indent = len(lines[0]) - len(lines[0].lstrip(" "))
    if lines[0][indent:].startswith("- "):
        return _sequence(lines, indent)
    if lines[0][indent] in '"[{-0123456789' and not lines[0].rstrip().endswith(":"):
        quoted_name = lines[0][indent] == '"' and _after_text(lines[0][indent:]).startswith(":")
        if not quoted_name:
            return json.loads(lines[0], parse_float=Decimal), lines[1:]
    return _mapping(lines, indent)


def _after_text(line: str) -> str:
    return line[json.JSONDecoder().raw_decode(line)[1] :]


def _sequence(lines: list[str], indent: int) -> tuple[Any, list[str]]:
    items = []
    while lines and lines[0].startswith(" " * indent + "- "):
        item, lines = _block([" " * (indent + 2) + lines[0][indent + 2 :], *lines[1:]])
        items.append(item)
    return items, lines


def _mapping(lines: list[str], indent: int) -> tuple[Any, list[str]]:
    members = {}
    while lines and lines[0].startswith(" " * indent) and lines[0][indent : indent + 1] != " ":
        name, _, scalar = lines[0].strip().partition(":")
        lines = lines[1:]
        if scalar:
            members[name.strip('"')] = json.loads(scalar, parse_float=Decimal)
        else:
            members[name.strip('"')], lines = _block(lines)
    return members, lines


@given(value=VALUES)
def test_yaml_is_read_back_the_same(value: Any) -> None:
    assert read_yaml(write_yaml(value).decode()) == value


def test_the_prices_are_read_back_from_yaml() -> None:
    prices = price_list(PlatformConfig().discount_percent)
    assert read_yaml(write_yaml(prices).decode()) == prices


def test_yaml_looks_like_yaml() -> None:
    value = {"name": "no", "on": [1, Decimal("7.00")], "rows": [{"a": 1, "b": []}], "none": {}}
    assert write_yaml(value).decode() == (
        'name: "no"\n"on":\n  - 1\n  - 7.00\nrows:\n  - a: 1\n    b: []\nnone: {}\n'
    )


@given(value=st.dictionaries(NAMES, SCALARS, max_size=5))
def test_xml_is_read_back_the_same(value: Any) -> None:
    root = ElementTree.fromstring(write_xml("top", value))  # noqa: S314 - our own
    assert {each.tag: each.text or "" for each in root} == {
        name: str(member) for name, member in value.items()
    }


def test_xml_escapes_and_names_items_by_their_list() -> None:
    written = write_xml("top", {"words": [NASTY, "x"], "empty": []})
    assert b"a &amp; b &lt;c&gt;" in written
    assert written.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n<top>")
    root = ElementTree.fromstring(written)  # noqa: S314 - our own
    assert [each.text for each in root.iterfind("words/word")] == [NASTY, "x"]
    assert (len(root.findall("empty")), root.findall("empty/*")) == (1, [])


def test_the_page_escapes_and_makes_tables_of_equal_rows() -> None:
    page = write_page("A & B", {"a": NASTY, "same": [{"x": 1}, {"x": 2}], "mixed": [{"x": 1}, 2]})
    text = page.decode()
    assert "<title>A &amp; B</title>" in text
    assert "<c>" not in text
    assert "<table><tr><th>x</th></tr><tr><td>1</td></tr><tr><td>2</td></tr></table>" in text
    assert "<ul><li><dl><dt>x</dt><dd>1</dd></dl></li><li>2</li></ul>" in text


@pytest.mark.parametrize(
    "value",
    [
        {"two words": 1},
        {"Upper": 1},
        {"1st": 1},
        {"": 1},
        {"a:b": 1},
        {"rows": [{"a<b": 1}]},
        {"text": "line\nbreak"},
        {"text": "nul\x00"},
        {"text": "größer"},
    ],
)
def test_what_cannot_be_written_faithfully_is_refused(value: Any) -> None:
    for write in (write_yaml, lambda it: write_xml("top", it), lambda it: write_page("t", it)):
        with pytest.raises(UsageError, match=r"expected (lower-case words|printable ASCII)"):
            write(value)
