"""Pieces of metadata that may hold a prompt, and the prompts that were read from them."""

from typing import Literal, NamedTuple

from imagereward.errors import InputError

# Most bytes of one text: an encoded text chunk, a sidecar file, a value of EXIF. Longer ones are not read.
MOST_TEXT = 2**21

# Whose prompt syntax a text is written in; "plain" has none and is never changed.
Dialect = Literal["webui", "comfyui", "novelai", "invokeai", "swarmui", "plain"]


class UnclearPrompt(InputError):
    """Metadata are there, but do not say with certainty which text the image was generated from."""


class Entry(NamedTuple):
    """A named text found in an image file, e.g. `parameters` of "PNG text".

    `problem` says why the text could not be read; `text` is then empty.
    """

    key: str
    text: str
    carrier: str
    problem: str | None = None

    @property
    def place(self) -> str:
        """The entry as messages call it."""
        return f"{self.carrier} {self.key!r}"


class Claim(NamedTuple):
    """A positive prompt as written by a generator, with its markup.

    `steps` is the number of sampling steps, if the metadata say it: schedules such as `[a:b:10]` need it.
    """

    prompt: str
    dialect: Dialect
    steps: int | None = None
    place: str = ""


def decode(data: bytes) -> str:
    """Text of a field whose encoding is not stated: UTF-8, else Latin-1."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
