"""`Entry`, a text found in metadata, and `Claim`, a prompt read from such a text."""

from typing import Literal, NamedTuple

from imagereward.errors import InputError

# Most bytes of a text chunk, a sidecar file or a value of EXIF; longer ones are not read.
MOST_TEXT = 2**21

# The program whose prompt syntax a text uses; "plain" text has no syntax and is never changed.
Dialect = Literal["webui", "comfyui", "novelai", "invokeai", "swarmui", "plain"]


class UnclearPrompt(InputError):
    """An image has metadata, but they do not state its prompt unambiguously."""


class Entry(NamedTuple):
    """A named text found in an image file, e.g. `parameters` of "PNG text".

    key       its name; may be empty
    text      its content; empty with a problem
    carrier   the kind of metadata, for messages
    problem   why the text could not be read; None otherwise
    """

    key: str
    text: str
    carrier: str
    problem: str | None = None

    @property
    def place(self) -> str:
        """Carrier and key, for messages."""
        return f"{self.carrier} {self.key!r}"


class Claim(NamedTuple):
    """A positive prompt that metadata state, with its markup.

    dialect   the program whose syntax the prompt uses
    steps     sampling steps, which decide schedules such as `[a:b:10]`; None if unknown
    place     where the prompt was found, for messages
    """

    prompt: str
    dialect: Dialect
    steps: int | None = None
    place: str = ""


def decode(data: bytes) -> str:
    """Decode a text of unknown encoding: as UTF-8 if valid, otherwise as Latin-1."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
