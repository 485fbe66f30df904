"""Rows with pictures: read from files and lists, checked before any training, cut as their images are."""

import json

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from test_refl import brightness, settings

from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.images.row_pictures import mask_at
from imagereward.tuning import tune
from imagereward.tuning.data.image_size import CoverCrop, ImageSize
from imagereward.tuning.data.prompts import read_prompts, read_rows
from imagereward.tuning.data.requests import Request, digest_of, digest_of_pixels, prompts_of
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.finetune import train_generator
from imagereward.tuning.objectives.sft import SFTConfig

BOTH = ("image", "mask")


@pytest.fixture
def folder(tmp_path):
    """Three images with masks, and a file that names them."""
    records = []
    for seed, prompt in enumerate(pipelines.PROMPTS):
        for name, picture in pipelines.pictures(seed).items():
            picture.save(tmp_path / f"{name}-{seed}.png")
        records.append({"prompt": prompt, "image": f"image-{seed}.png", "mask": f"mask-{seed}.png"})
    write(tmp_path, records)
    return tmp_path


def write(folder, records):
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(record) for record in records))


def records_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_pictures_are_found_beside_the_file(folder):
    rows = read_rows(folder / "rows.jsonl", BOTH)
    assert prompts_of(rows) == list(pipelines.PROMPTS)
    assert [row.image for row in rows] == [folder / f"image-{i}.png" for i in range(3)]
    assert [row.mask for row in rows] == [folder / f"mask-{i}.png" for i in range(3)]


def test_a_list_may_hold_records_or_requests():
    pictures = pipelines.pictures()
    record, request = {"prompt": "a cat", **pictures}, Request("a cat", **pictures)
    assert read_rows([record, request], BOTH) == [request, request]


def test_empty_cells_are_no_picture_and_those_of_hugging_faces_datasets_are(folder):
    encoded = (folder / "image-0.png").read_bytes()
    empty, held, named = read_rows(
        [
            {"prompt": "a", "image": "", "seed": 1},
            {"prompt": "a", "image": {"bytes": encoded, "path": "elsewhere.png"}},
            {"prompt": "a", "image": {"bytes": None, "path": str(folder / "image-0.png")}},
        ],
        (),
    )
    assert empty.image is None
    assert held.image == encoded
    assert named.image == folder / "image-0.png"
    with pytest.raises(InputError, match="has no image"):
        read_rows([{"prompt": "a", "image": ""}], ("image",))


def test_a_mask_too_thin_to_resize_is_named_before_any_memory_is_taken(tmp_path):
    thin = Image.new("L", (1, 60_000))
    thin.paste(255, (0, 0, 1, 30_000))
    thin.save(tmp_path / "thin.png")
    row = Request("a cat", Image.new("RGB", (1, 60_000)), tmp_path / "thin.png")
    with pytest.raises(InputError, match=r"its mask .*thin.png.* is too narrow"):
        mask_at(row, ImageSize(512, 512), "row 0")


def test_a_model_of_words_alone_opens_no_picture(folder):
    write(folder, [{"prompt": "a cat", "image": "missing.png"}])
    assert read_rows(folder / "rows.jsonl", ()) == [Request("a cat", image=folder / "missing.png")]
    assert read_prompts(folder / "rows.jsonl") == ["a cat"]


def test_rows_are_known_again_by_all_that_they_hold():
    image, other = pipelines.pictures(0)["image"], pipelines.pictures(1)["image"]
    rows = [
        "a cat",
        "a dog",
        Request("a cat", image=image),
        Request("a cat", image=other),
        Request("a cat", image="a.png"),
        Request("a cat", mask="a.png"),
        Request("a cat", metadata={"count": 1}),
        Request("a cat", metadata={"count": 2}),
    ]
    assert len({digest_of([row]) for row in rows}) == len(rows)
    assert digest_of(["a cat"]) == digest_of([Request("a cat")])
    assert digest_of([Request("a cat", image=image.copy())]) == digest_of([Request("a cat", image=image)])
    assert digest_of(["a", "b"]) != digest_of(["b", "a"])


