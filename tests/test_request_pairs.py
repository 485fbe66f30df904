"""(request, target) pairs for models that are shown pictures: tables, drawn ones, bad input, and training."""

import json
import logging

import numpy as np
import pipelines
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from test_refl import policy_of

from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.tuning.data.image_pairs import ImagePairs, open_pairs
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Request, without_prompt
from imagereward.tuning.data.seeding import rows_for_samples
from imagereward.tuning.finetune import train_generator
from imagereward.tuning.objectives import config_class
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.objectives.sft import SFT, PairsConfig, SFTConfig
from imagereward.tuning.rollouts.latent_images import LatentImages

SIZE = ImageSize(16, 16)
BOTH, IMAGE = ("image", "mask"), ("image",)


@pytest.fixture
def folder(tmp_path):
    """Three images and masks, and a grey target for each."""
    for seed in range(3):
        for name, picture in pipelines.pictures(seed).items():
            picture.save(tmp_path / f"{name}-{seed}.png")
        Image.new("RGB", (16, 16), (50 * seed,) * 3).save(tmp_path / f"target-{seed}.png")
    return tmp_path


def records(*names):
    """Three records with these pictures."""
    return [
        {"prompt": prompt, **{name: f"{name}-{seed}.png" for name in names}}
        for seed, prompt in enumerate(pipelines.PROMPTS)
    ]


def write(folder, found):
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, found)))
    return str(folder / "pairs.jsonl")


def opened(path, inputs, bad=0.0, size=SIZE, data=None):
    return open_pairs(data or path, size, bad, count=5, seed=0, things=2, inputs=inputs)


# Tables.


def test_a_record_is_a_request_and_its_target(folder):
    pairs = opened(write(folder, records("image", "target")), IMAGE)
    assert pairs.rows == [Request(p, folder / f"image-{i}.png") for i, p in enumerate(pipelines.PROMPTS)]
    assert pairs.texts == list(pipelines.PROMPTS)
    assert [pairs[i]["prompt"] for i in range(3)] == pairs.texts
    assert [pairs[i]["pixels"].unique().tolist() for i in range(3)] == [[0], [50], [100]]
    masked = opened(write(folder, records("image", "mask", "target")), BOTH)
    assert masked.rows[1] == Request(pipelines.PROMPTS[1], folder / "image-1.png", folder / "mask-1.png")
    assert masked[1]["pixels"].unique().tolist() == [50]


def test_keys_may_say_that_they_are_paths(folder):
    plain = opened(write(folder, records("image", "mask", "target")), BOTH)
    renamed = [
        {name if name == "prompt" else f"{name}_path": value for name, value in each.items()}
        for each in records("image", "mask", "target")
    ]
    pairs = opened(write(folder, renamed), BOTH)
    assert (pairs.rows, pairs.identity) == (plain.rows, plain.identity)


def test_without_a_target_a_masked_image_is_its_own(folder):
    found = records("image", "mask")
    found[2]["target"] = "target-2.png"
    pairs = opened(write(folder, found), BOTH)
    for i in range(2):
        image = np.array(Image.open(folder / f"image-{i}.png"))
        assert (pairs[i]["pixels"].permute(1, 2, 0).numpy() == image).all()
    assert pairs[2]["pixels"].unique().tolist() == [100]


def test_pictures_may_be_bytes(folder):
    found = [
        {name: (folder / value).read_bytes() if name != "prompt" else value for name, value in each.items()}
        for each in records("image", "mask", "target")
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), folder / "pairs.parquet")
    pairs = opened(str(folder / "pairs.parquet"), BOTH)
    assert pairs.rows[0].image == (folder / "image-0.png").read_bytes()
    assert pairs[1]["pixels"].unique().tolist() == [50]


def test_pictures_of_a_record_are_turned_alike(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    wide = pipelines.pictures(side=32)["image"].crop((0, 0, 32, 16))
    wide.save(folder / "turned.png", exif=exif)
    mask = Image.new("L", (16, 32))
    mask.paste(255, (0, 0, 8, 32))
    mask.save(folder / "tall.png")
    pairs = opened(write(folder, [{"prompt": "x", "image": "turned.png", "mask": "tall.png"}]), BOTH)
    upright = wide.transpose(Image.Transpose.ROTATE_270).crop((0, 8, 16, 24))
    assert (pairs[0]["pixels"].permute(1, 2, 0).numpy() == np.array(upright)).all()


def test_pairs_know_their_targets(folder):
    path = write(folder, records("image", "target"))
    before = opened(path, IMAGE).identity
    assert before == opened(path, IMAGE).identity != opened(path, IMAGE, size=ImageSize(32, 32)).identity
    Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / "target-0.png")
    assert before != opened(path, IMAGE).identity


