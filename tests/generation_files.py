"""Image files with metadata in the carriers that generators use, for corpora of (writer, prompt or error)."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import PIL.Image
from PIL.PngImagePlugin import PngInfo

RED = "a red circle"
NEGATIVE = "blurry, ugly"
SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 96x96, Model hash: 6ce0161689, Model: x"
A1111 = f"{RED}\nNegative prompt: {NEGATIVE}\n{SETTINGS}, Version: v1.10.1"
EXIF_IFD, USER_COMMENT, DESCRIPTION, MAKE, MODEL = 0x8769, 0x9286, 0x010E, 0x010F, 0x0110


class Case(NamedTuple):
    """A file of the corpus: exactly one of `prompt` and `error` (a part of the message) is given."""

    name: str
    write: Callable[[Path], None]
    prompt: str | None = None
    error: str | None = None


def picture() -> PIL.Image.Image:
    return PIL.Image.new("RGB", (40, 32), (200, 30, 30))


def png(chunks: dict[str, str] | list[tuple[str, str]], kind: str = "tEXt", beside: str | None = None):
    """Writes a PNG with these texts, and perhaps a .txt file beside it."""

    def write(path: Path) -> None:
        info = PngInfo()
        for key, text in chunks.items() if isinstance(chunks, dict) else chunks:
            if kind == "iTXt" or not text.isascii():
                info.add_itxt(key, text, zip=kind == "zTXt")
            else:
                info.add_text(key, text, zip=kind == "zTXt")
        picture().save(path, pnginfo=info)
        if beside is not None:
            path.with_suffix(".txt").write_text(beside, encoding="utf-8")

    return write


def exif(format: str, fields: dict[int, str | bytes], **options):
    """Writes a JPEG or WebP with these fields of EXIF."""

    def write(path: Path) -> None:
        block = PIL.Image.Exif()
        for tag, value in fields.items():
            if tag == USER_COMMENT:
                block.get_ifd(EXIF_IFD)[tag] = value
            else:
                block[tag] = value
        picture().save(path, format, exif=block, **options)

    return write


def unicode_comment(text: str, codec: str = "utf-16-be") -> bytes:
    return b"UNICODE\0" + text.encode(codec)


def xmp(comment: str, description: str = "") -> str:
    """The packet that Draw Things writes."""
    escaped = comment.replace("&", "&amp;").replace("<", "&lt;")
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description><exif:UserComment>'
        f'<rdf:Alt>\n <rdf:li xml:lang="x-default">{escaped}</rdf:li></rdf:Alt></exif:UserComment>'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
