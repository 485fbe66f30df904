"""Images that are not square, in every family; sizes that a model cannot take; autoencoders; ragged text."""

import pipelines
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan, FluxPipeline
from PIL import Image
from test_refl import brightness, settings
from torchvision.transforms import v2

from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.tuning import tune
from imagereward.tuning.config import build
from imagereward.tuning.data.image_pairs import open_pairs
from imagereward.tuning.data.image_size import CoverCrop, ImageSize, covering, parse_resolution
from imagereward.tuning.data.requests import Request
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.evaluation.compare import compare
from imagereward.tuning.evaluation.image_grid import make_grid
from imagereward.tuning.families.autoencoder import (
    KLAutoencoder,
    PerChannelAutoencoder,
    digest_of_autoencoder,
    open_autoencoder,
)
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.families.text_cache import CachedText
from imagereward.tuning.objectives.sft import SFTConfig
from imagereward.tuning.policy.policy import Policy

SIZE = ImageSize(16, 24)
STEPS = 4
FAMILIES = ("sd", "sdxl", "sd3", "flux")
PACKED = ("flux", "flux_kontext", "flux_fill")


# Height and width.


@pytest.mark.parametrize(
    ("given", "size"),
    [(16, (16, 16)), ("16", (16, 16)), ([16, 24], (16, 24)), ((16, 24), (16, 24)), ("16x24", (16, 24))],
)
def test_a_size_is_one_number_or_height_and_width(given, size):
    assert ImageSize.of(given) == size


@pytest.mark.parametrize(
    "given", [0, -8, True, 1.5, "x", "16x", "16x24x32", [16], [16, 0], [16, "24"], [1, 2, 3], {}]
)
def test_what_is_no_size_is_refused(given):
    with pytest.raises(InputError, match="expected pixels, at least 1"):
        parse_resolution(given)


def sft_config(**values):
    required = {"model": "m", "output": "o", "pairs": {"data": "shapes"}}
    return build(SFTConfig, {**required, **values})


@pytest.mark.parametrize("given", [[16, 24], (16, 24), "16x24"])
def test_a_config_takes_height_and_width(given):
    assert sft_config(resolution=given).resolution == (16, 24)


def test_a_config_takes_one_number_and_nothing_else():
    assert sft_config(resolution=512).resolution == 512
    assert sft_config().resolution is None
    with pytest.raises(InputError, match="resolution='tall': expected pixels"):
        sft_config(resolution="tall")


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("sd", (16, 25), r"resolution=\[16, 25\]: this pipeline takes multiples of 2 pixels.*\[16, 24\]"),
        ("sdxl", (15, 24), r"resolution=\[15, 24\]: this pipeline takes multiples of 2 pixels"),
        ("sd3", (16, 26), r"resolution=\[16, 26\]: this pipeline takes multiples of 4 pixels"),
        ("flux", "18x24", r"resolution=\[18, 24\]: this pipeline takes multiples of 4 pixels"),
        ("sd3", (16, 36), r"resolution=\[16, 36\].*position embedding ends at 32 pixels a side"),
    ],
)
def test_a_size_that_a_model_cannot_take_is_refused_with_the_multiple(family, given, message):
    with pytest.raises(InputError, match=message):
        open_denoiser(pipelines.FAMILIES[family](), given)


def drawn(pipeline, rows, guidance):
    denoiser = open_denoiser(pipeline, SIZE)
    assert denoiser.autoencoder.shape == (pipelines.CHANNELS, 8, 12)
    noise = noise_for_samples(range(len(rows)), denoiser.autoencoder.shape, 0)
    return Policy(denoiser, denoiser.dynamics(STEPS), guidance).sample(denoiser.encode(rows), noise)


def drawn_by_diffusers(pipeline, family, rows, guidance):
    noise = noise_for_samples(range(len(rows)), (pipelines.CHANNELS, 8, 12), 0)
    options = {}
    if family in PACKED:
        noise = FluxPipeline._pack_latents(noise, *noise.shape)
    inputs = pipelines.INPUTS.get(family, ())
    if "image" in inputs:
        options["image"] = [row.image for row in rows]
    if "mask" in inputs:
        options["mask_image"] = [row.mask for row in rows]
    if family == "sd3":
        options["max_sequence_length"] = pipeline.tokenizer_3.model_max_length
    if family == "flux_kontext":
        options |= {"_auto_resize": False, "max_area": SIZE.height * SIZE.width}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=[getattr(row, "prompt", row) for row in rows],
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise,
        output_type="pt",
        **options,
    ).images


