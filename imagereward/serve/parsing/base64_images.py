"""Decodes an image in base64, as JSON bodies hold it, to the bytes of its file."""

import base64
import binascii
import re

# The head of a data: URL (RFC 2397), which browsers write before base64.
_DATA_URL = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
_OTHER_URL = re.compile(r"\s*([a-z][a-z0-9+.-]{1,20}):", re.IGNORECASE)
_WHITE_SPACE = b" \t\r\n\f\v"
# What encoders of URLs escape in base64, and in line breaks within it.
_ESCAPES = {f"%{ord(letter):02X}": letter for letter in "+/=-_ \t\r\n\f\v"}
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def bytes_of(text: str) -> bytes:
    """Decode the base64 in `text`.

    Accepts the standard and the URL-safe alphabet, line breaks, missing padding, and a `data:` URL of any
    media type. Raises ValueError, whose message does not repeat the text, for everything else.
    """
    if found := _DATA_URL.match(text):
        if not found[1].lower().replace(" ", "").endswith(";base64"):
            raise ValueError("is a data: URL that is not in base64; expected data:image/png;base64,...")
        text = text[found.end() :]
        if "%" in text:  # by replace: unquote makes objects of every escape, 25 times the text's memory
            for escape, letter in _ESCAPES.items():
                text = text.replace(escape, letter).replace(escape.lower(), letter)
    elif found := _OTHER_URL.match(text):
        raise ValueError(
            f"is not base64 but begins as a URL does ({found[1]}:); nothing is fetched or opened here: "
            "send the file itself, in base64"
        )
    try:
        data = text.encode("ascii").translate(_URL_SAFE, _WHITE_SPACE)
    except UnicodeEncodeError as error:
        raise ValueError("is not base64: it has letters outside ASCII") from error
    padding = -len(data) % 4 if not data.endswith(b"=") else 0
    try:
        return base64.b64decode(data + b"=" * padding, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64: {error}") from error
