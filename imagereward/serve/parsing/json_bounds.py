"""Bounds on a JSON text, checked before it is parsed, because its objects may take fifty times its bytes.

A list of ten million `{}` is 30 MB of text and 700 MB of objects. The check counts punctuation outside
strings, and stops at the first bound that is exceeded.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from imagereward.serve.limits import Refused

_MARK = re.compile(rb'["\[\]{},:]')
_WIDE_ESCAPE = re.compile(rb"\\u(?!00)")


@dataclass(frozen=True)
class JsonBounds:
    """The most that a JSON text may hold.

    depth    levels of nested lists and objects
    values   values in the whole text
    members  (name, value) members of all objects together
    quotes   quotation marks, including escaped ones
    text     characters of a string; a longer string must be ASCII, as base64 is
    """

    depth: int
    values: int
    members: int
    quotes: int
    text: int


def check_json(data: bytes, what: str, bounds: JsonBounds) -> None:
    """Raise Refused 413 if `data` exceeds the bounds, 422 if a name of the outermost object comes twice.

    what   the data's name in messages

    Text that is not JSON may pass this check; the parser refuses it afterwards.
    """
    _at_most(bounds.quotes, data.count(b'"'), what, "quotation marks")  # the loop takes a step for each
    depth = values = members = 0
    names: set[str] = set()
    text = b""
    for mark, string in _marks(data):
        if mark == b'"':
            text = string
            if len(string) > 12 * bounds.text:  # a character takes at most 12 bytes: two escapes \uXXXX
                _check_ascii(string, what, bounds)
        elif mark in b"[{":
            depth, values = depth + 1, values + 1
            _at_most(bounds.depth, depth, what, "lists or objects within each other")
        elif mark in b"]}":
            depth -= 1
        elif mark == b",":
            values += 1
        else:
            members += 1
            _at_most(bounds.members, members, what, "names of fields")
            if depth == 1:
                _check_once(names, text)
        _at_most(bounds.values, values, what, "values")


def _marks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(mark, b"") for each mark outside strings, (quotation mark, text) for each string."""
    place = 0
    while match := _MARK.search(data, place):
        place = match.end()
        mark = match.group()
        if mark != b'"':
            yield mark, b""
            continue
        start = place
        while (end := data.find(b'"', place)) >= 0:
            escaped = data[end - 1 : end] == b"\\" and _backslashes(data[place:end]) % 2 == 1
            place = end + 1
            if not escaped:
                break
        else:
            return  # an unclosed string: not JSON
        yield mark, data[start:end]


def _backslashes(piece: bytes) -> int:
    """The number of backslashes at the end of `piece`."""
    return len(piece) - len(piece.rstrip(b"\\"))


def _check_ascii(string: bytes, what: str, bounds: JsonBounds) -> None:
    if not string.isascii() or (b"\\" in string and _WIDE_ESCAPE.search(string)):
        raise Refused(
            413,
            f"{what} has a text of {len(string)} bytes that is not base64; "
            f"this server takes at most {bounds.text} characters in one prompt",
        )


def _check_once(names: set[str], text: bytes) -> None:
    """Refuse a repeated name: JSON parsers would silently take its last value."""
    if len(text) > 1000:
        return  # no name of a field
    try:
        name = json.loads(b'"' + text + b'"')
    except ValueError:
        return  # not JSON: the parser says where
    if name in names:
        raise Refused(422, f"{ascii(name)[1:-1][:100]}: given twice")
    names.add(name)


def _at_most(most: int, count: int, what: str, things: str) -> None:
    if count > most:
        raise Refused(413, f"{what} has more than {most} {things}, more than a request can need")