def test_a_model_of_words_alone_takes_texts_and_images(folder):
    pairs = opened(write(folder, records("image", "mask", "target")), ())
    assert isinstance(pairs, ImagePairs)
    assert pairs.rows == pairs.texts == list(pipelines.PROMPTS)


@pytest.mark.parametrize("inputs", [(), BOTH])
def test_prompts_may_be_in_a_column_of_any_name(folder, inputs):
    path = write(folder, [{**each, "words": "so"} for each in records("image", "mask", "target")])
    pairs = open_pairs(path, SIZE, 0, count=5, seed=0, things=2, inputs=inputs, column="words")
    assert pairs.texts == ["so"] * 3
    with pytest.raises(InputError, match=r"pairs\.jsonl has no column 'wort' of prompts; .*words"):
        open_pairs(path, SIZE, 0, count=5, seed=0, things=2, inputs=inputs, column="wort")


PAIRS = {"objective": "sft", "pairs": {"data": ""}}
PREFERENCES = {"objective": "dpo", "preferences": {"data": ""}, "beta": 1.0}


@pytest.mark.parametrize("values", [PAIRS, PREFERENCES], ids=["pairs", "preferences"])
def test_the_column_of_a_training_is_that_of_its_table(folder, values):
    found = [{"prompt": "no", "words": "so", "image": "image-0.png"}]
    found[0] |= {"chosen": "image-0.png", "rejected": "image-1.png"}
    part = "pairs" if values is PAIRS else "preferences"
    filled = values | {part: {"data": write(folder, found)}, "prompt_column": "words"}
    config = config_class(filled["objective"])(model="m", output="o", **filled)
    made = config.make(ObjectiveContext(policy_of("sd").denoiser, None, [], folder))
    assert list(made.prompts) == ["so"]
    with pytest.raises(InputError, match="no column 'wort'"):
        config.model_copy(update={"prompt_column": "wort"}).make(
            ObjectiveContext(policy_of("sd").denoiser, None, [], folder)
        )


def test_a_generators_images_are_turned_upright(folder):
    """With or without pictures beside the prompt; a reward model's images stay as scorers see them."""
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    image = pipelines.pictures(side=16)["image"]
    image.save(folder / "turned.png", exif=exif)
    pairs = opened(write(folder, [{"prompt": "x", "image": "turned.png"}]), ())
    turned = image.transpose(Image.Transpose.ROTATE_180)
    assert (pairs[0]["pixels"].permute(1, 2, 0).numpy() == np.array(turned)).all()
    plain = ImagePairs(folder / "pairs.jsonl", Preprocess(16))
    assert (plain[0]["pixels"].permute(1, 2, 0).numpy() == np.array(image)).all()


# Drawn scenes.


def test_drawn_scenes_have_a_mask_over_a_thing():
    pairs = opened(None, BOTH, data="shapes", size=ImageSize(64, 64))
    plain = opened(None, (), data="shapes", size=ImageSize(64, 64))
    assert len(pairs) == len(pairs.rows) == 5
    assert pairs.texts == plain.texts == [row.prompt for row in pairs.rows]
    for i, row in enumerate(pairs.rows):
        assert torch.equal(pairs[i]["pixels"], plain[i]["pixels"])
        assert row.image.size == row.mask.size == (64, 64)
        masked = np.array(row.mask) > 127
        assert 0.01 < masked.mean() < 0.3
        # Most of what is bright or dark against the paper lies under some thing; a thing is one colour.
        pixels = np.array(row.image).astype(float)
        assert np.ptp(pixels[masked].mean(0)) > np.ptp(pixels[~masked].mean(0))
    assert opened(None, BOTH, data="shapes").identity != opened(None, (), data="shapes").identity


