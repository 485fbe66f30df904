"""Pictures made to cost time, memory or a program, through every door that decodes them."""

import io
import json
import os
import struct
import tarfile
import threading
import time
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from conftest import pictures, small_scorer
from test_bulk import score
from test_cli import error_of, run
from test_hostile_metadata import chunk, hostile_exif, png_with
from typer.testing import CliRunner

from benchmarks.lib.serving import client, png, serving
from imagereward import bulk
from imagereward.errors import ImageReadError, InputError
from imagereward.generation_metadata import prompt_of
from imagereward.images.encoded import MAX_PIXELS_VARIABLE, MOST_SCANS, open_file, set_max_pixels
from imagereward.images.reading import check_image, read_image

PICTURE = pictures(1)[0]


@pytest.fixture
def usual_limit(monkeypatch):
    """What `set_max_pixels` changes is put back."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1")
    monkeypatch.delenv(MAX_PIXELS_VARIABLE)


def saved(format: str, picture: PIL.Image.Image = PICTURE, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg_of_scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    data = saved("JPEG", PICTURE.resize((side, side)), progressive=True)
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)  # the Huffman table of that scan
    scan, have = data[tables:-2], data.count(b"\xff\xda")
    return data[:-2] + scan * (count - have) + data[-2:]


def tiff_declaring(count: int) -> bytes:
    """A TIFF of 8 x `count` pixels whose strips all are the same bytes of the file."""
    strip, height = 60_000, 8
    data = b"x" * strip
    arrays = struct.pack(f"<{count}I", *[8] * count) + struct.pack(f"<{count}I", *[strip] * count)
    at = 8 + strip
    entries = [(256, 4, 1, 8), (257, 4, 1, height * count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, count, at), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, count, at + 4 * count)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0" + struct.pack("<I", at + len(arrays)) + data + arrays + directory + bytes(4)


def tiff_of_strips(count: int) -> bytes:
    """A TIFF of 1 x 2 pixels whose list of strips has `count` values of a byte each."""
    at = 8 + 2 + 12 * 9 + 4
    entries = [(256, 4, 1, 1), (257, 4, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 1, count, at), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + bytes(count)


def commented(data: bytes) -> bytes:
    """The JPEG with a comment behind its first scan that holds the marker of the end."""
    second = data.index(b"\xff\xc4", data.index(b"\xff\xda"))
    return data[:second] + b"\xff\xfe\0\x04\xff\xd9" + data[second:]


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def sparse(path, size: int, start: bytes = b""):
    """A file of `size` bytes that takes no room on disk."""
    path.write_bytes(start)
    os.truncate(path, size)
    return path


REFUSED = {
    "eps": (saved("EPS"), "is no image in a format that is read here"),
    "eps behind a blank": (b" " + saved("EPS"), "is no image in a format that is read here"),
    "pdf": (saved("PDF"), "is no image in a format that is read here"),
    "ico": (saved("ICO"), "is no image in a format that is read here"),
    "wmf": (b"\xd7\xcd\xc6\x9a\0\0" + bytes(40), "is no image in a format that is read here"),
    "jpeg of 3000 scans": (jpeg_of_scans(3000), "a JPEG of 3000 scans"),
    "jpeg of 257 scans": (jpeg_of_scans(MOST_SCANS + 1), "a JPEG of 257 scans"),
    "jpeg of scans with a comment before": (
        (lambda data: data[:2] + b"\xff\xfe\0\x06\xff\xd9\xff\xd9" + data[2:])(jpeg_of_scans(3000)),
        "a JPEG of 3000 scans",
    ),
    "jpeg of scans with a comment between": (commented(jpeg_of_scans(3000)), "a JPEG of 3000 scans"),
    "tiff of millions of strips": (tiff_of_strips(3 * 10**6), "a TIFF with 3000000 values in tag 273"),
    "tiff of one strip many times": (tiff_declaring(5000), "declares more data"),
    "png of 4 gigapixels": (claiming(65_000, 65_000), "too many pixels"),
    "png just over": (claiming(180_000, 1_000), "too many pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_picture_is_refused_from_bytes_and_path(tmp_path, name):
    data, reason = REFUSED[name]
    (tmp_path / "x.png").write_bytes(data)  # its name says nothing
    start = time.process_time()
    for source in (data, tmp_path / "x.png"):
        with pytest.raises(ImageReadError, match=reason):
            read_image(source)
    assert time.process_time() - start < 10  # processor time; the JPEG would take minutes


def test_a_hostile_row_fails_alone_and_the_others_are_scored(tmp_path, models):
    """Every hostile picture between two good ones, through `score_table`."""
    rows = []
    for number, name in enumerate([None, *REFUSED, None]):
        data = saved("PNG") if name is None else REFUSED[name][0]
        (tmp_path / f"{number}.png").write_bytes(data)
        rows.append({"image": f"{number}.png", "prompt": "a red bicycle"})
    os.mkfifo(tmp_path / "pipe.png")
    rows.append({"image": "pipe.png", "prompt": "a red bicycle"})
    rows.append({"image": "/dev/zero", "prompt": "a red bicycle"})
    sparse(tmp_path / "sparse.png", 2**41, saved("PNG")[:33])
    rows.append({"image": "sparse.png", "prompt": "a red bicycle"})
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, found = score(tmp_path, models, source="table.jsonl")
    expected = small_scorer("ImageReward", seed=3).score("a red bicycle", PICTURE)
    reasons = [None, *(reason for _, reason in REFUSED.values()), None, *["pipe, device or socket"] * 2]
    reasons.append("at most")
    assert summary.failed == len(REFUSED) + 3
    for row, reason in zip(found, reasons, strict=True):
        if reason is None:
            assert (row["error"], row["score:ImageReward"]) == (None, pytest.approx(expected, abs=1e-5))
        else:
            assert reason in row["error"]
            assert row["score:ImageReward"] is None


def test_a_hostile_request_fails_alone_at_the_server():
    scorer = small_scorer("CLIP")
    good = png(PICTURE)
    with serving(scorer) as url:
        for name in ("eps", "jpeg of 3000 scans", "tiff of one strip many times", "png of 4 gigapixels"):
            data, reason = REFUSED[name]
            answer = client(url).post(
                "/v1/rank", data={"prompt": "a"}, files=[("images", good), ("images", data)]
            )
            assert (answer.status_code, list(answer.json()["images"])) == (422, ["1"]), answer.text
            assert reason in answer.text
        answer = client(url).post("/v1/rank", data={"prompt": "a"}, files=[("images", good)])
        assert answer.json()["scores"] == pytest.approx([scorer.score("a", good)], abs=1e-6)


@pytest.mark.parametrize("scans", [1, 10, 70, MOST_SCANS])
def test_jpegs_of_as_many_scans_as_encoders_write_are_read_as_pillow_reads_them(scans):
    data = saved("JPEG") if scans == 1 else jpeg_of_scans(scans)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(read_image(data)), expected)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_the_formats_that_are_read_give_pillows_pixels(format, mode):
    picture = PICTURE.convert(mode)
    try:
        data = saved(format, picture)
    except OSError:
        pytest.skip(f"{format} has no mode {mode}")
    expected = PIL.Image.open(io.BytesIO(data))
    found = read_image(data)
    assert found.size == expected.size
    np.testing.assert_array_equal(np.asarray(found.convert("RGBA")), np.asarray(expected.convert("RGBA")))


def big_texts() -> dict[str, bytes]:
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("parameters", "x" * 3_000_000)
    zipped = PIL.PngImagePlugin.PngInfo()
    zipped.add_text("workflow", "x" * 90_000_000, zip=True)
    many = [chunk(b"tEXt", b"a\0" + b"b" * 900_000)] * 80
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(80_000_000)))
    return {
        "text of 3 MB": saved("PNG", pnginfo=text),
        "text of 90 MB, packed": saved("PNG", pnginfo=zipped),
        "72 MB of texts": png_with(*many),
        "profile of 80 MB, packed": png_with(profile),
        "exif of 65,535 entries": png_with(chunk(b"eXIf", hostile_exif())),
        "xmp of 5 MB": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 1_700_000)),
    }


@pytest.mark.parametrize("name", big_texts())
def test_metadata_do_not_make_sound_pixels_unreadable(tmp_path, name):
    data = big_texts()[name]
    (tmp_path / "x.png").write_bytes(data)
    start = time.process_time()
    for source in (data, tmp_path / "x.png"):
        check_image(source)
        found = np.asarray(read_image(source).convert("RGB"))
        assert len(read_image(source).info.get("exif", b"")) <= 2**16
    assert time.process_time() - start < 10  # the EXIF block alone would take longer by far
    plain = PIL.Image.open(io.BytesIO(png_with() if "text of" not in name else saved("PNG")))
    np.testing.assert_array_equal(found, np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_an_exif_block_of_many_entries_costs_little_in_other_formats(tmp_path, format):
    block = hostile_exif()
    if format == "JPEG":  # a segment has 64 kB
        entry = struct.pack("<HHII", 0x010E, 2, 20_000, 8)
        block = b"II*\0" + struct.pack("<I", 20_008) + b"x" * 20_000 + struct.pack("<H", 3600) + entry * 3600
    data = saved(format, exif=block) if format != "AVIF" else avif_with(block)
    start = time.process_time()
    read_image(data)
    check_image(data)
    with pytest.raises(InputError):
        prompt_of(data)
    assert time.process_time() - start < 5


def avif_with(block: bytes) -> bytes:
    """An AVIF with this EXIF block. Pillow parses a block before it writes it: a small one gives way."""
    small = PIL.Image.Exif()
    small[0x010E] = "y" * (len(block) - 26)
    data = saved("AVIF", exif=small)
    at = data.rindex(b"y" * 100) + 100
    while data[at : at + 1] not in (b"I", b"M") or data[at : at + 4] not in (b"II*\0", b"MM\0*"):
        at -= 1
    return data[:at] + block + data[at + len(block) :]


def test_a_prompt_in_avif_is_found():
    tags = PIL.Image.Exif()
    tags[0x010E] = "a red circle\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
    assert prompt_of(saved("AVIF", exif=tags)) == "a red circle"


def test_a_path_that_becomes_a_pipe_or_a_link_is_never_waited_for(tmp_path):
    """The file is exchanged all the time while it is read: each time a picture, or an error."""
    path, pipe, good, stop = tmp_path / "x.png", tmp_path / "pipe", tmp_path / "good", threading.Event()
    os.mkfifo(pipe)
    PICTURE.save(good, "PNG")
    path.write_bytes(good.read_bytes())

    def exchange():
        while not stop.is_set():
            for source in (pipe, good):
                os.link(source, tmp_path / "next")
                os.replace(tmp_path / "next", path)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        reasons = set()
        for _ in range(500):
            try:
                assert read_image(path).size == PICTURE.size
            except ImageReadError as error:
                reasons.add(str(error).rpartition(") ")[2])
    finally:
        stop.set()
        thread.join()
    assert reasons == {"is a pipe, device or socket; expected a file"}


def test_a_file_is_examined_by_its_descriptor(tmp_path):
    (tmp_path / "x").write_bytes(b"first")
    with open_file(tmp_path / "x", "x") as stream:
        (tmp_path / "other").write_bytes(b"second")
        os.replace(tmp_path / "other", tmp_path / "x")
        assert stream.read() == b"first"


@pytest.mark.parametrize("name", ["x.txt", "x.caption"])
def test_a_text_of_gigabytes_beside_a_picture_is_not_read(tmp_path, name):
    PICTURE.save(tmp_path / "x.png")
    sparse(tmp_path / name, 2**42, b"a cat")
    with pytest.raises(InputError, match="too many for a prompt"):
        prompt_of(tmp_path / "x.png")


def test_the_limit_of_pixels_has_a_way_round_in_every_command(tmp_path, capsys, usual_limit, models):
    paths = [tmp_path / "large.png", tmp_path / "small.png"]
    PICTURE.resize((60, 50)).save(paths[0])
    PICTURE.resize((30, 30)).save(paths[1])
    for command in (("score", "a", *paths), ("rank", "a", *paths)):
        error = error_of(capsys, *command, "-m", models["CLIP"], "--max-pixels", "0.001")
        assert "too many pixels" in error
        assert "--max-pixels" in error
        assert "large.png" in error
        assert "large.png" in run(*command, "-m", models["CLIP"], "--max-pixels", "0.003")
    rows = [{"image": path.name, "prompt": "a"} for path in paths]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for limit, code in (("0.001", 3), ("0.003", 0)):
        out = tmp_path / f"{limit}.jsonl"
        options = ["--out", out, "-m", models["CLIP"], "--workers", "1", "--max-pixels", limit]
        result = CliRunner().invoke(*_app("score-table", tmp_path / "t.jsonl", *options))
        assert result.exit_code == code, result.output
        assert ("too many pixels" in out.read_text()) == (code == 3)


def _app(*arguments):
    from imagereward.cli import app

    return app, [str(argument) for argument in arguments]


def test_a_limit_in_the_environment_holds_and_a_call_goes_before_it(tmp_path, usual_limit, monkeypatch):
    data = saved("PNG", PICTURE.resize((60, 50)))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "2999")
    with pytest.raises(ImageReadError, match=MAX_PIXELS_VARIABLE):
        read_image(data)
    set_max_pixels(3000)
    assert read_image(data).size == (60, 50)
    for bad in ("many", "0", "-5", "1.5"):
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, bad)
        with pytest.raises(InputError, match=MAX_PIXELS_VARIABLE):
            read_image(data)


def test_an_image_of_a_shard_that_says_it_is_huge_fails_alone(tmp_path, models):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for key in ("a", "b"):
            for name, data in ((f"{key}.png", saved("PNG")), (f"{key}.txt", b"a cat")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        huge = tarfile.TarInfo("c.png")
        huge.size = 2**41
        header = huge.tobuf()  # of several blocks: the size takes more than the usual field
        archive.fileobj.write(header)
        end = archive.offset + len(header)
    os.truncate(tmp_path / "s.tar", end + 2**41)
    summary = bulk.score_table(
        tmp_path / "s.tar",
        tmp_path / "o.jsonl",
        models["CLIP"],
        prompt="a",
        device="cpu",
        workers=1,
        progress=False,
    )
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert (summary.rows, summary.failed) == (3, 1)
    assert "at most" in rows[2]["error"]
    assert rows[0]["error"] is None