def rows_of(family):
    """Prompts, with pictures of the size to draw, which diffusers does not crop."""
    wide = v2.Resize(list(SIZE), v2.InterpolationMode.NEAREST)
    made = []
    for row in pipelines.rows(family, 2):
        pictures = {name: wide(getattr(row, name)) for name in pipelines.INPUTS.get(family, ())}
        made.append(Request(row.prompt, **pictures) if pictures else row)
    return made


def certain(vae):
    """The same autoencoder with posteriors as good as their means: diffusers samples some of them."""
    last = vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out
    with torch.no_grad():
        last.weight[pipelines.CHANNELS :] = 0
        last.bias[pipelines.CHANNELS :] = -100


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_a_wide_image_is_the_one_that_diffusers_draws(family):
    pipeline, rows = pipelines.FAMILIES[family](), rows_of(family)
    certain(pipeline.vae)
    ours, theirs = drawn(pipeline, rows, 3.0), drawn_by_diffusers(pipeline, family, rows, 3.0)
    assert ours.shape == (2, 3, *SIZE)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_sdxl_is_told_height_before_width():
    condition = open_denoiser(pipelines.sdxl(), SIZE).encode(["a cat"])
    assert condition.tensors["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]]


def test_the_noise_of_flux_is_shifted_by_the_number_of_tokens():
    square, wide, tall = (
        open_denoiser(pipelines.flux(), size).dynamics(STEPS).sigmas_N1 for size in (24, (16, 36), (36, 16))
    )
    torch.testing.assert_close(square, wide)
    torch.testing.assert_close(square, tall)
    assert not torch.allclose(square, open_denoiser(pipelines.flux(), SIZE).dynamics(STEPS).sigmas_N1)


def sizes_seen(pixels, prompts):
    assert pixels.shape[1:] == (3, *SIZE)
    return brightness(pixels, prompts)


@pytest.mark.parametrize("objective", ["refl", "grpo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_on_wide_images_moves_the_network(family, objective, tmp_path):
    pipeline = pipelines.FAMILIES[family]()
    network = pipelines.network_of(pipeline)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    values = settings(resolution=list(SIZE), updates=1)
    if objective == "grpo":
        values = {k: v for k, v in values.items() if k not in ("gradient", "eta")}
        kind = "sd15" if family in ("sd", "sdxl") else "sd3"
        values |= {"recipe": f"{kind}/grpo", "group": 2, "optimizer_steps": 1, "lora": None}
    tune(pipeline, pipelines.PROMPTS, reward=sizes_seen, output=tmp_path / "out", **values)
    assert pipelines.moved(network, before)
    assert (tmp_path / "out/model_index.json").is_file()
    with Image.open(next((tmp_path / "out/samples").glob("*.png"))) as grid:
        assert grid.width > grid.height


def test_two_models_are_compared_on_wide_images():
    found = compare(
        pipelines.sd(), pipelines.sd(seed=1), ["a cat"], sizes_seen, seeds=1, steps=2, resolution="16x24"
    )
    assert found.images[0].shape == (1, 1, 3, *SIZE)


def test_a_grid_keeps_the_proportions_of_its_images():
    image = torch.zeros(3, 200, 300)
    page = make_grid([[image, image]], ["a cat"], ["before", "after"])
    assert page.width > 2 * 256
    assert page.getpixel((4 + 255, 16 + 16 + 85)) == (0, 0, 0)
    assert page.getpixel((4 + 128, 16 + 16 + 170)) == (0, 0, 0)
    assert page.getpixel((4 + 128, 16 + 16 + 172)) == (255, 255, 255)


# Pictures cropped to a size.


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (57, 57), (33, 70), (17, 16)])
def test_a_square_crop_is_that_of_the_scorers(shape):
    (width, height), generator = shape, torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    picture = v2.functional.to_pil_image(noise)
    assert torch.equal(CoverCrop(ImageSize(24, 24)).pixels(picture), Preprocess(24).pixels(picture))


@pytest.mark.parametrize("size", [(768, 1152), (1152, 768), (31, 47), (49, 21)])
def test_a_picture_covers_its_size_by_the_least(size):
    size = ImageSize(*size)
    for height in range(1, 60, 3):
        for width in range(1, 60, 3):
            rows, columns = covering(height, width, size)
            assert rows >= size.height
            assert columns >= size.width
            assert rows == size.height or columns == size.width
            assert abs(rows * width - columns * height) <= max(height, width)


def test_the_centre_of_a_picture_is_kept_and_its_mask_goes_with_it():
    picture = Image.new("RGB", (60, 16), "black")
    picture.paste("white", (26, 4, 34, 12))
    cropped = CoverCrop(SIZE).pixels(picture)
    assert cropped.shape == (3, *SIZE)
    assert cropped[:, 4:12, 8:16].min() == 255
    assert cropped.float().mean() == pytest.approx(255 * 64 / (16 * 24))
    assert torch.equal(CoverCrop(SIZE).mask(picture.convert("L")), (cropped[:1] == 255).float())


def test_pairs_are_cropped_to_height_and_width(tmp_path):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "red", "image": "a.png"}\n')
    pairs = open_pairs(str(tmp_path / "pairs.jsonl"), SIZE, 0.0, count=1, seed=0, things=1)
    assert pairs[0]["pixels"].shape == (3, *SIZE)
    with pytest.raises(InputError, match="Shapes are square"):
        open_pairs("shapes", SIZE, 0.0, count=1, seed=0, things=1)