@pytest.mark.parametrize(
    ("inputs", "size", "message"),
    [
        (
            IMAGE,
            SIZE,
            'data="shapes": Shapes draws nothing for a model that takes prompt, image; name a table',
        ),
        (BOTH, ImageSize(16, 24), r"resolution=\[16, 24\]: Shapes are square"),
    ],
)
def test_what_shapes_cannot_draw_is_refused(inputs, size, message):
    with pytest.raises(InputError, match=message):
        opened(None, inputs, data="shapes", size=size)


# Bad input.


@pytest.mark.parametrize(
    ("inputs", "change", "message"),
    [
        (IMAGE, {"target": None}, r"record 1 has no target: expected the image that the model should make"),
        (IMAGE, {"image": None}, r"record 1 has no image: this model takes prompt, image"),
        (BOTH, {"mask": None}, r"record 1 has no mask: this model takes prompt, image, mask"),
        (BOTH, {"mask": 7}, r"record 1, mask: expected a path or bytes, found int"),
        (BOTH, {"prompt": ""}, r"record 1 has no prompt: it is blank"),
        (IMAGE, {"prompt": 5}, r"record 1 has no prompt: .*found int"),
        (BOTH, {"target": "wide.png"}, r"record 1: expected pictures of one size, got .*target 20x16 pixels"),
        (BOTH, {"mask": "wide.png"}, r"record 1: expected pictures of one size, got .*mask 20x16"),
        (BOTH, {"mask": "black.png"}, r"record 1: its mask .*black\.png is empty"),
        (
            BOTH,
            {"image": "wide.png", "target": "wide.png", "mask": "edge.png"},
            r"record 1: its mask .*edge\.png, at 16 x 16 \(height x width\), is empty",
        ),
        (IMAGE, {"target": "no.png"}, r"1 of 6 images cannot be used: .*record 1, target: .*no\.png"),
        (IMAGE, {"image": "pairs.jsonl"}, r"1 of 6 images cannot be used: .*record 1, image: "),
    ],
)
def test_a_bad_record_is_named(folder, inputs, change, message):
    Image.new("RGB", (20, 16)).save(folder / "wide.png")
    Image.new("L", (16, 16)).save(folder / "black.png")
    edge = Image.new("L", (20, 16))
    edge.paste(255, (0, 0, 2, 16))  # which the crop to a square cuts off
    edge.save(folder / "edge.png")
    found = records(*inputs, "target")
    found[1].update(change)
    with pytest.raises(InputError, match=rf"pairs\.jsonl.*{message}"):
        opened(write(folder, found), inputs)


def test_a_record_that_is_no_object_is_named(folder):
    with pytest.raises(InputError, match=r"pairs\.jsonl, record 0: the record is a int"):
        opened(write(folder, [3, *records("image", "target")]), IMAGE)


def test_damaged_pictures_are_skipped_up_to_a_share(folder, caplog):
    (folder / "mask-1.png").write_bytes(b"no image")
    path = write(folder, records("image", "mask"))
    with caplog.at_level(logging.WARNING):
        pairs = opened(path, BOTH, bad=0.2)  # 1 of 6
    assert pairs.texts == [pipelines.PROMPTS[0], pipelines.PROMPTS[2]]
    assert pairs.skipped == 1
    assert "record 1, mask: " in caplog.text
    with pytest.raises(InputError, match="1 of 6 images cannot be used"):
        opened(path, BOTH, bad=0.1)
    with pytest.raises(InputError, match="holds no pair of a prompt and a usable target"):
        opened(write(folder, records("image", "mask")[1:2]), BOTH, bad=0.5)


# Training.


def objective_on(pairs, policy, **options):
    return SFT(PairsConfig(data="", **options), LatentImages(pairs, policy.denoiser.autoencoder))


def test_a_row_keeps_its_pictures_without_its_prompt(folder):
    assert without_prompt("a cat") == ""
    whole = Request("a cat", "a.png", "b.png", {"n": 1})
    assert without_prompt(whole) == Request("", "a.png", "b.png", {"n": 1})
    policy, encoded = policy_of("flux_fill"), []
    encode = policy.denoiser.encode
    policy.denoiser.encode = lambda rows: encoded.extend(rows) or encode(rows)
    pairs = opened(write(folder, records("image", "mask")), BOTH)
    with torch.no_grad():
        objective_on(pairs, policy, prompt_dropout=1.0).loss(policy, UpdatePlan(0, 3, 3).chunks[0])
    assert {row.prompt for row in encoded} == {""}
    assert {row.image for row in encoded} == {row.image for row in pairs.rows}
    assert {row.mask for row in encoded} == {row.mask for row in pairs.rows}


