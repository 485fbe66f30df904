"""Pairs of a better and a worse image: every layout of tables, what is left out, bad input, and latents."""

import csv
import io
import json
import logging

import numpy as np
import pipelines
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from imagereward import shapes
from imagereward.errors import InputError
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.preferences import open_preferences
from imagereward.tuning.data.requests import Request
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.rollouts.latent_images import LatentPairs

SIZE = ImageSize(16, 16)
BOTH = ("image", "mask")


def grey(value, side=16):
    return Image.new("RGB", (side, side), (value,) * 3)


def half_white():
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    return mask


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Grey images of levels 0, 50, 100 and 150, named a to d, and a mask."""
    for place, name in enumerate("abcd"):
        grey(50 * place).save(tmp_path / f"{name}.png")
    half_white().save(tmp_path / "mask.png")
    return tmp_path


def table(folder, records, kind="jsonl"):
    """The path of a table of this kind with the records."""
    path = folder / f"pairs.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        lines = [json.dumps(record) for record in records]
        path.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    return str(path)


def opened(folder, records, kind="jsonl", bad=0.0, **options):
    return open_preferences(table(folder, records, kind), SIZE, bad, **options)


def levels(pairs):
    """(prompt, grey level of the chosen image, of the rejected one) of every pair."""
    level = [int(pairs.images[i]["pixels"].float().mean().round()) for i in range(len(pairs.images))]
    sides = zip(pairs.texts, pairs.chosen, pairs.rejected, strict=True)
    return [(text, level[chosen], level[rejected]) for text, chosen, rejected in sides]


# Layouts.


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_named_pairs_come_from_any_table(folder, kind):
    records = [
        {"prompt": "one", "chosen": "a.png", "rejected": "b.png"},
        {"prompt": "two", "chosen": "c.png", "rejected": "a.png"},
    ]
    pairs = opened(folder, records, kind)
    assert levels(pairs) == [("one", 0, 50), ("two", 100, 0)]
    assert len(pairs) == 2
    assert len(pairs.images) == 3  # a.png is in two pairs
    assert pairs.rows == ["one", "two"]


def test_prompts_may_be_in_a_column_of_any_name(folder):
    named = [{"text": "no", "words": "one", "chosen": "a.png", "rejected": "b.png"}]
    assert opened(folder, named, column="words").texts == ["one"]
    picked = [pick(0, 50, 1, caption="no", words="one")]
    assert opened(folder, picked, "parquet", column="words").texts == ["one"]
    with pytest.raises(InputError, match=r"pairs\.jsonl has no column 'wort' of prompts; .*words"):
        opened(folder, named, column="wort")
    with pytest.raises(
        InputError, match="rankings, whose prompts are in the column 'prompt'; leave out 'words'"
    ):
        opened(folder, [RANKED | {"words": "x"}], "json", column="words")


def test_images_are_cropped_to_the_size_and_turned_upright(folder):
    wide = Image.fromarray(np.repeat(np.arange(48, dtype=np.uint8)[None], 16, 0)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    wide.save(folder / "wide.png", exif=exif)
    (folder / "plain.png").write_bytes(encoded(wide))
    pairs = opened(folder, [{"prompt": "x", "chosen": "wide.png", "rejected": "plain.png"}])
    turned, plain = (pairs.images[i]["pixels"] for i in (pairs.chosen[0], pairs.rejected[0]))
    assert plain.shape == (3, 16, 16)
    assert plain[0, 0].tolist() == list(range(16, 32))
    assert torch.equal(turned, plain.flip(1, 2))


def pick(first, second, label, caption="x", **more):
    return {
        "caption": caption,
        "jpg_0": encoded(grey(first)),
        "jpg_1": encoded(grey(second)),
        "label_0": label,
        "label_1": 1 - label,
        **more,
    }


def test_pick_a_pic_is_read_and_its_ties_are_counted(folder, caplog):
    records = [
        pick(0, 50, 1.0, "first", has_label=True),
        pick(0, 100, 0.0, "second", has_label=True),
        pick(50, 100, 0.5, has_label=True),
        pick(50, 150, 0.5, has_label=True),
        pick(100, 150, 0.0, has_label=False),
    ]
    with caplog.at_level(logging.WARNING):
        pairs = opened(folder, records, "parquet")
    assert levels(pairs) == [("first", 0, 50), ("second", 100, 0)]
    assert (pairs.ties, pairs.unlabelled, len(pairs.images)) == (2, 1, 3)
    assert "2 pairs; left out: 2 ties, 1 records without a label" in caplog.text


def test_pick_a_pics_columns_may_hold_paths(folder):
    record = {"Caption": "x", "jpg_0": "a.png", "jpg_1": "b.png", "Label_0": "0.0", "has_label": "True"}
    records = [record, {**record, "Label_0": "0.5"}, {**record, "Label_0": "", "has_label": "False"}]
    pairs = opened(folder, records, "csv")
    assert levels(pairs) == [("x", 50, 0)]
    assert (pairs.ties, pairs.unlabelled) == (1, 1)


def test_a_hugging_face_image_is_bytes_or_a_path(folder):
    chosen = {"bytes": encoded(grey(200)), "path": "nowhere.png"}
    records = [{"prompt": "x", "chosen": chosen, "rejected": {"bytes": None, "path": "a.png"}}]
    assert levels(opened(folder, records, "parquet")) == [("x", 200, 0)]


RANKED = {
    "id": "7",
    "prompt": "x",
    "generations": ["a.png", "b.png", "c.png", "d.png"],
    "ranking": [2, 1, 2, 3],
}


@pytest.mark.parametrize(
    ("pairs_of", "expected", "ties"),
    [("all", {(50, 0), (50, 100), (50, 150), (0, 150), (100, 150)}, 1), ("extremes", {(50, 150)}, 0)],
)
def test_rankings_give_all_pairs_or_the_extremes(folder, pairs_of, expected, ties):
    pairs = opened(folder, [RANKED], "json", pairs_of=pairs_of)
    assert {each[1:] for each in levels(pairs)} == expected
    assert len(pairs) == len(expected)
    assert pairs.ties == ties


def test_rankings_of_an_image_a_record_are_read(folder):
    records = [
        {"prompt_id": "1", "prompt": "x", "image_path": f"{name}.png", "rank": rank}
        for name, rank in zip("abc", (3, 1, 2))
    ]
    assert {each[1:] for each in levels(opened(folder, records, pairs_of="extremes"))} == {(50, 0)}


# Pictures that the model is shown.


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_carry_the_pictures_that_the_model_takes(folder, kind):
    record = {"prompt": "x", "chosen": "a.png", "rejected": "b.png", "image": "c.png", "mask": "mask.png"}
    both = Request("x", folder / "c.png", folder / "mask.png")
    assert opened(folder, [record], kind, inputs=BOTH).rows == [both]
    assert opened(folder, [record], kind, inputs=("image",)).rows == [Request("x", folder / "c.png")]
    assert opened(folder, [record], kind).rows == ["x"]
    ranked = {**RANKED, "image": "c.png", "mask": "mask.png"}
    assert opened(folder, [ranked], kind, inputs=BOTH).rows == [both] * 5


def test_a_mask_that_the_crop_loses_is_named(folder):
    Image.new("RGB", (32, 16)).save(folder / "wide.png")
    edge = Image.new("L", (32, 16))
    edge.paste(255, (0, 0, 8, 16))
    edge.save(folder / "edge.png")
    record = {**RANKED, "image": "wide.png", "mask": "edge.png"}
    with pytest.raises(InputError, match=r"record 0: its mask .*edge\.png, at 16 x 16 .* is empty"):
        opened(folder, [record], inputs=BOTH)


def test_pictures_may_be_bytes(folder):
    mask = encoded(half_white())
    record = pick(0, 50, 1.0, image=encoded(grey(9)), mask=mask)
    (row,) = opened(folder, [record], "parquet", inputs=BOTH).rows
    condition = open_denoiser(pipelines.sd_inpaint(), 16).encode([row])
    assert row == Request("x", encoded(grey(9)), mask)
    assert condition.tensors["channels"][:, 0].mean() == 0.5


# Bad input.

GOOD = {"prompt": "x", "chosen": "a.png", "rejected": "b.png"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "x", "chosen": "a.png", "rejected": None}, "record 1 has no image rejected"),
        ({"prompt": "x", "rejected": "a.png"}, "record 1 has no image chosen"),
        (
            {"prompt": "x", "chosen": 1, "rejected": "a.png"},
            "record 1, chosen: expected a path or bytes, found int",
        ),
        ({"prompt": " ", "chosen": "a.png", "rejected": "b.png"}, "record 1 has no prompt: it is blank"),
        ({"chosen": "a.png", "rejected": "b.png"}, "record 1 has no prompt"),
        (
            {"prompt": "x", "chosen": "a.png", "rejected": "a.png"},
            r"record 1: chosen and rejected are the same image .*a\.png",
        ),
        (
            {"prompt": "x", "chosen": "a.png", "rejected": "copy.png"},
            r"record 1: chosen and rejected are the same image",
        ),
        ("x", "record 1 has no prompt|record 1 has no image"),
        (3, "record 1: the record is a int"),
    ],
)
def test_a_bad_pair_is_named(folder, record, message):
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(InputError, match=rf"pairs\.jsonl.*{message}"):
        opened(folder, [GOOD, record])


def test_equal_bytes_are_named(folder):
    with pytest.raises(InputError, match=r"pairs\.parquet, record 1: chosen and rejected are the same image"):
        opened(folder, [pick(0, 50, 1.0), pick(50, 50, 0.0)], "parquet")


@pytest.mark.parametrize("label", [2, 0.7, None, "good"])
def test_a_label_of_another_value_is_named(folder, label):
    record = {"caption": "x", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": label}
    with pytest.raises(InputError, match=r"record 0: label_0 is .*; expected 1 .*, 0 .* or 0\.5"):
        opened(folder, [record])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"caption": "x", "label_0": 1, "label_1": 0},
            "has no images to compare: its columns are caption, label_0",
        ),
        ({"prompt": "x", "score": 1}, "has no images to compare"),
        ({"prompt": "x", "chosen": "a.png"}, "has no images to compare"),
        ({"prompt": "x", "jpg_0": "a.png", "jpg_1": "b.png"}, "has no images to compare"),
        ({"caption": "x", "image_0_url": "u", "image_1_url": "v", "label_0": 1}, "fetches none"),
    ],
)
def test_a_table_without_images_is_refused(folder, record, message):
    with pytest.raises(InputError, match=rf"pairs\.jsonl .*{message}.*expected records of"):
        opened(folder, [record])


def test_ties_alone_are_refused(folder):
    with pytest.raises(InputError, match=r"pairs\.parquet prefers no image to another: 2 ties, 0 records"):
        opened(folder, [pick(0, 50, 0.5), pick(0, 100, 0.5)], "parquet")
    for pairs_of, ties in (("all", 6), ("extremes", 1)):
        with pytest.raises(InputError, match=f"prefers no image to another: {ties} ties"):
            opened(folder, [{**RANKED, "ranking": [1] * 4}], "json", pairs_of=pairs_of)


def test_files_that_are_no_table_are_refused(folder):
    (folder / "empty.jsonl").write_text("")
    for name, message in (
        ("no.json", "does not exist"),
        ("a.png", "is no table"),
        ("empty.jsonl", "no records"),
    ):
        with pytest.raises(InputError, match=message):
            open_preferences(str(folder / name), SIZE, 0.0)


@pytest.mark.parametrize(("inputs", "missing"), [(("image",), "image"), (BOTH, "mask")])
def test_a_picture_that_the_model_takes_is_asked_for(folder, inputs, missing):
    whole = {**GOOD, "image": "c.png", "mask": "mask.png"}
    lacking = {name: value for name, value in whole.items() if name != missing}
    with pytest.raises(
        InputError, match=rf"pairs\.jsonl, record 1 has no {missing}: this model takes prompt, image"
    ):
        opened(folder, [whole, lacking], inputs=inputs)
    with pytest.raises(InputError, match="record 0 has no image: this model takes prompt"):
        opened(folder, [RANKED], "json", inputs=inputs)


def test_rankings_of_an_image_a_record_have_no_place_for_pictures(folder):
    records = [{"prompt_id": "1", "prompt": "x", "image_path": f"{name}.png", "rank": 1} for name in "ab"]
    with pytest.raises(InputError, match="has a record for each image: this model takes prompt, image"):
        opened(folder, records, inputs=("image",))


def test_a_mask_of_another_size_is_refused(folder):
    Image.new("L", (8, 16)).save(folder / "mask.png")
    record = {**GOOD, "image": "c.png", "mask": "mask.png"}
    with pytest.raises(
        InputError, match="record 0: expected pictures of one size, got image 16x16, mask 8x16"
    ):
        opened(folder, [record], inputs=BOTH)


@pytest.mark.parametrize("which", ["chosen", "rejected", "image"])
def test_unreadable_images_are_skipped_up_to_a_share(folder, which, caplog):
    (folder / "bad.png").write_bytes(b"no image")
    whole = {**GOOD, "image": "c.png"}
    records = [whole, {**whole, which: "bad.png"}, {**whole, "chosen": "d.png"}]
    with caplog.at_level(logging.WARNING):
        pairs = opened(folder, records, bad=0.2, inputs=("image",))  # 1 of 5
    assert levels(pairs) == [("x", 0, 50), ("x", 150, 50)]
    assert pairs.skipped == 1
    assert f"record 1, {which}: " in caplog.text
    assert "bad.png" in caplog.text
    with pytest.raises(
        InputError, match=rf"1 of 5 images cannot be used: .*record 1, {which}: .*max_bad_share"
    ):
        opened(folder, records, bad=0.19, inputs=("image",))


def test_damaged_bytes_are_named(folder):
    record = {**pick(0, 50, 1.0), "jpg_1": b"no image"}
    with pytest.raises(
        InputError, match=r"1 of 2 images cannot be used: .*pairs\.parquet, record 0, rejected: "
    ):
        opened(folder, [record], "parquet")
    with pytest.raises(InputError, match="holds no pair of images that can be used"):
        opened(folder, [record], "parquet", bad=0.5)


def test_a_table_that_is_too_large_to_hold_is_refused(folder, monkeypatch):
    path = table(folder, [pick(0, 50, 1.0)], "parquet")
    monkeypatch.setattr("imagereward.tuning.data.pictures.MOST_HELD", 100)
    with pytest.raises(
        InputError, match=r"has \d+ bytes; expected at most 100, because pictures in a table stay"
    ):
        open_preferences(path, SIZE, 0.0)


# Latents.


class Counting:
    """An autoencoder that counts the images it encodes."""

    def __init__(self, autoencoder):
        self.wrapped, self.vae, self.encoded = autoencoder, autoencoder.vae, 0

    def encode(self, images):
        self.encoded += len(images)
        return self.wrapped.encode(images)


def test_a_cache_encodes_every_image_once(folder, tmp_path):
    autoencoder = Counting(open_denoiser(pipelines.sd(), 16).autoencoder)
    pairs = opened(folder, [RANKED], "json")
    plain, cached = LatentPairs(pairs, autoencoder), LatentPairs(pairs, autoencoder, tmp_path / "cache")
    expected = plain.latents(range(5))
    autoencoder.encoded = 0
    for indices in ([3, 0], [0, 1, 2, 3, 4]):
        for found, each in zip(cached.latents(indices), expected, strict=True):
            torch.testing.assert_close(found, each[indices], atol=1e-5, rtol=1e-5)
    assert autoencoder.encoded == 4
    LatentPairs(opened(folder, [RANKED], "json"), autoencoder, tmp_path / "cache").latents([0])
    assert autoencoder.encoded == 4
    grey(77).save(folder / "a.png")
    LatentPairs(opened(folder, [RANKED], "json"), autoencoder, tmp_path / "cache").latents([0])
    assert autoencoder.encoded == 8


def test_latents_are_those_of_the_chosen_and_of_the_rejected(folder):
    autoencoder = open_denoiser(pipelines.sd(), 16).autoencoder
    pairs = opened(folder, [GOOD, {"prompt": "y", "chosen": "d.png", "rejected": "a.png"}])
    chosen, rejected = LatentPairs(pairs, autoencoder).latents([1, 0])
    of = {v: autoencoder.encode(torch.full((1, 3, 16, 16), v / 255)) for v in (0, 50, 150)}
    torch.testing.assert_close(chosen, torch.cat([of[150], of[0]]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rejected, torch.cat([of[0], of[50]]), atol=1e-5, rtol=1e-5)


# Preferences that Shapes draws.


def drawn(count=8, side=64, **options):
    return open_preferences("shapes", ImageSize(side, side), 0.0, count=count, **options)


def measured(pairs, side, index):
    """The measure of Shapes of one side's image of a pair."""
    pixels = pairs.images[side[index]]["pixels"].permute(1, 2, 0).numpy()
    return shapes.measure(Image.fromarray(pixels), pairs.texts[index])


