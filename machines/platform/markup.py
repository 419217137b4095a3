"""One plain value as XML, as YAML, as a page.

The value is what JSON could hold: objects, lists, text, whole numbers, exact decimals.  None of
the writers is a general one; each refuses what it cannot write faithfully instead of guessing:

==========  ================================================================================
object      XML: an element for each member; YAML: a block mapping; page: a definition list
list        XML: an element for each item, named by the list without its final `s`
            (`quotes` holds `quote`); YAML: a block sequence; page: a list, or a table when
            every item is an object with the same names
text        XML and page: escaped; YAML: always double-quoted, as JSON writes it, so that no
            reader takes `no` for false or `07` for a number
==========  ================================================================================

Names are lower-case words joined by `_`, and text is printable ASCII: so much is the same in all
three, and in YAML 1.1 and 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import TypeAlias
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import msgspec

from engine.errors import UsageError

Plain: TypeAlias = "str | int | Decimal | list[Plain] | dict[str, Plain]"

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", re.ASCII)
# Plain words that YAML 1.1 reads as something else than text.
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_SCALAR = msgspec.json.Encoder(decimal_format="number")


def write_xml(root: str, value: Plain) -> bytes:
    """An XML document in UTF-8 with `root` as its outermost element.

    Raises:
        UsageError: a name or a text that this module does not write.
    """
    top = Element(_name(root))
    _fill(top, value)
    indent(top)
    written: bytes = tostring(top, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def write_yaml(value: Plain) -> bytes:
    """A YAML document in block style.

    Raises:
        UsageError: a name or a text that this module does not write.
    """
    return "".join(line + "\n" for line in _yaml(value)).encode()


def write_page(title: str, value: Plain) -> bytes:
    """An HTML page that shows the whole value under a heading.

    Raises:
        UsageError: a name or a text that this module does not write.
    """
    html = Element("html", lang="en")
    head, body = SubElement(html, "head"), SubElement(html, "body")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "title").text = SubElement(body, "h1").text = _text(title)
    _show(body, value)
    written: bytes = tostring(html, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + written + b"\n"


def _fill(element: Element, value: Plain) -> None:
    if isinstance(value, dict):
        for name, member in value.items():
            _fill(SubElement(element, _name(name)), member)
    elif isinstance(value, list):
        for item in value:
            _fill(SubElement(element, element.tag.removesuffix("s")), item)
    else:
        element.text = _text(value)


def _yaml(value: Plain) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, member in value.items():
            first, *rest = _yaml(member)
            if isinstance(member, dict | list) and member:
                yield f"{_yaml_name(name)}:"
                yield from (f"  {line}" for line in (first, *rest))
            else:
                yield f"{_yaml_name(name)}: {first}"
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = _yaml(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        if isinstance(value, str):
            _text(value)
        yield _SCALAR.encode(value).decode()


def _show(parent: Element, value: Plain) -> None:
    if isinstance(value, dict):
        shown = SubElement(parent, "dl")
        for name, member in value.items():
            SubElement(shown, "dt").text = _name(name)
            _show(SubElement(shown, "dd"), member)
    elif isinstance(value, list):
        rows = [item for item in value if isinstance(item, dict)]
        if rows and len(rows) == len(value) and len({tuple(row) for row in rows}) == 1:
            _show_table(parent, rows)
            return
        shown = SubElement(parent, "ul")
        for item in value:
            _show(SubElement(shown, "li"), item)
    else:
        parent.text = _text(value)


def _show_table(parent: Element, rows: list[dict[str, Plain]]) -> None:
    table = SubElement(parent, "table")
    header = SubElement(table, "tr")
    for name in rows[0]:
        SubElement(header, "th").text = _name(name)
    for row in rows:
        shown = SubElement(table, "tr")
        for member in row.values():
            _show(SubElement(shown, "td"), member)


def _yaml_name(name: str) -> str:
    return f'"{name}"' if name in _NOT_TEXT else _name(name)


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"name {name!r}: expected lower-case words joined by '_'")
    return name


def _text(value: str | int | Decimal) -> str:
    if not isinstance(value, str):
        return _SCALAR.encode(value).decode()
    if not (value.isascii() and value.isprintable()):
        raise UsageError(f"text {value!r}: expected printable ASCII")
    return value