@pytest.mark.parametrize(("family", "inputs"), pipelines.INPUTS.items())
def test_the_loss_compares_with_the_target_given_the_pictures(folder, family, inputs):
    policy, seen = policy_of(family), {}
    predict = policy.denoiser.predict

    def watched(x, time, condition, guidance=1.0):
        seen.update(x=x, time=time, condition=condition, output=predict(x, time, condition, guidance))
        return seen["output"]

    policy.denoiser.predict = watched
    pairs = opened(write(folder, records(*inputs, "target")), inputs)
    chunk = UpdatePlan(0, 2, 2).chunks[0]
    with torch.no_grad():
        loss, _ = objective_on(pairs, policy).loss(policy, chunk)
    order = rows_for_samples(chunk.samples, 3, 0)
    greys = torch.tensor([50.0 * i / 255 for i in order]).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    clean = policy.denoiser.autoencoder.encode(greys)
    if family == "sd_inpaint":  # x = sqrt(alpha) clean + sqrt(1 - alpha) noise, and the noise is predicted
        alpha = policy.denoiser.pipeline.scheduler.alphas_cumprod[seen["time"]].view(-1, 1, 1, 1)
        expected = (seen["x"] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    else:  # x = (1 - sigma) clean + sigma noise, and noise - clean is predicted
        sigma = (seen["time"] / 1000).view(-1, 1, 1, 1)
        expected = (seen["x"] - clean) / sigma
    torch.testing.assert_close(loss, (seen["output"] - expected).square().mean(), atol=1e-4, rtol=1e-3)
    shown = policy.denoiser.encode([pairs.rows[i] for i in order])
    for name, tensor in shown.tensors.items():
        torch.testing.assert_close(seen["condition"].tensors[name], tensor)


def trained(family, output, data, lora=None, **pairs):
    config = SFTConfig(
        model="",
        output=str(output),
        resolution=16,
        steps=3,
        evaluation={"held_out": "", "count": 2, "batch_size": 2},
        updates=2,
        batch_size=2,
        micro_batch=1,
        learning_rate=1e-3,
        precision="float32",
        ema=0.0,
        lora=lora,
        pairs={"data": data, "pairs": 4, "prompt_dropout": 0.5, **pairs},
    )
    return train_generator(config, pipelines.FAMILIES[family]())


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize(("family", "inputs"), pipelines.INPUTS.items())
def test_models_that_take_pictures_learn_from_pairs(folder, family, inputs, lora):
    path = write(folder, records(*inputs, "target"))
    tuned = pipelines.network_of(trained(family, folder / "out", path, lora, cache=True))
    before = pipelines.network_of(pipelines.FAMILIES[family]()).state_dict()
    assert pipelines.moved(tuned, before) == pipelines.learners(tuned, lora)
    assert all(value.isfinite().all() for value in tuned.state_dict().values())
    losses = [e["loss"] for e in json.loads((folder / "out/history.json").read_text()) if "loss" in e]
    assert len(losses) == 2


def test_a_model_for_inpainting_learns_from_drawn_scenes(tmp_path):
    tuned = pipelines.network_of(trained("sd_inpaint", tmp_path / "out", "shapes"))
    before = pipelines.network_of(pipelines.sd_inpaint()).state_dict()
    assert pipelines.moved(tuned, before) == pipelines.learners(tuned, None)


def test_pairs_that_do_not_fit_the_model_are_refused_before_anything_is_written(folder):
    path = write(folder, records("image"))
    for family, data, message in (
        ("flux_kontext", "shapes", "Shapes draws nothing for a model that takes prompt, image;"),
        ("flux_kontext", path, "record 0 has no target"),
        ("flux_fill", path, "record 0 has no mask"),
    ):
        with pytest.raises(InputError, match=message):
            trained(family, folder / "out", data)
    assert not (folder / "out").exists()
