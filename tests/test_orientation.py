"""EXIF orientation: scored as stored unless asked otherwise; conditioning pictures stand upright."""

import io
import json

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from conftest import pictures, small_scorer
from test_cli import run

import imagereward as RM
from benchmarks.lib.serving import client, serving
from imagereward import bulk
from imagereward.images.orientation import orientation, upright
from imagereward.images.reading import read_image
from imagereward.tuning.data.requests import Request, open_pictures

ORIENTATION = 0x0112
PICTURE = pictures(1)[0]  # 64 x 48


def photo(number: int | None, format: str = "PNG", others: bool = False) -> bytes:
    tags = PIL.Image.Exif()
    if others:
        for tag, text in {0x010E: "a description", 0x010F: "a maker", 0x0132: "2020:01:01 00:00:00"}.items():
            tags[tag] = text
    if number is not None:
        tags[ORIENTATION] = number
    buffer = io.BytesIO()
    PICTURE.save(buffer, format, exif=tags)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def turning(models):
    """A scorer that turns photos, and one that does not."""
    return RM.load(models["HPS"], "cpu", apply_exif_rotation=True), RM.load(models["HPS"], "cpu")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them_if_asked_and_not_else(turning, number, format):
    data = photo(number, format, others=number % 2 == 0)
    stored = PIL.Image.open(io.BytesIO(data))
    expected = PIL.ImageOps.exif_transpose(stored)
    np.testing.assert_array_equal(np.asarray(upright(read_image(data))), np.asarray(expected))
    plain = [PIL.Image.fromarray(np.asarray(each)) for each in (expected, stored)]
    for scorer, picture in zip(turning, plain):
        assert scorer.score("a", data) == scorer.score("a", picture)
    if number != 1:
        assert turning[0].score("a", data) != turning[1].score("a", data)


@pytest.mark.parametrize("number", [None, 0, 9, 65535])
def test_without_a_known_orientation_a_picture_stays(number):
    image = read_image(photo(number, others=True))
    assert orientation(image) == 1
    assert upright(image) is image


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"junk" * 9]
)
def test_a_damaged_block_turns_nothing(block):
    image = PICTURE.copy()
    image.info["exif"] = block
    assert upright(image) is image


def test_the_file_that_the_user_opened_is_turned_too(turning, tmp_path):
    (tmp_path / "a.jpg").write_bytes(photo(6, "JPEG"))
    with PIL.Image.open(tmp_path / "a.jpg") as opened:
        assert turning[0].score("a", opened) == turning[0].score("a", tmp_path / "a.jpg")


def test_a_turned_picture_is_not_turned_again(turning):
    image = upright(read_image(photo(8)))
    assert turning[0].score("a", image) == turning[1].score("a", image)


def test_grey_pictures_of_16_bits_are_turned(turning):
    tags = PIL.Image.Exif()
    tags[ORIENTATION] = 6
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257).save(
        buffer, "PNG", exif=tags
    )
    expected = PICTURE.convert("L").transpose(PIL.Image.Transpose.ROTATE_270)
    assert turning[0].score("a", buffer.getvalue()) == turning[1].score("a", expected)


def test_the_choice_is_saved_and_can_be_taken_back(turning, tmp_path):
    saved = turning[0].save_pretrained(tmp_path / "turning")
    data = photo(6)
    for choice, scorer in ((None, turning[0]), (True, turning[0]), (False, turning[1])):
        assert RM.load(saved, "cpu", apply_exif_rotation=choice).score("a", data) == scorer.score("a", data)
    both = RM.ensemble({str(saved): 1.0}, device="cpu", apply_exif_rotation=False)
    assert both.score("a", data) == pytest.approx(turning[1].score("a", data), abs=1e-6)


def test_the_commands_turn_photos_with_their_option(turning, models, tmp_path):
    for number in (1, 6, 3):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    paths = sorted(map(str, tmp_path.glob("*.png")))
    rows = [{"image": path, "prompt": "a"} for path in paths]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for scorer, options in zip(turning, (["--exif-rotation"], [])):
        expected = pytest.approx(scorer.score("a", paths), abs=1e-6)
        found = json.loads(run("score", "a", *paths, "-m", models["HPS"], "--format", "json", *options))
        assert [row["score"] for row in found] == expected
        several = run(
            "score", "a", *paths, "-m", models["HPS"], "-m", models["CLIP"], "--format", "json", *options
        )
        assert [row["score:HPS"] for row in json.loads(several)] == expected
        out = tmp_path / f"out{len(options)}.jsonl"
        run(
            "score-table", tmp_path / "t.jsonl", "--out", out, "-m", models["HPS"], "--workers", "1", *options
        )
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["score:HPS"] for row in lines] == expected


def test_a_cache_of_features_tells_turned_pictures_apart(turning, models, tmp_path):
    (tmp_path / "a.png").write_bytes(photo(6))
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "a"}) + "\n")
    for turn, scorer in zip((True, False), turning):
        out = tmp_path / f"{turn}.jsonl"
        options = {"cache": tmp_path / "cache", "cache_budget": 0.01, "device": "cpu", "workers": 1}
        bulk.score_table(
            tmp_path / "t.jsonl", out, models["HPS"], apply_exif_rotation=turn, progress=False, **options
        )
        assert json.loads(out.read_text())["score:HPS"] == pytest.approx(
            scorer.score("a", photo(6)), abs=1e-6
        )


def test_a_server_turns_photos_if_its_scorer_does(models):
    scorer = RM.load(models["CLIP"], "cpu", apply_exif_rotation=True)
    plain = RM.load(models["CLIP"], "cpu")
    with serving({"turning": scorer, "plain": plain}) as url:
        for name, here in (("turning", scorer), ("plain", plain)):
            form = {"prompt": "a", "model": name}
            answer = client(url).post("/v1/rank", data=form, files=[("images", photo(6, "JPEG"))])
            expected = here.score("a", photo(6, "JPEG"))
            assert answer.json()["scores"] == pytest.approx([expected], abs=1e-6)
            with PIL.Image.open(io.BytesIO(photo(6))) as opened, RM.connect(url, model=name) as remote:
                assert remote.score("a", opened) == pytest.approx(here.score("a", photo(6)), abs=1e-6)


@pytest.mark.parametrize("number", [1, 3, 6, 8])
def test_conditioning_pictures_stand_as_diffusers_loads_them(tmp_path, number):
    utils = pytest.importorskip("diffusers.utils")
    path, mask = tmp_path / "a.jpg", tmp_path / "mask.png"
    path.write_bytes(photo(number, "JPEG"))
    loaded = utils.load_image(str(path))
    white = PIL.Image.new("L", loaded.size, 255)  # a mask of the upright size fits
    white.putpixel((0, 0), 0)
    white.save(mask)
    image, _ = open_pictures(Request("a", image=path, mask=mask), ("image", "mask"), "row 0")
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(loaded))


def test_small_scorers_score_as_before(turning):
    scorer = small_scorer("HPS", seed=3)
    assert not scorer.preprocess.apply_exif_rotation
    assert turning[1].score("a", PICTURE) == pytest.approx(scorer.score("a", PICTURE), abs=1e-6)