def test_drawn_preferences_are_those_of_the_truth():
    pairs = drawn(16, seed=3, things=2)
    assert len(pairs) == 16
    assert len(pairs.images) == 32
    assert pairs.rows == pairs.texts
    assert all(shapes.read(text).total <= 2 for text in pairs.texts)
    gains = []
    for i in range(16):
        chosen, rejected = (measured(pairs, side, i) for side in (pairs.chosen, pairs.rejected))
        gains.append((chosen.faithfulness - rejected.faithfulness, chosen.cleanliness - rejected.cleanliness))
    faithfulness, cleanliness = np.array(gains).T
    assert (np.maximum(faithfulness, cleanliness) > 0.02).mean() > 0.9
    assert faithfulness.mean() > 0.05
    assert cleanliness.mean() > 0.05


def test_a_drawn_preference_is_a_function_of_seed_and_number():
    many, few, other = drawn(6, seed=1), drawn(3, seed=1), drawn(3, seed=2)
    for i in range(6):
        assert torch.equal(many.images[i]["pixels"], few.images[i]["pixels"])
    assert many.texts[:3] == few.texts != other.texts
    assert few.images.identity != other.images.identity != many.images.identity
    with pytest.raises(IndexError):
        few.images[6]


def test_drawn_preferences_with_a_mask_differ_under_it_alone():
    pairs = drawn(12, inputs=BOTH)
    for i, row in enumerate(pairs.rows):
        chosen, rejected = (pairs.images[side[i]]["pixels"] for side in (pairs.chosen, pairs.rejected))
        masked = torch.from_numpy(np.array(row.mask)) > 127
        assert torch.equal(chosen, torch.from_numpy(np.array(row.image)).permute(2, 0, 1))
        assert torch.equal(chosen[:, ~masked], rejected[:, ~masked])
        assert not torch.equal(chosen, rejected)
        assert measured(pairs, pairs.chosen, i).faithfulness > measured(pairs, pairs.rejected, i).faithfulness
        assert row.prompt == pairs.texts[i]
    assert len(pairs.rows[2:5]) == 3
    with pytest.raises(IndexError):
        pairs.rows[12]


def test_shapes_are_square_and_show_no_image_to_change():
    with pytest.raises(InputError, match=r"resolution=\[16, 24\]: Shapes are square"):
        open_preferences("shapes", ImageSize(16, 24), 0.0)
    with pytest.raises(
        InputError, match='data="shapes": Shapes draws nothing for a model that takes prompt, image;'
    ):
        drawn(inputs=("image",))
