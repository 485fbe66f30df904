"""Data of inpainting: masks, the folder layout, preprocessed rows, the cache of latents, and bad inputs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagereward.errors import CheckpointError, InputError, OutputError
from imagereward.inpainting import writing
from imagereward.inpainting.layout import read_layout
from imagereward.inpainting.makers import make_mask
from imagereward.inpainting.writing import write_data
from imagereward.shapes.inpainting import REGIONS, inpainting_row, measure_inpainting, object_mask
from imagereward.tuning import tune
from imagereward.tuning.data.prompts import read_rows
from imagereward.tuning.data.requests import Request
from imagereward.tuning.families.autoencoder import digest_of_autoencoder
from imagereward.tuning.families.latent_cache import CachedPictures, cache_pictures
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.families.text_cache import cache_text, facts_of
from imagereward.tuning.preprocessing import preprocess
from imagereward.writing import TEMPORARY, remove_abandoned, temporary_for

INPUTS = ("image", "mask")


@pytest.mark.parametrize("kind", ["box", "strokes"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.4, 0.95])
def test_masks_have_their_share(kind, share):
    for seed in range(5):
        mask = make_mask(kind, 60, 90, share, np.random.default_rng(seed))
        assert np.array_equal(mask, make_mask(kind, 60, 90, share, np.random.default_rng(seed)))
        assert 0 < mask.sum() < mask.size
        # A box is rounded to whole rows and columns; a stroke ends with a whole touch of the brush.
        assert mask.mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("kind", "size", "share"), [("cloud", 8, 0.5), ("box", 8, 0), ("box", 8, 1), ("strokes", 1, 0.5)]
)
def test_masks_that_cannot_be_made(kind, size, share):
    with pytest.raises(InputError):
        make_mask(kind, size, size, share, np.random.default_rng(0))


@pytest.mark.parametrize("region", REGIONS)
def test_rows_of_shapes_know_what_their_masks_hide(region):
    for index in range(12):
        row = inpainting_row(index, 3, "test", regions=(region,))
        inside = np.asarray(row.mask) > 0
        covered = object_mask(row.scene, row.thing, 64, margin=0)
        assert (inside & covered).sum() > 0.95 * covered.sum()
        for other in range(len(row.scene.things)):
            if other != row.thing:
                assert not (inside & object_mask(row.scene, other, 64, margin=0)).any()
        found = measure_inpainting(row.image, row.prompt, row.image, row.mask)
        assert found.faithful
        assert found.outside == 0


def test_the_measure_sees_what_the_mask_shows_and_what_moved():
    row = inpainting_row(0, 3, "test", change=True)
    before = measure_inpainting(row.image, row.prompt, row.image, row.mask)
    assert before.faithfulness < 0.5  # the prompt asks for another thing
    pixels = np.array(row.image)
    outside = np.asarray(row.mask) == 0
    pixels[outside] = np.clip(pixels[outside].astype(int) + 10, 0, 245) // 1
    moved = np.abs(pixels.astype(float) - np.asarray(row.image, float))[outside].mean() / 255
    found = measure_inpainting(Image.fromarray(pixels), row.prompt, row.image, row.mask)
    assert found.outside == pytest.approx(moved, abs=1e-6)
    gone = np.array(row.image)
    gone[~outside] = gone[outside].reshape(-1, 3)[0]
    assert measure_inpainting(Image.fromarray(gone), row.prompt, row.image, row.mask).faithfulness == 0
    with pytest.raises(InputError, match="no white"):
        measure_inpainting(row.image, row.prompt, row.image, Image.new("L", (64, 64)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    write_data(out, "shapes", count=4, seed=1, progress=False)
    return out


def test_data_sets_are_written_and_read(data, tmp_path):
    rows = read_rows(data, INPUTS)
    assert [row.prompt for row in rows] == [row.prompt for row in read_rows(data / "rows.jsonl", INPUTS)]
    assert (data / "contact-sheet.png").is_file()
    write_data(tmp_path / "again", data / "rows.jsonl", kind="strokes", share=0.3, progress=False)
    write_data(tmp_path / "too", data, kind="strokes", share=0.3, progress=False)
    for name in ("000000", "000003"):
        paths = [tmp_path / "again" / folder / f"{name}.png" for folder in ("originals", "masks")]
        image, mask = (np.asarray(Image.open(path)) for path in paths)
        assert np.array_equal(image, np.asarray(Image.open(data / "originals" / f"{name}.png")))
        assert np.array_equal(mask, np.asarray(Image.open(tmp_path / "too" / "masks" / f"{name}.png")))
        assert (mask == 255).mean() == pytest.approx(0.3, abs=0.02)
    with pytest.raises(OutputError, match="overwrite"):
        write_data(tmp_path / "too", data, progress=False)
    (tmp_path / "too" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        write_data(tmp_path / "too", data, overwrite=True, progress=False)


def test_a_data_set_is_read_by_a_relative_path_with_several_folders(data, monkeypatch):
    monkeypatch.chdir(data.parent.parent)
    rows = read_rows(data.relative_to(data.parent.parent), INPUTS)
    assert [row.image for row in rows] == [row.image for row in read_rows(data, INPUTS)]


def test_facts_of_a_model_do_not_depend_on_the_order_of_its_defaults():
    pipeline = pipelines.sd()
    found = []
    for names in (["act_fn", "down_block_types"], ["down_block_types", "act_fn"]):
        for part in (pipeline.vae, pipeline.unet):
            part.register_to_config(_use_default_values=names)
        found.append((digest_of_autoencoder(pipeline.vae), facts_of(open_denoiser(pipeline))))
    assert found[0] == found[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_never_replace_what_they_are_made_of(data, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(data, own)
    (tmp_path / "link").symlink_to(own)
    record = {"prompt": "a cat", "image": "link/originals/000000.png"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    before = contents(own)
    for source in (own, own / "rows.jsonl", tmp_path / "link", tmp_path / "rows.jsonl"):
        with pytest.raises(InputError, match="is within"):
            write_data(own, source, overwrite=True, progress=False)
    assert contents(own) == before


def test_only_a_finished_data_set_of_masks_is_replaced_by_a_finished_one(data, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    for name in ("originals", "prompts"):
        shutil.copytree(data / name, photos / name)
    before = contents(photos)
    with pytest.raises(OutputError, match=r"holds no rows\.jsonl"):
        write_data(photos, "shapes", count=1, overwrite=True, progress=False)
    assert contents(photos) == before

    out = tmp_path / "out"
    write_data(out, photos, progress=False)
    (out / "masks/000009.png").write_bytes(b"of an older run")
    before = contents(out)
    (photos / "originals/000002.png").write_bytes(b"no image")
    for place in (out, tmp_path / "new"):
        with pytest.raises(InputError, match=r"000002: its image cannot be read"):
            write_data(place, photos, seed=1, overwrite=True, progress=False)
    assert contents(out) == before
    assert not (tmp_path / "new").exists()
    moved, once = writing.os.replace, []

    def full(source, target):
        if Path(target).parent == out:  # the new data set's
            once.append(target)
            if len(once) == 3:
                raise OSError("no space left")
        moved(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(writing.os, "replace", full)
        with pytest.raises(OutputError, match="no space left"):
            write_data(out, "shapes", count=1, overwrite=True, progress=False)
    assert contents(out) == before
    assert {path.name for path in out.iterdir()} == {path.name for path in data.iterdir()} - {"paths.jsonl"}
    (out / ".writing-77").mkdir()  # left by a run that was killed
    write_data(out, "shapes", count=1, overwrite=True, progress=False)
    assert len(contents(out)) == 5
    assert {path.name for path in out.iterdir()} == {path.name for path in data.iterdir()} - {"paths.jsonl"}


def test_jsonl_takes_both_names_of_its_keys(data, tmp_path):
    record = {"prompt": "a cat", "image_path": "originals/000000.png", "mask_path": "masks/000000.png"}
    (data / "paths.jsonl").write_text(json.dumps(record) + "\n")
    (row,) = read_rows(data / "paths.jsonl", INPUTS)
    assert row == Request("a cat", data / "originals/000000.png", data / "masks/000000.png")


def damaged(folder: Path, fault: str) -> str:
    """Put a fault into a copy of the data; returns what the error must say."""
    mask, image = folder / "masks/000001.png", folder / "originals/000001.png"
    if fault == "no mask":
        mask.unlink()
        return r"no mask for .*000001"
    if fault == "no prompt":
        (folder / "prompts/000001.txt").unlink()
        return r"000001\.txt"
    if fault == "blank prompt":
        (folder / "prompts/000001.txt").write_text("  \n")
        return r"000001\.txt is blank"
    if fault == "empty":
        Image.new("L", (64, 64), 127).save(mask)
        return r"000001: its mask .*000001\.png is empty"
    if fault == "full":
        Image.new("L", (64, 64), 128).save(mask)
        return r"000001: its mask .*000001\.png is white everywhere"
    if fault == "size":
        Image.open(mask).resize((32, 64)).save(mask)
        return r"000001: expected pictures of one size, got image 64x64, mask 32x64"
    if fault == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.open(image).resize((48, 64))
        image.unlink()
        picture.save(image.with_suffix(".jpg"), exif=exif)  # upright it is 64 wide and 48 high
        Image.open(mask).resize((48, 64)).save(mask)
        return r"000001: expected pictures of one size, got image 64x48, mask 48x64"
    if fault == "twice":
        Image.open(image).save(image.with_suffix(".jpg"))
        return r"two images named '000001'"
    image.write_bytes(b"no image")
    return r"000001: its image .*000001\.png cannot be read"


FAULTS = ("no mask", "no prompt", "blank prompt", "empty", "full", "size", "turned", "twice", "damaged")


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_rows_are_named(fault, tmp_path):
    write_data(tmp_path / "data", "shapes", count=3, progress=False)
    message = damaged(tmp_path / "data", fault)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "data", INPUTS)


def test_a_turned_photo_with_a_mask_of_its_upright_size_is_right(tmp_path):
    write_data(tmp_path / "data", "shapes", count=2, progress=False)
    damaged(tmp_path / "data", "turned")
    mask = tmp_path / "data/masks/000001.png"
    Image.open(mask).resize((64, 48)).save(mask)
    assert len(read_rows(tmp_path / "data", INPUTS)) == 2


def test_layouts_without_originals(tmp_path):
    for name in ("originals", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="holds no image"):
        read_layout(tmp_path)


# Latents that are kept.


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    pipelines.sd_inpaint().save_pretrained(path)
    return path


def settings(model: Path, data: Path, output: Path, **more) -> list[str]:
    values = {
        "model": model,
        "prompts": data / "rows.jsonl",
        "output": output,
        "reward": "boundary",
        "resolution": 16,
        "precision": "float32",
        "checkpointing": "false",
        "steps": 4,
        "evaluation.held_out": '""',
        **more,
    }
    return [f"{name}={value}" for name, value in values.items()]


@pytest.mark.parametrize("kind", ["sd_inpaint", "flux_fill", "flux_kontext"])
def test_cached_conditions_equal_direct_ones(kind, data, tmp_path):
    rows = read_rows(data, INPUTS)
    denoiser = open_denoiser(getattr(pipelines, kind)(), 16)
    direct = denoiser.encode(rows).tensors
    for _ in range(2):  # encoded, then read
        other = open_denoiser(getattr(pipelines, kind)(), 16)
        cache_pictures(other, rows, tmp_path)
        found = other.encode(rows).tensors
        assert found.keys() == direct.keys()
        for name, value in direct.items():
            assert torch.allclose(found[name], value, atol=1e-5), name
    assert len(list(tmp_path.glob("*.safetensors"))) == len(rows)
    kept = load_file(next(iter(tmp_path.glob("*.safetensors"))))
    assert {"source"} <= kept.keys()


def test_preprocessed_and_direct_training_have_one_first_loss(model, data, tmp_path):
    losses = []
    for cache in ("", str(tmp_path / "cache")):
        output = tmp_path / f"run{len(losses)}"
        tune(
            str(model),
            str(data / "rows.jsonl"),
            reward="boundary",
            output=output,
            recipe="sd_inpaint/refl_lora",
            **SMALL,
            latent_cache=cache,
            text_cache=cache,
        )
        history = json.loads((output / "history.json").read_text())
        losses.append(next(entry["loss"] for entry in history if "loss" in entry))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


SMALL = {
    "resolution": 16,
    "precision": "float32",
    "checkpointing": False,
    "steps": 4,
    "updates": 1,
    "batch_size": 4,
    "micro_batch": 2,
    "gradient": {"mode": "one", "first_step": 1, "last_step": 3},
    "evaluation": {"count": 2, "seeds": 1, "held_out": ""},
}


def test_full_weights_are_saved_with_the_encoder_that_was_aside(model, data, tmp_path):
    found = tune(
        str(model),
        str(data / "rows.jsonl"),
        reward="boundary",
        output=tmp_path / "run",
        recipe="sd_inpaint/refl",
        **SMALL,
        latent_cache=str(tmp_path / "cache"),
    )
    before = open_denoiser(str(model)).autoencoder
    after = open_denoiser(str(tmp_path / "run")).autoencoder
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(before.encode(image), after.encode(image), atol=1e-5)
    assert "conv_in" in dict(found.vae.encoder.named_children())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "imagereward", "preprocess", "sd_inpaint/refl_lora", *arguments]


def test_killed_preprocessing_goes_on_and_ends_with_the_same_bytes(model, tmp_path):
    write_data(tmp_path / "data", "shapes", count=40, progress=False)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def given(cache: Path) -> list[str]:
        return settings(model, tmp_path / "data", tmp_path / "run", latent_cache=cache, text_cache=cache)

    with pytest.raises(InputError, match="processes=0: expected at least 1"):
        preprocess("sd_inpaint/refl_lora", given(whole), processes=0)
    in_two = preprocess("sd_inpaint/refl_lora", given(whole), processes=2)
    files = len(list(whole.glob("*.safetensors")))
    assert in_two.encoded == files
    process = subprocess.Popen(command(*given(killed)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(list(killed.glob("latents-*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(list(killed.glob("*.safetensors")))
    assert 3 <= there < files
    torn = temporary_for(killed / "latents-torn.safetensors")  # as a kill within a write leaves it
    torn = torn.with_name(torn.name.replace(f"@{os.getpid()}@", f"@{process.pid}@"))
    torn.write_bytes(b"torn")
    for left in killed.glob(f"{TEMPORARY}*"):
        os.utime(left, (0, 0))  # as if the process had been killed long ago
    rest = preprocess("sd_inpaint/refl_lora", given(killed))
    assert contents(killed) == contents(whole)
    assert (rest.rows, rest.encoded) == (40, files - there)


def test_only_what_a_process_of_this_machine_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = temporary_for(tmp_path / "latents.safetensors").name
    assert name != temporary_for(tmp_path / "latents.safetensors").name
    ours = name.replace(f"@{os.getpid()}@", f"@{gone.pid}@")
    host = socket.gethostname()
    kept = [
        name,
        ours.replace(f"@{host}@", f"@{host}2@"),
        ours.replace(f"@{host}@", f"@2{host}@"),
        ours[:-1],
        f"latents.{gone.pid}",
        f"notes.{gone.pid}",
        f"x{ours}",
    ]
    fresh = temporary_for(tmp_path / "new").name.replace(f"@{os.getpid()}@", f"@{gone.pid}@")
    for each in (*kept, ours, fresh):
        (tmp_path / each).write_text("")
        os.utime(tmp_path / each, None if each == fresh else (0, 0))
    folder = tmp_path / ours.replace("latents", "folder")
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "platform", "win32")
        patched.setattr(os, "kill", lambda *_: pytest.fail("os.kill ends the process on Windows"))
        remove_abandoned(tmp_path)
    assert (tmp_path / ours).exists()
    remove_abandoned(tmp_path)
    # A process that is not seen from here may still write the file that is new.
    assert {path.name for path in tmp_path.iterdir()} == {*kept, fresh, folder.name}
    remove_abandoned(tmp_path / "nowhere")


def test_caches_of_another_model_or_size_are_refused(data, tmp_path):
    rows = read_rows(data, INPUTS)
    cache_pictures(open_denoiser(pipelines.sd_inpaint(), 16), rows, tmp_path)
    other = open_denoiser(pipelines.sd_inpaint(seed=1), 16)
    with pytest.raises(InputError, match="latents of another model: autoencoder differ"):
        cache_pictures(other, rows, tmp_path)
    larger = open_denoiser(pipelines.sd_inpaint(), 32)
    with pytest.raises(InputError, match="resolution"):
        cache_pictures(larger, rows, tmp_path)


def test_latents_that_cannot_be_read_are_named(data, tmp_path):
    denoiser, rows = open_denoiser(pipelines.sd_inpaint(), 16), read_rows(data, INPUTS)
    cache_pictures(denoiser, rows, tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"000000.*latents-.*safetensors cannot be read"):
        denoiser.encode(rows)


# Rows that another program has encoded.


def encoded_elsewhere(denoiser, rows, folder: Path) -> None:
    """Write rows in the layout of metadata.json: bfloat16 tensors in folders."""
    words = denoiser.text([row.prompt for row in rows])
    cached = CachedPictures(denoiser.pictures, denoiser.autoencoder, denoiser.resolution, None)
    records = []
    for index, row in enumerate(rows):
        latents = cached._encoded(row)
        tensors = {
            "prompt_embed": (words["encoder_hidden_states"][index], f"{index}.pt"),
            "pooled_prompt_embeds": (words["pooled_projections"][index], f"{index}.pt"),
            "text_ids": (torch.zeros(4, 3), f"{index}.pt"),
            "source_latents": (latents["source"], f"{index}.pt"),
            "masked_latents": (latents["masked"], f"{index}_masked.pt"),
            "mask_latents": (latents["mask"].float(), f"{index}_mask.pt"),
        }
        record = {"caption": row.prompt, "mask_path": "elsewhere.png"}
        for name, (tensor, file) in tensors.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            torch.save(tensor.bfloat16(), folder / name / file)
            record[name if name == "text_ids" else f"{name}_path"] = file
        records.append(record)
    (folder / "metadata.json").write_text(json.dumps(records))


@pytest.fixture
def elsewhere(data, tmp_path) -> Path:
    encoded_elsewhere(open_denoiser(pipelines.flux_fill(), 16), read_rows(data, INPUTS), tmp_path / "pre")
    return tmp_path / "pre"


def test_preprocessed_rows_are_used_as_they_are(data, elsewhere):
    rows, direct = read_rows(elsewhere, INPUTS), read_rows(data, INPUTS)
    denoiser = open_denoiser(pipelines.flux_fill(), 16)
    expected = denoiser.encode(direct).tensors
    denoiser.pipeline.text_encoder = denoiser.pipeline.text_encoder_2 = None  # nothing is encoded again
    cache_pictures(denoiser, rows, None)
    cache_text(denoiser, [], None, rows)
    found = denoiser.encode(rows).tensors
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=0.05, rtol=0.01), name
    mask = rows[0].mask
    assert mask.shape == (1, 16, 16)
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_rows_that_are_encoded_and_rows_that_are_not_share_a_batch(data, elsewhere):
    rows = [read_rows(data, INPUTS)[0], read_rows(elsewhere, INPUTS)[1]]
    denoiser = open_denoiser(pipelines.flux_fill(), 16)
    cache_pictures(denoiser, rows, None)
    expected = denoiser.encode(read_rows(data, INPUTS)[:2]).tensors
    for mixed in (rows, rows[::-1]):
        found = denoiser.pictures(mixed, denoiser.autoencoder, denoiser.resolution)
        order = [0, 1] if mixed is rows else [1, 0]
        for name, value in found.items():
            assert torch.allclose(value, expected[name][order], atol=0.05, rtol=0.01), name


def test_training_reads_preprocessed_rows(elsewhere, tmp_path):
    pipeline = pipelines.flux_fill()
    settings = {**SMALL, "gradient": {"mode": "last", "count": 1}}
    tune(
        pipeline,
        str(elsewhere),
        reward="boundary",
        output=tmp_path / "run",
        recipe="flux_fill/refl_lora",
        **settings,
        text_cache=str(tmp_path / "cache"),
    )
    assert (tmp_path / "run/pytorch_lora_weights.safetensors").is_file()
    # The rows' embeddings are another program's: what the model itself encodes is the empty prompt alone.
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("first", ["the rows", "the model"])
def test_embeddings_of_rows_and_of_the_model_are_kept_apart(first, data, elsewhere, tmp_path):
    for path in (elsewhere / "prompt_embed").iterdir():
        torch.save(torch.full_like(torch.load(path), 7), path)
    rows, prompts = read_rows(elsewhere, INPUTS), [row.prompt for row in read_rows(data, INPUTS)]
    own, given = (open_denoiser(pipelines.flux_fill(), 16) for _ in range(2))
    expected = own.text(prompts)
    if first == "the rows":
        cache_text(given, prompts, tmp_path / "cache", rows)
        cache_text(own, prompts, tmp_path / "cache")
    else:
        cache_text(own, prompts, tmp_path / "cache")
        cache_text(given, prompts, tmp_path / "cache", rows)
    for name, value in own.text(prompts).items():
        assert torch.equal(value, expected[name]), name
    assert (given.text(prompts)["encoder_hidden_states"] == 7).all()


def test_preprocessing_encodes_no_prompt_that_rows_bring(elsewhere, tmp_path):
    pipelines.flux_fill().save_pretrained(tmp_path / "model")
    given = settings(tmp_path / "model", elsewhere, tmp_path / "run", text_cache=tmp_path / "cache")
    given = [f"prompts={elsewhere}" if each.startswith("prompts=") else each for each in given]
    found = preprocess("flux_fill/refl_lora", given, device="cpu")
    assert found.encoded == len(list((tmp_path / "cache").glob("*.safetensors"))) == 1  # the empty prompt


def test_a_mask_that_the_crop_loses_is_named_before_the_training(tmp_path):
    rows = []
    for name, edge in (("middle", 16), ("left", 8)):
        Image.new("RGB", (32, 16)).save(tmp_path / f"{name}-image.png")
        mask = Image.new("L", (32, 16))
        mask.paste(255, (0, 0, edge, 16))
        mask.save(tmp_path / f"{name}.png")
        rows.append({"prompt": "a cat", "image": f"{name}-image.png", "mask": f"{name}.png"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "good.jsonl").write_text(json.dumps(rows[0]))
    message = r"rows\.jsonl.*record 1: its mask .*left\.png, at 16 x 16 \(height x width\), is empty"
    for names in ({"prompts": "rows"}, {"prompts": "good", "evaluation": "rows"}):
        evaluation = {"count": 2, "seeds": 1, "held_out": ""}
        if "evaluation" in names:
            evaluation["prompts"] = str(tmp_path / "rows.jsonl")
        with pytest.raises(InputError, match=message):
            tune(
                pipelines.sd_inpaint(),
                str(tmp_path / f"{names['prompts']}.jsonl"),
                reward="boundary",
                output=tmp_path / "run",
                recipe="sd_inpaint/refl_lora",
                **{**SMALL, "evaluation": evaluation},
            )
        assert not (tmp_path / "run").exists()


def test_a_row_keeps_its_name_in_later_messages(tmp_path):
    write_data(tmp_path / "data", "shapes", count=2, progress=False)
    row = read_rows(tmp_path / "data/rows.jsonl", INPUTS)[1]
    Image.new("L", (64, 64)).save(row.mask)  # after it was checked
    denoiser = open_denoiser(pipelines.sd_inpaint(), 16)
    for _ in range(2):
        with pytest.raises(InputError, match=r"rows\.jsonl, record 1: its mask .*000001\.png is empty"):
            denoiser.encode([row])
        denoiser.pictures = CachedPictures(
            denoiser.pictures, denoiser.autoencoder, denoiser.resolution, tmp_path / "cache"
        )


def spoil(folder: Path, fault: str) -> str:
    records = json.loads((folder / "metadata.json").read_text())
    masked = folder / "masked_latents" / "1_masked.pt"
    if fault == "outside":
        records[1]["masked_latents_path"] = "../../outside.pt"
        torch.save(torch.zeros(4, 8, 8), folder.parent / "outside.pt")
        message = "record 1: .*outside"
    elif fault == "a link outside":
        torch.save(torch.zeros(4, 8, 8), folder.parent / "outside.pt")
        masked.unlink()
        masked.symlink_to(folder.parent / "outside.pt")
        message = r"record 1: 1_masked\.pt lies outside .*masked_latents"
    elif fault == "missing":
        masked.unlink()
        message = r"record 1: .*1_masked\.pt does not exist"
    elif fault == "damaged":
        masked.write_bytes(b"no tensor")
        message = r"record 1: .*1_masked\.pt cannot be read"
    elif fault == "code":
        torch.save({"call": os.system}, masked)
        message = r"record 1: .*1_masked\.pt cannot be read"
    elif fault == "a dict":
        torch.save({"latents": torch.zeros(4, 8, 8)}, masked)
        message = r"record 1: .*1_masked\.pt holds a dict"
    elif fault == "nan":
        torch.save(torch.full((4, 8, 8), torch.nan), masked)
        message = r"record 1: .*1_masked\.pt has values that are NaN"
    elif fault == "an empty mask":
        torch.save(torch.zeros(1, 16, 16), folder / "mask_latents/1_mask.pt")
        message = r"record 1: its mask .*1_mask\.pt is empty"
    elif fault == "no caption":
        del records[1]["caption"]
        message = "record 1 has no caption"
    elif fault == "no latents":
        records[1] = {"caption": "a cat"}
        message = "record 1 has no latents"
    else:
        del records[1]["mask_latents_path"]
        message = "record 1 has no mask_latents_path"
    (folder / "metadata.json").write_text(json.dumps(records))
    return message


SPOILT = ("outside", "a link outside", "missing", "damaged", "code", "a dict", "nan", "an empty mask")


@pytest.mark.parametrize("fault", [*SPOILT, "no caption", "no latents", "no mask"])
def test_faulty_preprocessed_rows_are_named(fault, elsewhere):
    message = spoil(elsewhere, fault)
    with pytest.raises((InputError, CheckpointError), match=message):
        read_rows(elsewhere, INPUTS)


def test_preprocessed_rows_of_another_size_are_refused(elsewhere):
    rows, denoiser = read_rows(elsewhere, INPUTS), open_denoiser(pipelines.flux_fill(), 32)
    message = r"record 0: .*masked.* another autoencoder or resolution"
    cache_pictures(denoiser, rows, None)
    with pytest.raises(InputError, match=message):
        denoiser.encode(rows)
    with pytest.raises(InputError, match=message):
        tune(
            pipelines.flux_fill(),
            str(elsewhere),
            reward="boundary",
            output=elsewhere / "run",
            recipe="flux_fill/refl_lora",
            **{**SMALL, "resolution": 32, "gradient": {"mode": "last", "count": 1}},
        )
    assert not (elsewhere / "run").exists()


def test_rewards_that_need_the_original_say_so_of_preprocessed_rows(elsewhere, tmp_path):
    with pytest.raises(InputError, match="has no image"):
        tune(
            pipelines.flux_fill(),
            str(elsewhere),
            reward="preservation",
            output=tmp_path / "run",
            recipe="flux_fill/refl_lora",
            **{**SMALL, "gradient": {"mode": "last", "count": 1}},
        )