# Autoencoders with a mean and a deviation for each channel.

STATISTICS = {"latents_mean": [0.3, -0.2, 0.1, 0.5], "latents_std": [1.5, 0.5, 2.0, 0.8]}


def video_autoencoder(kind):
    torch.manual_seed(0)
    return kind(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True], **STATISTICS
    )


def playground():
    torch.manual_seed(0)
    return pipelines.autoencoder(**STATISTICS)


def qwen():
    return video_autoencoder(AutoencoderKLQwenImage)


def wan():
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        scale_factor_spatial=2,
        **STATISTICS,
    )


PER_CHANNEL = {"qwen": qwen, "wan": wan, "playground": playground}


def images(count=2):
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_latents_are_normalised_channel_by_channel(name):
    vae = PER_CHANNEL[name]()
    autoencoder = open_autoencoder(vae, SIZE)
    assert isinstance(autoencoder, PerChannelAutoencoder)
    assert (autoencoder.downscale, autoencoder.shape) == (2, (4, 8, 12))
    pixels = images() * 2 - 1
    mean, std = (torch.tensor(STATISTICS[each]).view(4, 1, 1) for each in ("latents_mean", "latents_std"))
    with torch.no_grad():
        if name == "playground":
            posterior = vae.encode(pixels).latent_dist
            expected = (posterior.mean - mean) * 0.5 / std
            back = vae.decode(expected * std / 0.5 + mean).sample
            deviation = posterior.std
        else:
            posterior = vae.encode(pixels[:, :, None]).latent_dist
            expected = (posterior.mean[:, :, 0] - mean) / std
            back = vae.decode((expected * std + mean)[:, :, None]).sample[:, :, 0]
            deviation = posterior.std[:, :, 0]
    latents = autoencoder.encode(images())
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        autoencoder.decode(latents), (back / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5
    )
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    scale = 0.5 if name == "playground" else 1.0
    sampled = autoencoder.encode(images(), noise)
    torch.testing.assert_close(sampled, expected + deviation * noise * scale / std, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*PER_CHANNEL, "kl"])
