"""Metadata that are damaged, in unusual places, or made to cost time and memory."""

import contextlib
import io
import struct
import time
import zlib

import PIL.Image
import pytest
from comfyui_graphs import comfy, encode, node, sampler
from generation_files import A1111, RED, SETTINGS, USER_COMMENT, exif, picture, png

from imagereward.errors import InputError
from imagereward.generation_metadata import prompt_of
from imagereward.generation_metadata.entries import MOST_TEXT


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, after: bool = False) -> bytes:
    """A PNG with these chunks before its pixels, or after them."""
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    data = buffer.getvalue()
    at = data.index(b"IEND" if after else b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def test_texts_behind_the_pixels_and_in_utf8_are_read():
    text = A1111.replace("red", "rød").encode()
    assert prompt_of(png_with(chunk(b"tEXt", b"parameters\0" + text), after=True)) == "a rød circle"
    latin = A1111.replace("red", "rød").encode("latin-1")
    assert prompt_of(png_with(chunk(b"tEXt", b"parameters\0" + latin))) == "a rød circle"


def test_long_texts_are_not_expanded_and_those_not_needed_do_no_harm():
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 50_000_000))
    with pytest.raises(InputError, match=f"more than {MOST_TEXT} bytes"):
        prompt_of(png_with(bomb))
    workflow = chunk(b"tEXt", b"workflow\0" + b"x" * (MOST_TEXT + 5000))
    assert prompt_of(png_with(workflow, chunk(b"tEXt", b"parameters\0" + A1111.encode()))) == RED
    many = [chunk(b"tEXt", b"a\0b")] * 100
    with pytest.raises(InputError, match="more than 64 texts"):
        prompt_of(png_with(*many))


def test_a_damaged_text_is_an_error():
    good = chunk(b"tEXt", b"parameters\0" + A1111.encode())
    with pytest.raises(InputError, match="damaged"):
        prompt_of(png_with(good[:-1] + bytes([good[-1] ^ 1])))
    with pytest.raises(InputError, match="decompressed"):
        prompt_of(png_with(chunk(b"zTXt", b"parameters\0\0junk")))


def hostile_exif() -> bytes:
    """65,535 entries of the first directory that all point to one text of 60 kB."""
    entry = struct.pack("<HHII", 0x010E, 2, 60_000, 8)
    return b"II*\0" + struct.pack("<I", 60_008) + b"x" * 60_000 + struct.pack("<H", 65_535) + entry * 65_535


def deep(count: int) -> dict:
    """A chain of `count` nodes before the sampler."""
    chain = {f"n{100 + i}": node("FluxGuidance", conditioning=[str(101 + i), 0]) for i in range(count)}
    return {"n3": sampler("100"), **chain, f"n{100 + count}": encode("x")}


def doubling(count: int) -> dict:
    """Strings that double `count` times."""
    names = [str(100 + i) for i in range(count)]
    nodes = {
        f"n{name}": node(
            "StringConcatenate", string_a=[str(int(name) + 1), 0], string_b=[str(int(name) + 1), 0]
        )
        for name in names
    }
    return {"n6": encode(["100", 0]), **nodes, f"n{100 + count}": node("PrimitiveString", value="x")}


BARS = "{" + "|" * 49_000
HOSTILE = {
    "webp with many entries": lambda path: picture().save(path, "WEBP", exif=hostile_exif()),
    "deep graph": comfy(**deep(3000)),
    "doubling texts": comfy(**doubling(60)),
    "many samplers": comfy(**{f"n{100 + i}": sampler() for i in range(1000)}),
    "deep json": png({"prompt": '{"a":' * 100_000 + "1" + "}" * 100_000}),
    "many empty objects": png({"prompt": "[" + "{}," * 600_000 + "{}]"}),
    "spaces": png({"parameters": " " * 2_000_000 + "\n" + SETTINGS}),
    "brackets": png({"parameters": "[" * 40_000 + "\n" + SETTINGS}),
    "bars": comfy(n100=node("ImpactWildcardProcessor", populated_text=BARS), n6=encode(["100", 0])),
    "commas": png({"parameters": "a BREAK " + " ," * 20_000 + "(b)\n" + SETTINGS}),
    "digits": png({"parameters": "<lora:a:1>" + "1" * 49_000 + "\n" + SETTINGS}),
    "settings": png({"parameters": "\n".join(['Size: "x", Seed: "x", Model: "x", ' * 2000 + "!"])}),
    "entities": png({"XML:com.adobe.xmp": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}),
    "jpeg of padding": lambda path: path.write_bytes(b"\xff\xd8" + b"\xff" * 3_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_cost_little(tmp_path, name):
    HOSTILE[name](tmp_path / "x.png")
    start = time.process_time()
    with contextlib.suppress(InputError):
        assert len(prompt_of(tmp_path / "x.png")) < 100_000
    assert time.process_time() - start < 5  # processor time; each takes well under one second


def test_a_long_user_comment_is_read_whole(tmp_path):
    exif("JPEG", {USER_COMMENT: b"ASCII\0\0\0" + b"a" * 40_000})(tmp_path / "x.jpg")
    assert prompt_of(tmp_path / "x.jpg") == "a" * 40_000


def test_files_that_are_no_images_have_no_prompt():
    for data in (
        b"junk" * 10,
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"\xff\xd8",
        b"II*\0" + b"\xff" * 8,
    ):
        with pytest.raises(InputError, match="has no prompt"):
            prompt_of(data)


def test_a_prompt_in_tiff_is_found(tmp_path):
    picture().save(tmp_path / "x.tif", tiffinfo={270: A1111})
    assert PIL.Image.open(tmp_path / "x.tif").format == "TIFF"
    assert prompt_of(tmp_path / "x.tif") == RED
