"""From files, arrays and tensors to pixels: equal to the original pipelines, and clear about bad input."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from conftest import pictures, small_scorer

from imagereward.errors import ImageNotFound, ImageReadError, ImageRewardError, ImageTypeError, InputError
from imagereward.images import reading as M
from imagereward.images.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from imagereward.images.processor import Processor
from imagereward.images.reading import check_image, load_pixels, read_image

GOLDEN = sorted((Path(__file__).parent / "golden" / "images").iterdir())
MODES = ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"]
SHAPES = [  # height, width
    (200, 640),
    (500, 300),
    (256, 256),
    (287, 333),
    (225, 224),
    (224, 224),
    (100, 90),
    (31, 64),
    (1, 1),
]
# Every shape in RGB and every mode in two shapes, for recipes that begin with a conversion to RGB.
SOME_CASES = [("RGB", shape) for shape in SHAPES]
SOME_CASES += [(mode, shape) for mode in MODES[1:] for shape in [(287, 333), (100, 90)]]


def noisy(height: int, width: int, mode: str = "RGB", seed: int = 0) -> PIL.Image.Image:
    """Independent random bytes in every band of `mode`: the hardest case for a resize."""
    rng = np.random.default_rng([seed, height, width])
    if mode in ("1", "P"):
        grey = PIL.Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        if mode == "1":
            return grey.convert("1")
        grey.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return grey
    bands = [
        PIL.Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        for _ in PIL.Image.new(mode, (1, 1)).getbands()
    ]
    return PIL.Image.merge(mode, bands)


def smooth(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """A 7x7 random picture enlarged: all of 0..255, no fine detail."""
    rng = np.random.default_rng([seed, height, width])
    small = PIL.Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return small.resize((width, height), PIL.Image.Resampling.BICUBIC)


def encoded(image: PIL.Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def as_float(image: PIL.Image.Image) -> torch.Tensor:
    """[1, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def to_8_bits(values: np.ndarray, white: int) -> np.ndarray:
    return np.rint(values / white * 255).astype(np.uint8)


def rgb(image: PIL.Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))


def random_shapes(count: int, low: int, high: int, seed: int = 0) -> list[tuple[int, int]]:
    return [tuple(map(int, shape)) for shape in np.random.default_rng(seed).integers(low, high, (count, 2))]


# The "clip" resizing: bit for bit what torchvision does.