def test_recomputing_changes_neither_images_nor_gradients(name):
    def gradients(recompute):
        vae = PER_CHANNEL.get(name, pipelines.autoencoder)()
        torch.manual_seed(0)
        autoencoder = open_autoencoder(vae, SIZE)
        if recompute:
            autoencoder.recompute()
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, *autoencoder.shape, generator=generator, requires_grad=True)
        decoded = autoencoder.decode(latents)
        (decoded * torch.linspace(0, 1, decoded.numel()).view_as(decoded)).sum().backward()
        return decoded.detach(), latents.grad

    torch.manual_seed(0)
    plain = gradients(False)
    torch.manual_seed(0)
    for ours, theirs in zip(gradients(True), plain, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_an_autoencoder_of_one_scale_is_refused_statistics_of_channels():
    with pytest.raises(InputError, match="a mean and a deviation for each channel"):
        KLAutoencoder(playground(), SIZE)
    assert isinstance(open_autoencoder(pipelines.autoencoder(), SIZE), KLAutoencoder)


def test_statistics_change_what_latents_are_known_by():
    plain, other = pipelines.autoencoder(), pipelines.autoencoder(**STATISTICS)
    other.load_state_dict(plain.state_dict())
    assert digest_of_autoencoder(plain) != digest_of_autoencoder(other)


def test_a_family_draws_through_an_autoencoder_of_channels():
    plain, pipeline = pipelines.sd(), pipelines.sd()
    plain.vae, pipeline.vae = pipelines.autoencoder(), playground()
    ours = drawn(pipeline, ["a cat"], 1.0)
    assert ours.shape == (1, 3, *SIZE)
    assert ours.isfinite().all()


# Conditions with text of several lengths.

WORDS = {"words": "mask"}


def ragged(length, rows=1, value=1.0):
    tensors = {
        "words": torch.full((rows, length, 2), value),
        "mask": torch.ones(rows, length, dtype=torch.bool),
        "pooled": torch.full((rows, 3), value),
    }
    return Condition(tensors, WORDS)


def test_sequences_of_two_lengths_are_padded_with_their_masks():
    both = Condition.cat([ragged(3, 2, 1.0), ragged(5, 1, 2.0)])
    assert len(both) == 3
    assert both.tensors["words"][..., 0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [2, 2, 2, 2, 2]]
    assert both.tensors["mask"].tolist() == [[True] * 3 + [False] * 2] * 2 + [[True] * 5]
    assert both.tensors["pooled"][:, 0].tolist() == [1, 1, 2]
    assert both.sequences == WORDS


def test_rows_of_a_padded_condition_keep_their_masks():
    both = Condition.cat([ragged(3, 1, 1.0), ragged(5, 1, 2.0)])
    for rows in ([1, 0], torch.tensor([1, 0])):
        turned = both[rows]
        assert turned.tensors["mask"].sum(1).tolist() == [5, 3]
        assert torch.equal(turned.tensors["words"], both.tensors["words"].flip(0))
    longer = Condition.cat([both[:1], ragged(6, 1, 3.0)]).repeat(2)
    assert longer.tensors["mask"].sum(1).tolist() == [3, 3, 6, 6]


def test_guidance_may_have_another_length_than_the_prompts():
    prompted = ragged(5, 2, 1.0)
    unprompted = Condition({name: ragged(3, 1, 9.0).tensors[name] for name in ("words", "mask")}, WORDS)
    both = Condition.cat([prompted.with_others(unprompted), prompted])
    assert both.tensors["mask"].sum(1).tolist() == [3, 3, 5, 5]
    assert both.tensors["pooled"][:, 0].tolist() == [1, 1, 1, 1]


def test_masks_stay_as_they_are_in_another_precision():
    moved = ragged(3).to(torch.bfloat16)
    assert moved.tensors["words"].dtype == torch.bfloat16
    assert moved.tensors["mask"].dtype == torch.bool


def test_a_sequence_needs_a_mask_of_its_length():
    with pytest.raises(InputError, match="sequence 'words' with mask 'mask'"):
        Condition({"words": torch.zeros(1, 3, 2)}, WORDS)
    with pytest.raises(InputError, match=r"'words' is \(1, 3\), its mask 'mask' is \(1, 4\)"):
        Condition({"words": torch.zeros(1, 3, 2), "mask": torch.zeros(1, 4)}, WORDS)


def test_kept_embeddings_may_differ_in_length(tmp_path):
    def encode(prompts):
        return Condition.cat([ragged(len(prompt)) for prompt in prompts]).tensors

    cached = CachedText(encode, {"model": "a"}, tmp_path, WORDS)
    alone = [cached([prompt])["mask"].shape[1] for prompt in ("abc", "abcde")]
    assert alone == [3, 5]
    assert cached(["abc", "abcde"])["mask"].sum(1).tolist() == [3, 5]
