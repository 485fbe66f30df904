"""Reads the fields of a multipart form, each within a number of bytes."""

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from imagereward.serve.limits import Refused

PLAIN = (b"", b"7bit", b"8bit", b"binary")  # transfer encodings that leave the bytes of a value as they are


def fields_of(
    body: bytes, boundary: bytes, most_fields: int, most_bytes: Callable[[str], int]
) -> list[tuple[str, bytes]]:
    """(name, value) of every field, in order.

    boundary      from the form's Content-Type
    most_fields   the most fields that the form may have
    most_bytes    a field's name -> the most bytes of its value

    Raises Refused: 400 for a malformed form, 413 beyond the bounds.
    """
    if not boundary:
        raise Refused(400, "the form's Content-Type names no boundary")
    form = _Form(most_fields, most_bytes)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_end,
                "on_part_data": form.data,
                "on_part_end": form.end,
                "on_end": form.close,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"the form cannot be read: {error}") from error
    if not form.closed:
        raise Refused(400, "the form is cut short: its closing boundary is missing")
    return form.fields


class _Form:
    """Callbacks of python_multipart's parser; a piece of text is data[start:end]."""

    def __init__(self, most_fields: int, most_bytes: Callable[[str], int]):
        self.fields: list[tuple[str, bytes]] = []
        self.closed = False
        self._most_fields = most_fields
        self._most_bytes = most_bytes
        self._most = 0
        self._name = ""
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())

    def begin(self) -> None:
        """A part begins; Refused 413 beyond `most_fields` parts."""
        if len(self.fields) >= self._most_fields:
            raise Refused(413, f"more than {self._most_fields} parts in one form")
        self._headers = {}
        self._value = bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        """A header is complete."""
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value).strip()
        self._header = (bytearray(), bytearray())

    def headers_end(self) -> None:
        """All headers are read; Refused 400 for a part without a name or with a transfer encoding."""
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise Refused(400, "a part of the form has no name")
        if self._headers.get(b"content-transfer-encoding", b"").lower() not in PLAIN:
            raise Refused(
                400, "a part of the form has a Content-Transfer-Encoding: send its bytes as they are"
            )
        self._name = text_of("a part's name", options[b"name"])
        self._most = self._most_bytes(self._name)

    def data(self, data: bytes, start: int, end: int) -> None:
        """A piece of the value; Refused 413 beyond the bytes that its field may have."""
        if len(self._value) + end - start > self._most:
            reason = f"more than {self._most} bytes in {self._name:.100}"
            raise Refused(413, f"{reason}, the most that this server takes")
        self._value += memoryview(data)[start:end]

    def end(self) -> None:
        """The part is complete."""
        self.fields.append((self._name, bytes(self._value)))
        self._value = bytearray()

    def close(self) -> None:
        """The closing boundary is read."""
        self.closed = True


def text_of(what: str, value: bytes) -> str:
    """`value` decoded as UTF-8; Refused 400, naming `what`, if it is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"{what} is not UTF-8: {error}") from error