def clip_reference(size: int = 224) -> T.Compose:
    return T.Compose(
        [
            T.Resize(size, T.InterpolationMode.BICUBIC),
            T.CenterCrop(size),
            lambda image: image.convert("RGB"),
            T.ToTensor(),
            T.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_clip_equals_torchvision_bit_for_bit_in_every_mode_and_shape(mode, shape):
    image = noisy(*shape, mode)
    result = Preprocess()(image)
    assert result.dtype == torch.float32
    assert result.shape == (3, 224, 224)
    assert torch.equal(result, clip_reference()(image))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_clip_equals_torchvision_bit_for_bit_on_the_golden_images(path):
    with PIL.Image.open(path) as image:
        assert torch.equal(Preprocess()(image), clip_reference()(image))


def test_the_golden_images_are_all_there():
    assert len(GOLDEN) == 6


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_a_file_that_was_read_gives_the_same_pixels_as_the_open_file(path):
    with PIL.Image.open(path) as image:
        assert torch.equal(Preprocess()(read_image(path)), Preprocess()(image))


def test_clip_rounds_crops_as_torchvision_at_many_sizes():
    preprocess, reference = Preprocess(), clip_reference()
    wrong = [
        shape
        for shape in random_shapes(20, 20, 500)
        if not torch.equal(preprocess(image := noisy(*shape, "L")), reference(image))
    ]
    assert not wrong


def test_clip_rounds_crops_as_torchvision_at_many_sizes_of_a_small_model():
    preprocess, reference = Preprocess(32), clip_reference(32)
    wrong = [
        shape
        for shape in random_shapes(250, 1, 150, seed=1)
        if not torch.equal(preprocess(image := noisy(*shape)), reference(image))
    ]
    assert not wrong


def test_clip_pixels_are_8_bit_and_normalise_to_the_call():
    image, preprocess = noisy(300, 200), Preprocess()
    pixels = preprocess.pixels(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(preprocess.normalize(pixels[None])[0], preprocess(image))


def test_another_mean_and_spread_are_used():
    image, preprocess = noisy(40, 50), Preprocess(32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    expected = (preprocess.pixels(image).float() / 255 - 0.5) / 0.25
    assert torch.equal(preprocess(image), expected)


# The "transformers" resizing.


@pytest.fixture(scope="module")
def clip_processor():
    """The image processor that works on PIL images; its name depends on the version of transformers."""
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor

    def process(image: PIL.Image.Image, size: int = 224) -> torch.Tensor:
        # PickScore converts to RGB before the processor sees the picture, which ignores alpha. Left to
        # itself the processor of today lays transparent pictures on white; that of its time did not.
        image = image.convert("RGB")
        processor = kind(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        return torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))

    return process


# Sides of 1 and 3 are left out: there, transformers may take them for the channels.
@pytest.mark.parametrize(("mode", "shape"), [c for c in SOME_CASES if c[1] != (1, 1)], ids=str)
def test_the_transformers_recipe_equals_transformers_in_every_mode_and_shape(clip_processor, mode, shape):
    image = noisy(*shape, mode)
    torch.testing.assert_close(
        Preprocess(resizing="transformers")(image), clip_processor(image), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_the_transformers_recipe_equals_transformers_on_the_golden_images(clip_processor, path):
    with PIL.Image.open(path) as image:
        torch.testing.assert_close(
            Preprocess(resizing="transformers")(image), clip_processor(image), atol=1e-5, rtol=0
        )


def test_the_transformers_recipe_rounds_crops_as_transformers_at_many_sizes(clip_processor):
    preprocess = Preprocess(32, "transformers")
    wrong = [
        shape
        for shape in random_shapes(100, 5, 150, seed=2)
        if (preprocess(image := noisy(*shape)) - clip_processor(image, 32)).abs().max() > 1e-5
    ]
    assert not wrong


# The "pad" resizing.


def pad_reference(image: PIL.Image.Image, size: int = 224) -> torch.Tensor:
    x = TF.to_tensor(image.convert("RGB"))
    height, width = x.shape[1:]
    if max(height, width) != size:
        height, width = (round(side * size / max(x.shape[1:])) for side in (height, width))
        x = TF.resize(x, [height, width], T.InterpolationMode.BICUBIC, antialias=True)
    left, top = (size - width) // 2, (size - height) // 2
    x = TF.pad(x, [left, top, size - width - left, size - height - top], fill=0)
    return TF.normalize(x, CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize(("mode", "shape"), SOME_CASES, ids=str)
def test_pad_equals_torchvision_on_tensors_in_every_mode_and_shape(mode, shape):
    image, size = noisy(*shape, mode), 224 if mode == "RGB" else 64
    result = Preprocess(size, "pad")(image)
    torch.testing.assert_close(result, pad_reference(image, size), atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_pad_equals_torchvision_on_the_golden_images(path):
    with PIL.Image.open(path) as image:
        torch.testing.assert_close(Preprocess(resizing="pad")(image), pad_reference(image), atol=1e-6, rtol=0)


def test_pad_rounds_borders_as_torchvision_at_many_sizes():
    preprocess = Preprocess(32, "pad")
    wrong = [
        shape
        for shape in random_shapes(100, 10, 150, seed=3)
        if (preprocess(image := noisy(*shape)) - pad_reference(image, 32)).abs().max() > 1e-6
    ]
    assert not wrong


def test_pad_fills_with_black():
    pixels = Preprocess(32, "pad").pixels(PIL.Image.new("RGB", (64, 32), "white"))
    assert pixels.shape == (3, 32, 32)
    assert (pixels[:, :8] == 0).all()
    assert (pixels[:, 24:] == 0).all()
    assert (pixels[:, 8:24] > 0.999).all()


def test_pad_keeps_at_least_one_row_of_a_very_thin_image():
    pixels = Preprocess(32, "pad").pixels(PIL.Image.new("RGB", (500, 1), "white"))
    assert pixels.shape == (3, 32, 32)
    assert (pixels > 0.5).any(0).any(1).sum() == 1


def test_pad_takes_the_same_numbers_from_a_picture_and_from_its_tensor():
    image, preprocess = noisy(150, 70), Preprocess(resizing="pad")
    assert torch.equal(preprocess.pixels(image), preprocess.resize(as_float(image))[0])


# The tensor path.

# Distance of the tensor path to the PIL path in levels of 0..255, over the shapes below. Measured:
#   smooth pictures: at most 1.10, on average at most 0.32
#   noise:           at most 22.9, on average at most 0.37
# Rounding to 8 bits explains the first. With noise PIL also clips to 0..255 between its horizontal
# and its vertical pass, which the tensor path cannot.
DISTANCE_SHAPES = [*SHAPES, (640, 640), (7, 300), (448, 448)]


def distances(make, resizing: str) -> tuple[float, float]:
    preprocess, most, mean = Preprocess(resizing=resizing), 0.0, 0.0
    for shape in DISTANCE_SHAPES:
        image = make(*shape)
        levels = preprocess.resize(as_float(image))[0] * 255
        distance = (levels - preprocess.pixels(image).float()).abs()
        most, mean = max(most, distance.max().item()), max(mean, distance.mean().item())
    return most, mean


@pytest.mark.parametrize("resizing", ["clip", "transformers"])
def test_the_tensor_path_is_within_rounding_of_the_pil_path_on_smooth_pictures(resizing):
    most, mean = distances(smooth, resizing)
    assert most < 2
    assert mean < 0.4


@pytest.mark.parametrize("resizing", ["clip", "transformers"])
def test_the_tensor_path_is_near_the_pil_path_on_noise(resizing):
    most, mean = distances(noisy, resizing)
    assert most < 40
    assert mean < 0.7


def test_the_tensor_path_follows_the_crop_of_the_pil_path_at_many_sizes():
    # A crop that is off by one pixel moves the ramp's mean by more than a level.
    for resizing in ("clip", "transformers"):
        preprocess = Preprocess(32, resizing)
        for height, width in random_shapes(60, 33, 150, seed=4):
            rows, columns = np.mgrid[:height, :width]
            ramp = (255 * (rows + columns) / (height + width)).astype(np.uint8)
            image = PIL.Image.fromarray(ramp).convert("RGB")
            difference = preprocess.resize(as_float(image))[0] * 255 - preprocess.pixels(image).float()
            assert difference.mean().abs() < 0.3, (resizing, height, width)


@pytest.mark.parametrize("resizing", ["clip", "transformers", "pad"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 40), (3, 1), (40, 1)], ids=str)
def test_the_tensor_path_takes_any_height_and_width(resizing, shape):
    assert Preprocess(32, resizing).resize(torch.rand(2, 3, *shape)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("resizing", ["clip", "transformers"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_tensor_path_stays_between_0_and_1(resizing, shape):
    checks = (torch.rand(1, 3, *shape) > 0.5).float()
    result = Preprocess(32, resizing).resize(checks)
    assert result.min() >= 0
    assert result.max() <= 1


def test_the_tensor_path_treats_each_picture_of_a_batch_alone():
    preprocess = Preprocess(32)
    batch = torch.cat([as_float(noisy(50, 70, seed=seed)) for seed in range(3)])
    alone = torch.cat([preprocess.resize(one[None]) for one in batch])
    torch.testing.assert_close(preprocess.resize(batch), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("resizing", ["clip", "transformers", "pad"])
@pytest.mark.parametrize("shape", [(64, 48), (20, 30), (32, 32)], ids=str)
def test_gradients_of_the_tensor_path_reach_the_pixels(resizing, shape):
    pixels = as_float(smooth(*shape)).mul(0.5).add(0.25).requires_grad_()
    preprocess = Preprocess(32, resizing)
    preprocess.normalize(preprocess.resize(pixels)).square().sum().backward()
    assert torch.isfinite(pixels.grad).all()
    centre = pixels.grad[..., shape[0] // 4 : -shape[0] // 4, shape[1] // 4 : -shape[1] // 4]
    assert (centre != 0).float().mean() > 0.95


@pytest.mark.parametrize("resizing", ["clip", "transformers", "pad"])
@pytest.mark.parametrize("shape", [(11, 13), (5, 4), (8, 8)], ids=str)
def test_gradients_of_the_tensor_path_equal_finite_differences(resizing, shape):
    pixels = as_float(smooth(*shape)).double().mul(0.5).add(0.25)
    preprocess = Preprocess(8, resizing)

    def loss(x):
        return preprocess.normalize(preprocess.resize(x)).square().sum()

    (gradient,) = torch.autograd.grad(loss(pixels.requires_grad_()), pixels)
    direction = torch.randn(pixels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        step = 1e-5
        difference = (loss(pixels + step * direction) - loss(pixels - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-6)


def test_the_tensor_path_keeps_double_precision():
    preprocess = Preprocess(8)
    assert preprocess.normalize(preprocess.resize(torch.rand(1, 3, 9, 9).double())).dtype == torch.float64


# Every way to hand over one picture.

COLOUR = pictures(1)[0]
GREY = COLOUR.convert("L")


def write(tmp_path, image, name: str = "picture.png") -> Path:
    image.save(tmp_path / name)
    return tmp_path / name


def chw(image: PIL.Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


FORMS = {
    "str": lambda image, tmp_path: str(write(tmp_path, image)),
    "Path": lambda image, tmp_path: write(tmp_path, image),
    "bytes": lambda image, tmp_path: encoded(image),
    "bytearray": lambda image, tmp_path: bytearray(encoded(image)),
    "memoryview": lambda image, tmp_path: memoryview(encoded(image)),
    "PIL": lambda image, tmp_path: image,
    "PIL from a file": lambda image, tmp_path: PIL.Image.open(write(tmp_path, image)),
    "array": lambda image, tmp_path: np.array(image),
    "array, not contiguous": lambda image, tmp_path: np.array(image)[::-1].copy()[::-1],
    "array, 3 channels": lambda image, tmp_path: rgb(image),
    "array, 4 channels": lambda image, tmp_path: np.array(image.convert("RGBA")),
    "uint8 tensor": lambda image, tmp_path: chw(image),
    "uint8 tensor, 3 channels": lambda image, tmp_path: chw(image.convert("RGB")),
    "uint8 tensor, 4 channels": lambda image, tmp_path: chw(image.convert("RGBA")),
    "float tensor": lambda image, tmp_path: chw(image).float() / 255,
    "half tensor": lambda image, tmp_path: (chw(image).float() / 255).half(),
    "double tensor": lambda image, tmp_path: chw(image).double() / 255,
    "tensor with a gradient": lambda image, tmp_path: (chw(image).float() / 255).requires_grad_(),
}


@pytest.mark.parametrize("picture", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_picture(form, picture, tmp_path):
    given = FORMS[form](picture, tmp_path)
    check_image(given)
    result = read_image(given)
    assert result.size == picture.size
    np.testing.assert_array_equal(rgb(result), rgb(picture))


def test_an_array_with_one_channel_is_grey():
    result = read_image(np.array(GREY)[:, :, None])
    np.testing.assert_array_equal(np.array(result), np.array(GREY))


def test_a_home_directory_in_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, COLOUR)
    np.testing.assert_array_equal(rgb(read_image("~/picture.png")), rgb(COLOUR))


def test_a_picture_from_a_file_is_detached_from_the_file(tmp_path):
    path = write(tmp_path, COLOUR)
    result = read_image(path)
    path.unlink()
    np.testing.assert_array_equal(rgb(result), rgb(COLOUR))


def test_a_picture_that_the_caller_gave_is_not_changed():
    image = noisy(30, 40, "P")
    before = (image.mode, image.size, image.tobytes())
    Preprocess(32).pixels(read_image(image))
    assert (image.mode, image.size, image.tobytes()) == before


def test_tensor_values_a_rounding_error_outside_0_and_1_are_taken():
    values = torch.tensor([-5e-4, 0.0, 1.0, 1 + 5e-4]).view(1, 2, 2)
    assert np.array(read_image(values)).tolist() == [[0, 0], [255, 255]]


SIXTEEN = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)


def test_a_16_bit_grey_png_is_scaled_to_8_bits(tmp_path):
    PIL.Image.fromarray(SIXTEEN).save(tmp_path / "16.png")
    result = read_image(tmp_path / "16.png")
    assert result.mode == "L"
    np.testing.assert_array_equal(np.array(result), to_8_bits(SIXTEEN, 65535))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_deep_grey_modes_are_scaled_to_8_bits(mode):
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = PIL.Image.frombytes(mode, (64, 64), SIXTEEN.astype(kind).tobytes())
    np.testing.assert_array_equal(np.array(read_image(image)), to_8_bits(SIXTEEN, 65535))


def test_whole_numbers_up_to_255_are_8_bits_as_in_the_original_and_16_bit_modes_are_not():
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).round().astype(np.uint8)
    wide = PIL.Image.fromarray(ramp).convert("I")
    np.testing.assert_array_equal(np.array(read_image(wide)), ramp)
    original = wide.resize((32, 32), PIL.Image.Resampling.BICUBIC).convert("RGB")
    ours = Preprocess(32).pixels(read_image(wide)).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - np.array(original)).max() <= 1
    dark = PIL.Image.frombytes("I;16", (64, 64), ramp.astype("<u2").tobytes())
    assert np.array(read_image(dark)).max() == 1


def test_calling_a_preprocess_on_16_bit_grey_does_not_turn_it_white():
    preprocess = Preprocess(32)
    deep = PIL.Image.fromarray(SIXTEEN)
    shallow = PIL.Image.fromarray(to_8_bits(SIXTEEN, 65535))
    assert torch.equal(preprocess(deep), preprocess(shallow))


def test_float_grey_between_0_and_1_is_scaled_to_8_bits():
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    result = read_image(PIL.Image.fromarray(values))
    assert result.mode == "L"
    np.testing.assert_array_equal(np.array(result), to_8_bits(values, 1))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(file_format):
    if file_format == "WEBP":
        pytest.importorskip("PIL._webp")
    frames = [PIL.Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50, **options)
    with PIL.Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3
    np.testing.assert_array_equal(rgb(read_image(data)), rgb(frames[0]))


def test_orientation_tags_are_ignored():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    plain, turned = encoded(COLOUR, "JPEG"), encoded(COLOUR, "JPEG", exif=exif)
    assert plain != turned
    assert read_image(turned).size == COLOUR.size
    np.testing.assert_array_equal(rgb(read_image(turned)), rgb(read_image(plain)))


def test_an_animation_that_the_caller_opened_stays_open(tmp_path):
    frames = [PIL.Image.new("RGB", (40, 30), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with PIL.Image.open(tmp_path / "two.gif") as animation:
        read_image(animation)
        animation.seek(1)
        np.testing.assert_array_equal(rgb(animation), rgb(frames[1]))


# Bad input: the class, the index and the file name.


def truncated(file_format: str) -> bytes:
    data = encoded(noisy(60, 60), file_format)
    return data[: len(data) // 2]


BAD_FILES = {
    "empty.png": (b"", "empty: 0 bytes"),
    "notes.txt": (b"these are not pixels\n" * 20, "not an image"),
    "half.jpg": (truncated("JPEG"), "damaged"),
    "half.png": (truncated("PNG"), "damaged"),
    "header.png": (encoded(noisy(60, 60))[:20], None),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(name, tmp_path):
    data, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageReadError) as caught:
        read_image(tmp_path / name, 7)
    assert "images[7]" in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert words is None or words in str(caught.value)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_bytes_are_named_by_index(name):
    data, words = BAD_FILES[name]
    with pytest.raises(ImageReadError) as caught:
        read_image(data, 7)
    assert "images[7]" in str(caught.value)
    assert words is None or words in str(caught.value)


@pytest.mark.parametrize("read", [read_image, check_image])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_path_is_not_found(read, kind, tmp_path):
    path = kind(tmp_path / "absent.png")
    with pytest.raises(ImageNotFound, match=r"images\[3\] \(.*absent\.png\) does not exist") as caught:
        read(path, 3)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, ImageReadError)


@pytest.mark.parametrize("read", [read_image, check_image])
def test_a_directory_is_refused(read, tmp_path):
    with pytest.raises(ImageReadError, match=r"images\[3\] .* is a directory") as caught:
        read(tmp_path, 3)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("read", [read_image, check_image])
@pytest.mark.parametrize("data", [b"", bytearray(), memoryview(b"")], ids=lambda data: type(data).__name__)
def test_empty_bytes_are_refused(read, data):
    with pytest.raises(ImageReadError, match=r"images\[3\] is empty: 0 bytes"):
        read(data, 3)


@pytest.mark.parametrize("read", [read_image, check_image])
@pytest.mark.parametrize("url", ["http://example.com/a.png", "https://example.com/a.png"])
def test_a_url_is_refused_with_advice(read, url):
    with pytest.raises(ImageReadError, match=r"images\[3\] .*a\.png.* is a URL.*download it"):
        read(url, 3)


@pytest.mark.parametrize("read", [read_image, check_image])
def test_a_decompression_bomb_is_refused_with_advice(read, tmp_path, monkeypatch):
    path = write(tmp_path, noisy(40, 40), "bomb.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match=r"images\[3\] .*bomb\.png.*set_max_pixels"):
        read(path, 3)


@pytest.mark.parametrize("read", [read_image, check_image])
@pytest.mark.parametrize("thing", [object(), None, {}, 5, [1], ("a.png",)], ids=lambda x: type(x).__name__)
def test_an_object_that_cannot_be_an_image_is_a_type_error(read, thing):
    with pytest.raises(ImageTypeError, match=rf"images\[3\] is a {type(thing).__name__}; expected") as caught:
        read(thing, 3)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("read", [read_image, check_image])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint16, bool])
def test_an_array_that_is_not_8_bit_is_a_type_error(read, kind):
    with pytest.raises(ImageTypeError, match=rf"images\[3\] .*{np.dtype(kind)}; expected uint8"):
        read(np.zeros((4, 4, 3), kind), 3)


@pytest.mark.parametrize("read", [read_image, check_image])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool])
def test_a_tensor_of_other_integers_is_a_type_error(read, kind):
    with pytest.raises(ImageTypeError, match=rf"images\[3\] is a tensor of {kind}; expected float or uint8"):
        read(torch.zeros(3, 4, 4, dtype=kind), 3)


BAD_ARRAYS = [(), (7,), (4, 5, 2), (4, 5, 5), (2, 4, 5, 3), (0, 5, 3), (5, 0, 3)]
BAD_TENSORS = [(), (7,), (4, 5), (2, 4, 5), (5, 4, 3), (2, 3, 4, 5)]


@pytest.mark.parametrize("shape", BAD_ARRAYS, ids=str)
def test_an_array_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(InputError) as caught:
        read_image(np.zeros(shape, np.uint8), 3)
    assert f"images[3] has shape {shape}; expected [H, W, 3]" in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
@pytest.mark.parametrize("shape", BAD_TENSORS, ids=str)
def test_a_tensor_of_the_wrong_shape_is_refused(shape, kind):
    with pytest.raises(InputError) as caught:
        read_image(torch.zeros(shape, dtype=kind), 3)
    assert f"images[3] has shape {shape}; expected [3, H, W]" in str(caught.value)


@pytest.mark.parametrize("values", [-0.1, 1.1, 255.0, float("inf"), float("nan")])
def test_a_float_tensor_outside_0_and_1_is_refused(values):
    tensor = torch.zeros(3, 4, 4)
    tensor[1, 2, 3] = values
    with pytest.raises(InputError, match=r"images\[3\] has values in .*; expected \[0, 1\]"):
        read_image(tensor, 3)


@pytest.mark.parametrize("values", [-1, 65536])
def test_deep_grey_outside_16_bits_is_refused(values):
    image = PIL.Image.fromarray(np.full((4, 4), values, np.int32))
    with pytest.raises(ImageReadError, match=rf"images\[3\] has grey values {values}"):
        read_image(image, 3)


@pytest.mark.parametrize("values", [-0.5, 2.0, float("nan")])
def test_float_grey_outside_0_and_1_is_refused(values):
    image = PIL.Image.fromarray(np.full((4, 4), values, np.float32))
    with pytest.raises(ImageReadError, match=r"images\[3\] has float values outside"):
        read_image(image, 3)


def test_every_image_error_is_also_an_error_of_the_package():
    for kind in (ImageReadError, ImageNotFound, ImageTypeError, InputError):
        assert issubclass(kind, ImageRewardError)


@pytest.mark.parametrize("shape", BAD_ARRAYS, ids=str)
def test_the_early_check_names_the_wrong_shape_of_an_array(shape):
    with pytest.raises(InputError) as caught:
        check_image(np.zeros(shape, np.uint8), 3)
    assert f"images[3] has shape {shape};" in str(caught.value)


@pytest.mark.parametrize("shape", BAD_TENSORS, ids=str)
def test_the_early_check_names_the_wrong_shape_of_a_tensor(shape):
    with pytest.raises(InputError) as caught:
        check_image(torch.zeros(shape), 3)
    assert f"images[3] has shape {shape};" in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 0, 5), (3, 5, 0)], ids=str)
def test_an_empty_float_tensor_is_refused(shape):
    with pytest.raises(InputError, match=r"images\[3\] has shape"):
        read_image(torch.zeros(shape), 3)


def test_a_pil_image_without_pixels_is_refused():
    with pytest.raises(ImageRewardError, match=r"images\[0\]"):
        list(load_pixels([PIL.Image.new("RGB", (0, 5))], [Preprocess(32)]))


# A prompt given where an image belongs gets there.
def test_a_path_that_is_too_long_is_an_error_of_the_package():
    with pytest.raises(ImageReadError, match=r"images\[3\]"):
        read_image("a very long prompt, " * 100, 3)


def test_the_home_of_an_unknown_user_is_an_error_of_the_package():
    with pytest.raises(ImageReadError, match=r"images\[3\]"):
        read_image("~nobody-of-this-name/picture.png", 3)


# Scorers decode repeated images once, which must not shift the count.
def test_a_bad_image_after_a_repeated_one_is_named_by_its_place_in_the_callers_list():
    good, other = pictures(2)
    with pytest.raises(ImageTypeError, match=r"images\[3\]"):
        small_scorer("CLIP").score("a cat", [good, good, other, np.zeros((4, 4, 3), np.float32)])


# load_pixels: order, early failure, threads.


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("imagereward-decode")]


def files(tmp_path, count: int) -> list[Path]:
    return [write(tmp_path, picture, f"{index}.png") for index, picture in enumerate(pictures(count))]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_pixels_come_in_order():
    many = pictures(20)
    preprocess = Preprocess(32)
    results = list(load_pixels(many, [preprocess]))
    assert len(results) == 20
    for image, (pixels,) in zip(many, results):
        assert torch.equal(pixels, preprocess.pixels(image))


def test_a_missing_last_image_raises_before_anything_is_yielded(tmp_path):
    paths = [*files(tmp_path, 3), tmp_path / "absent.png"]
    with pytest.raises(ImageNotFound, match=r"images\[3\] .*absent\.png"):
        next(load_pixels(paths, [Preprocess(32)]))


def test_a_damaged_last_image_raises_before_anything_is_yielded(tmp_path):
    paths = files(tmp_path, 4)
    damage(paths[3])
    with pytest.raises(ImageReadError, match=r"images\[3\] .*3\.png.* damaged"):
        next(load_pixels(paths, [Preprocess(32)]))


def test_a_float_tensor_with_one_bad_value_raises_before_anything_is_yielded():
    bad = torch.zeros(3, 9, 9)
    bad[0, 8, 8] = 2
    with pytest.raises(InputError, match=r"images\[2\] has values"):
        next(load_pixels([*pictures(2), bad], [Preprocess(32)]))


def test_more_images_than_are_decoded_ahead_come_in_order(monkeypatch):
    monkeypatch.setattr(M, "DECODE_AHEAD", 4)
    many, preprocess = pictures(15), Preprocess(32)
    results = list(load_pixels(many, [preprocess]))
    assert len(results) == 15
    for image, (pixels,) in zip(many, results):
        assert torch.equal(pixels, preprocess.pixels(image))


def test_no_more_images_are_decoded_ahead_than_allowed(monkeypatch):
    monkeypatch.setattr(M, "DECODE_AHEAD", 4)
    seen = []
    monkeypatch.setattr(M, "read_image", lambda image, index: seen.append(index) or image)
    generator = load_pixels(pictures(15), [Preprocess(32)])
    next(generator)
    generator.close()
    assert len(seen) <= 5


class Sized(Processor):
    """Images as 30,000 bytes each; notes the index of each."""

    def __init__(self):
        self.made = []

    def load(self, image):
        self.made.append(image.width)
        return {"rgb": torch.zeros(100, 100, 3, dtype=torch.uint8)}


def test_no_more_bytes_are_decoded_ahead_than_allowed(monkeypatch):
    monkeypatch.setattr(M, "DECODE_AHEAD_BYTES", 100_000)
    sized, threads = Sized(), min(8, os.cpu_count() or 1)
    generator = load_pixels([PIL.Image.new("RGB", (at + 1, 1)) for at in range(60)], [sized])
    for taken in range(1, 61):
        next(generator)
        assert len(sized.made) <= taken + 4 + threads
    assert len(sized.made) == 60
    assert list(generator) == []


@pytest.mark.parametrize("most", [0, 70_000])
def test_a_small_bound_on_bytes_ends_early_and_in_order(monkeypatch, most):
    monkeypatch.setattr(M, "DECODE_AHEAD_BYTES", most)
    many, preprocess = pictures(30), Preprocess(64)
    for image, (pixels,) in zip(many, load_pixels(many, [preprocess]), strict=True):
        assert torch.equal(pixels, preprocess.pixels(image))
    generator = load_pixels(many, [preprocess])
    next(generator)
    generator.close()
    assert not decoding_threads()
    with pytest.raises(ImageReadError, match=r"images\[1\]"):
        list(load_pixels([many[0], damaged_png(), *many], [preprocess]))


def damaged_png() -> bytes:
    return encoded(pictures(1)[0], "PNG")[:-200]


def test_a_damaged_image_far_down_the_list_is_named_when_its_turn_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(M, "DECODE_AHEAD", 4)
    paths = files(tmp_path, 12)
    damage(paths[9])
    generator = load_pixels(paths, [Preprocess(32)])
    assert [len(next(generator)) for _ in range(9)] == [1] * 9
    with pytest.raises(ImageReadError, match=r"images\[9\] .*9\.png"):
        next(generator)


def test_a_missing_image_far_down_the_list_raises_before_anything_is_yielded(tmp_path, monkeypatch):
    monkeypatch.setattr(M, "DECODE_AHEAD", 4)
    paths = files(tmp_path, 12)
    paths[9].unlink()
    with pytest.raises(ImageNotFound, match=r"images\[9\] .*9\.png"):
        next(load_pixels(paths, [Preprocess(32)]))


def test_one_decode_serves_several_preprocesses(tmp_path, monkeypatch):
    paths = files(tmp_path, 3)
    preprocesses = [Preprocess(32), Preprocess(24, "pad"), Preprocess(16, "transformers")]
    decoded = []
    monkeypatch.setattr(
        M, "read_image", lambda image, index: decoded.append(index) or read_image(image, index)
    )
    results = list(load_pixels(paths, preprocesses))
    assert sorted(decoded) == [0, 1, 2]
    for path, parts in zip(paths, results):
        for preprocess, pixels in zip(preprocesses, parts, strict=True):
            assert torch.equal(pixels, preprocess.pixels(read_image(path)))


def test_chosen_indices_come_in_their_order_and_keep_their_place_in_messages(tmp_path):
    paths, preprocess = files(tmp_path, 5), Preprocess(32)
    results = list(load_pixels(paths, [preprocess], [3, 0, 4]))
    for index, (pixels,) in zip([3, 0, 4], results, strict=True):
        assert torch.equal(pixels, preprocess.pixels(read_image(paths[index])))
    damage(paths[4])
    with pytest.raises(ImageReadError, match=r"images\[4\] .*4\.png"):
        next(load_pixels(paths, [preprocess], [3, 0, 4]))


def test_no_images_give_nothing():
    assert list(load_pixels([], [Preprocess(32)])) == []


def test_a_generator_closed_early_leaves_no_threads():
    generator = load_pixels(pictures(40), [Preprocess(32)])
    next(generator)
    generator.close()
    assert not decoding_threads()


def test_a_generator_used_up_leaves_no_threads():
    list(load_pixels(pictures(4), [Preprocess(32)]))
    assert not decoding_threads()


def test_a_generator_that_raised_leaves_no_threads(tmp_path):
    paths = files(tmp_path, 6)
    damage(paths[2])
    with pytest.raises(ImageReadError, match=r"images\[2\]"):
        list(load_pixels(paths, [Preprocess(32)]))
    assert not decoding_threads()
