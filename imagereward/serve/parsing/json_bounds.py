"""How large the values of a JSON text would become, counted before anything is parsed.

A parsed value takes up to fifty times its bytes: a list of ten million `{}` is 30 MB of text and 700 MB of
objects. The count looks only at punctuation outside strings, and stops at the first bound that is passed.
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

    depth    lists and objects within each other
    values   values in all
    members  names of all objects
    quotes   quotation marks, escaped ones too
    text     characters of a string; a longer one can only be base64, so it must be ASCII
    """

    depth: int
    values: int
    members: int
    quotes: int
    text: int


def check_json(data: bytes, what: str, bounds: JsonBounds) -> None:
    """Refused 413 if `data` is beyond the bounds, 422 for a member of the outermost object that comes twice.

    `what` is the data's name in messages. Text that is not JSON may pass: the parser refuses it.
    """
    _at_most(bounds.quotes, data.count(b'"'), what, "quotation marks")  # each takes a step below
    depth = values = members = 0
    names: set[str] = set()
    text = b""
    for mark, string in _marks(data):
        if mark == b'"':
            text = string
            if len(string) > 12 * bounds.text:  # bytes of a character: at most two escapes \uXXXX
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
            return  # no end: not JSON
        yield mark, data[start:end]


def _backslashes(piece: bytes) -> int:
    """How many `piece` ends with."""
    return len(piece) - len(piece.rstrip(b"\\"))


def _check_ascii(string: bytes, what: str, bounds: JsonBounds) -> None:
    if not string.isascii() or (b"\\" in string and _WIDE_ESCAPE.search(string)):
        raise Refused(
            413,
            f"{what} has a text of {len(string)} bytes that is not base64; "
            f"at most {bounds.text} characters are taken in one prompt",
        )


def _check_once(names: set[str], text: bytes) -> None:
    """Of a name that comes twice, parsers take the last value without a word."""
    try:
        name = json.loads(b'"' + text[:1000] + b'"')
    except ValueError:
        return  # not JSON: the parser says where
    if name in names:
        raise Refused(422, f"{name}: given twice")
    names.add(name)


def _at_most(most: int, count: int, what: str, things: str) -> None:
    if count > most:
        raise Refused(413, f"{what} has more than {most} {things}, more than any request needs")