def test_pictures_with_equal_indices_and_other_palettes_are_told_apart():
    pictures = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        picture = Image.new("P", (64, 64))
        picture.putpalette(colour)
        pictures.append(picture)
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert digest_of_pixels(pictures[0]) != digest_of_pixels(pictures[1])
    assert digest_of_pixels(pictures[0]) == digest_of_pixels(pictures[0].copy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "has no mask: expected prompt, image, mask"),
        ({"image": None}, "has no image: expected prompt, image, mask"),
        ({"mask": "nowhere.png"}, r"its mask .*nowhere\.png cannot be read"),
        ({"image": "rows.jsonl"}, r"its image .*rows\.jsonl cannot be read"),
        ({"mask": 3}, "its mask cannot be read"),
        ({"mask": "large.png"}, "expected pictures of one size, got image 16x16, mask 20x24 pixels"),
        ({"prompt": " "}, "has no prompt"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(change, message, folder):
    Image.new("L", (20, 24)).save(folder / "large.png")
    records = records_of(folder)
    records[1] |= change
    write(folder, [{k: v for k, v in record.items() if v is not None} for record in records])
    with pytest.raises(InputError, match=message) as caught:
        read_rows(folder / "rows.jsonl", BOTH)
    assert "record 1" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a cat"], r"row 0 \('a cat'\) has no image"),
        ([Request("a cat", pipelines.pictures()["image"])], r"row 0 \('a cat'\) has no mask"),
        (
            [Request("a cat", pipelines.pictures()["image"], Image.new("L", (8, 16)))],
            "got image 16x16, mask 8x16 pixels",
        ),
    ],
)
@pytest.mark.parametrize("family", ["sd_inpaint", "flux_fill"])
def test_a_picture_that_is_missing_is_never_grey(family, rows, message):
    denoiser = open_denoiser(pipelines.FAMILIES[family](), pipelines.SIDE)
    with pytest.raises(InputError, match=message):
        denoiser.encode(rows)


@pytest.mark.parametrize("family", pipelines.INPUTS)
def test_training_without_pictures_is_refused_before_anything_is_written(family, tmp_path):
    with pytest.raises(InputError, match=r"prompts\[0\] has no image: expected prompt, image"):
        tune(
            pipelines.FAMILIES[family](),
            ["a cat"],
            reward=brightness,
            output=tmp_path / "out",
            **settings(),
        )
    assert not (tmp_path / "out").exists()


def test_a_run_takes_its_pictures_from_a_file(folder):
    tune(
        pipelines.flux_fill(),
        folder / "rows.jsonl",
        reward=brightness,
        output=folder / "out",
        **settings(lora={"rank": 2}, updates=1),
    )
    assert (folder / "out/pytorch_lora_weights.safetensors").is_file()


def test_a_mask_is_cut_as_its_image_is():
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 2, (6, 9), dtype=np.uint8), np.ones((16, 16), np.uint8)) * 255
    mask = Image.fromarray(blocks)
    square = CoverCrop(ImageSize(32, 32)).mask(mask)
    assert square.shape == (1, 32, 32)
    assert set(square.unique().tolist()) == {0, 1}
    image = Preprocess(32).pixels(mask.convert("RGB"))[:1].float() / 255
    assert ((image - square).abs() < 0.5).float().mean() > 0.97  # but at edges, which bicubic blurs


@pytest.mark.parametrize(("grey", "painted"), [(127, 0), (128, 1), (255, 1), (0, 0)])
def test_white_is_painted_anew(grey, painted):
    assert (CoverCrop(ImageSize(8, 8)).mask(Image.new("L", (8, 8), grey)) == painted).all()


@pytest.mark.parametrize("family", ["sd_inpaint", "flux_fill"])
def test_what_is_painted_anew_is_not_seen(family):
    denoiser = open_denoiser(pipelines.FAMILIES[family](), pipelines.SIDE)
    (row,) = pipelines.rows(family, 1)
    hidden = np.array(row.image)
    hidden[np.array(row.mask) > 127] = 7
    seen, other = (
        denoiser.encode([Request(row.prompt, each, row.mask)])
        for each in (row.image, Image.fromarray(hidden))
    )
    assert torch.equal(seen.tensors["channels"], other.tensors["channels"])


# What cannot be.


def test_an_inpainting_network_that_is_not_shown_the_mask_is_refused():
    pipeline = pipelines.sd_inpaint()
    pipeline.unet = pipelines.unet()
    with pytest.raises(InputError, match="the U-Net takes 4 channels; one for inpainting takes 9"):
        open_denoiser(pipeline, pipelines.SIDE)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_resolution_that_is_no_whole_number_of_patches_is_refused(family):
    with pytest.raises(InputError, match="resolution=18: this pipeline takes multiples of 4"):
        open_denoiser(pipelines.FAMILIES[family](), 18)


def sft(family, tmp_path, **pairs):
    values = settings()
    for key in ("recipe", "gradient", "steps", "evaluation", "eta"):
        values.pop(key)
    config = SFTConfig(
        model="", output=str(tmp_path / "out"), **values, pairs={"data": "shapes", "pairs": 4, **pairs}
    )
    return train_generator(config, pipelines.FAMILIES[family]())


def test_min_snr_of_a_flow_model_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"min_snr_gamma=5\.0: flow models draw"):
        sft("sd3", tmp_path, min_snr_gamma=5.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_flow_models_learn_from_pairs(family, tmp_path):
    tuned = sft(family, tmp_path, prompt_dropout=0.5)
    before = pipelines.network_of(pipelines.FAMILIES[family]()).state_dict()
    assert all(value.isfinite().all() for value in pipelines.network_of(tuned).state_dict().values())
    assert any(
        (value != before[name]).any() for name, value in pipelines.network_of(tuned).state_dict().items()
    )
    losses = [e["loss"] for e in json.loads((tmp_path / "out/history.json").read_text()) if "loss" in e]
    assert len(losses) == 2
