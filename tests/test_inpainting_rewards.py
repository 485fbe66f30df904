"""Rewards of inpainting: against SciPy's rings and gradients, finite differences, and hand-made boxes."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import imagereward as RM
from imagereward.errors import InputError, RemoteError
from imagereward.rewards.inpainting import Boundary, InsideMask, Preservation, ShareWeighted
from imagereward.rewards.opening import open_reward
from imagereward.rewards.region import Box, boundary_of_picture, bounding_box, grown, rings
from imagereward.scoring.api import PairScorer
from imagereward.scoring.functions import FunctionScorer
from imagereward.tuning.data.requests import Request
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.rollouts.advantages import AdvantageStd, weighted_sum


def random_masks(count: int, seed: int = 0):
    """[H, W] bool of several sizes: boxes at borders, blobs, single pixels, and all but one pixel."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        height, width = (int(side) for side in rng.integers(12, 40, 2))
        mask = np.zeros((height, width), bool)
        kind = index % 5
        if kind == 0:
            top, left = int(rng.integers(0, height - 2)), int(rng.integers(0, width - 2))
            mask[top : top + int(rng.integers(1, height)), left : left + int(rng.integers(1, width))] = True
        elif kind == 1:
            mask = ndimage.gaussian_filter(rng.standard_normal((height, width)), 2) > 0.05
        elif kind == 2:
            mask[int(rng.integers(height)), int(rng.integers(width))] = True
        elif kind == 3:
            mask[:] = True
            mask[int(rng.integers(height)), int(rng.integers(width))] = False
        else:
            mask[: int(rng.integers(1, height)), :] = True
        if not mask.any() or mask.all():
            mask[:] = False
            mask[0, 0] = True
        yield mask, rng.random((height, width, 3))


def row_of(mask: np.ndarray, image: np.ndarray | None = None, prompt: str = "a cat") -> Request:
    grey = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    shown = None if image is None else Image.fromarray(np.rint(image * 255).astype(np.uint8))
    return Request(prompt, shown, grey)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def boundary_by_scipy(image: np.ndarray, mask: np.ndarray) -> float:
    square = np.ones((5, 5), bool)
    inner = mask & ~ndimage.binary_erosion(mask, square, border_value=1)
    outer = ndimage.binary_dilation(mask, square, border_value=0) & ~mask
    gradients = [
        np.stack([ndimage.sobel(image[..., c], axis, mode="nearest") for c in range(3)], -1)
        for axis in (0, 1)
    ]
    magnitude = np.sqrt(gradients[0] ** 2 + gradients[1] ** 2 + 1e-8).mean(-1)
    means = [magnitude[ring].sum() / (ring.sum() + 1e-6) for ring in (inner, outer)]
    return -abs(means[0] - means[1])


def test_boundary_equals_scipy_on_100_pairs():
    for mask, image in random_masks(100):
        found = Boundary().pixel_rewards(tensor(image), ["a cat"], [row_of(mask)])
        assert float(found) == pytest.approx(boundary_by_scipy(image, mask), abs=1e-6)


def test_preservation_equals_numpy_on_100_pairs():
    rng = np.random.default_rng(3)
    for mask, image in random_masks(100, seed=1):
        eight_bits = np.rint(image * 255) / 255
        painted = rng.random(image.shape)
        found = Preservation().pixel_rewards(tensor(painted), ["a"], [row_of(mask, image)])
        assert float(found) == pytest.approx(-np.abs(painted - eight_bits)[~mask].mean(), abs=1e-6)
        assert float(Preservation().pixel_rewards(tensor(eight_bits), ["a"], [row_of(mask, image)])) == (
            pytest.approx(0, abs=1e-6)
        )


def mean_red(pixels, prompts):
    return pixels[:, 0].mean((1, 2))


def box_by_search(mask: np.ndarray, least: int) -> tuple[slice, slice]:
    """The box in plain arithmetic: bounds of the white pixels, grown, then moved by what sticks out."""
    slices = []
    for axis, side in ((1, mask.shape[0]), (0, mask.shape[1])):
        places = np.flatnonzero(mask.any(axis))
        low, high = int(places[0]), int(places[-1]) + 1
        missing = max(0, min(least, side) - (high - low))
        low, high = low - missing // 2, high + (missing - missing // 2)
        shift = max(0, -low) - max(0, high - side)
        slices.append(slice(low + shift, high + shift))
    return slices[0], slices[1]


@pytest.mark.parametrize("least", [1, 9, 16, 100])
def test_inside_scores_the_grown_box_of_100_masks(least):
    reward = InsideMask(FunctionScorer(mean_red, "red"), least)
    for mask, image in random_masks(100, seed=2):
        rows, columns = box_by_search(mask, least)
        found = reward.pixel_rewards(tensor(image), ["a"], [row_of(mask)])
        assert float(found) == pytest.approx(image[rows, columns, 0].mean(), abs=1e-6)


def test_boxes_by_hand():
    mask = torch.zeros(10, 20)
    mask[0, 18] = 1
    assert bounding_box(mask) == Box(0, 18, 1, 19)
    assert grown(Box(0, 18, 1, 19), 4, (10, 20)) == Box(0, 16, 4, 20)
    assert grown(Box(4, 9, 5, 10), 4, (10, 20)) == Box(3, 8, 7, 12)
    assert grown(Box(2, 2, 9, 19), 4, (10, 20)) == Box(2, 2, 9, 19)
    assert grown(Box(4, 9, 5, 10), 224, (10, 20)) == Box(0, 0, 10, 20)
    with pytest.raises(InputError, match="empty"):
        bounding_box(torch.zeros(3, 3))


def test_rings_by_hand():
    mask = torch.zeros(1, 1, 9, 9)
    mask[0, 0, 2:7, 2:7] = 1  # 5 x 5: its erosion is its middle pixel
    inner, outer = rings(mask)
    assert inner.sum() == 24
    assert outer.sum() == 81 - 25


@pytest.mark.parametrize("name", ["boundary", "preservation", "inside(red)"])
def test_gradients_equal_finite_differences(name):
    reward = {
        "boundary": Boundary(),
        "preservation": Preservation(),
        "inside(red)": InsideMask(FunctionScorer(lambda p, _: p.square().mean((1, 2, 3)), "red"), 6),
    }[name]
    for mask, image in list(random_masks(10, seed=4)):
        row = row_of(mask, np.zeros_like(image))
        pixels = (0.05 + 0.9 * tensor(image)).requires_grad_()
        (gradient,) = torch.autograd.grad(reward.pixel_rewards(pixels, ["a"], [row]).sum(), pixels)
        rng = np.random.default_rng(0)
        for _ in range(8):
            at = (0, int(rng.integers(3)), int(rng.integers(mask.shape[0])), int(rng.integers(mask.shape[1])))
            ends = []
            for step in (1e-6, -1e-6):
                moved = pixels.detach().clone()
                moved[at] += step
                ends.append(float(reward.pixel_rewards(moved, ["a"], [row])))
            assert float(gradient[at]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_boxes_of_several_sizes_keep_their_places():
    height, width = next(random_masks(1))[0].shape
    images = np.random.default_rng(0).random((4, height, width, 3))
    masks = [np.zeros((height, width), bool) for _ in range(4)]
    for place, mask in enumerate(masks):
        mask[place : place + 2 + place % 2, 1:4] = True
    pixels = torch.cat([tensor(image) for image in images])
    reward = InsideMask(FunctionScorer(mean_red, "red"), 1)
    found = reward.pixel_rewards(pixels, ["a"] * 4, [row_of(mask) for mask in masks])
    for place in range(4):
        expected = images[place, place : place + 2 + place % 2, 1:4, 0].mean()
        assert float(found[place]) == pytest.approx(expected, abs=1e-6)


def test_masks_are_cropped_as_the_condition_is():
    mask = np.zeros((40, 80), bool)
    mask[10:20, 30:50] = True
    row = row_of(mask)
    pixels = torch.rand(1, 3, 20, 20)  # the middle 40 x 40, at half the size
    found = InsideMask(FunctionScorer(mean_red, "red"), 1).pixel_rewards(pixels, ["a"], [row])
    assert float(found) == pytest.approx(float(pixels[0, 0, 5:10, 5:15].mean()), abs=1e-6)


def test_the_sum_in_a_group_is_the_published_formula():
    """m (z(hps) + z(clip)) + (1 - m) z(boundary), with z in the group and std + 1e-8."""
    masks = [mask for mask, _ in random_masks(3, seed=5)]
    rows = [row_of(mask) for mask in masks for _ in range(4)]
    groups = torch.arange(12) // 4
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(12) for name in ("hps", "clip", "boundary")}
    inner = {name: FunctionScorer(mean_red, name) for name in ("hps", "clip")}
    parts = {name: (1.0, ShareWeighted(InsideMask(scorer))) for name, scorer in inner.items()}
    rewards = Rewards({**parts, "boundary": (1.0, ShareWeighted(Boundary(), rest=True))})
    weights = {}
    for at, mask in enumerate(masks):  # masks of three sizes: each at its own
        size = (mask.shape[0], mask.shape[1])
        for name, weight in rewards.weights_for(rows[4 * at : 4 * at + 4], size).items():
            weights.setdefault(name, []).append(weight)
    total = weighted_sum(
        {name: torch.from_numpy(value) for name, value in values.items()},
        {name: torch.cat(weight) for name, weight in weights.items()},
        groups,
        AdvantageStd("group", "population", 1e-8),
    )
    for at, mask in enumerate(masks):
        part, m = slice(4 * at, 4 * at + 4), mask.mean()
        z = {name: (v[part] - v[part].mean()) / (v[part].std() + 1e-8) for name, v in values.items()}
        expected = m * (z["hps"] + z["clip"]) + (1 - m) * z["boundary"]
        assert total[part].numpy() == pytest.approx(expected, abs=1e-6)


def test_shares_within_rewards_are_multiplied():
    mask = np.zeros((10, 20), bool)
    mask[:4, :15] = True  # 0.3 of the area
    rows, scorer = [row_of(mask)], FunctionScorer(mean_red, "red")
    of_mask = ShareWeighted(scorer)
    for reward, weight in (
        (InsideMask(of_mask), 0.3),
        (InsideMask(scorer), None),
        (ShareWeighted(of_mask, rest=True), 0.3 * 0.7),
        (ShareWeighted(InsideMask(of_mask)), 0.3 * 0.3),
    ):
        found = reward.row_weights(rows, (10, 20))
        assert (found if found is None else float(found)) == pytest.approx(weight)


def shares(pixels, prompts, rows):
    return torch.zeros(len(rows))


@pytest.mark.parametrize(
    "name",
    [
        "boundary",
        "preservation",
        "inside(ImageReward-tiny)",
        "mask_share(boundary)",
        "http://127.0.0.1:1/calculate_reward#hps_score",
        "test_inpainting_rewards:shares",
    ],
)
def test_inside_refuses_rewards_that_would_see_a_crop_with_the_whole_mask(name):
    with pytest.raises(InputError, match=r"^inside\(.* expected a scorer of images"):
        open_reward(f"inside({name})", "cpu")


def test_the_boundary_of_a_picture_is_that_of_its_tiles():
    for mask, image in random_masks(50, seed=6):
        row = row_of(mask, image)
        whole = Boundary().pixel_rewards(
            torch.from_numpy(np.array(row.image)).permute(2, 0, 1)[None] / 255, ["a"], [row]
        )
        for tile in (5, 16, 512):
            assert boundary_of_picture(row.image, row.mask, tile) == pytest.approx(float(whole), abs=1e-5)


def test_names_open_rewards():
    rewards = open_rewards(
        {"mask_share(inside(ImageReward-tiny, 32))": 1.0, "rest_share(boundary)": 2.0}, "cpu"
    )
    assert [scorer.name for scorer in rewards.scorers] == ["ImageReward-tiny"]
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    row = row_of(mask, np.full((64, 64, 3), 0.5), "a red circle")
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    total, each = rewards(pixels, [row, row])
    inside, boundary = each.values()
    expected = RM.load("ImageReward-tiny", "cpu").reward(pixels[:, :, 8:40, 8:40], ["a red circle"] * 2)
    assert torch.allclose(inside, expected, atol=1e-5)
    share = mask.mean()
    assert torch.allclose(total, share * inside + 2 * (1 - share) * boundary, atol=1e-5)
    rewards.check_differentiable((64, 64), row)


@pytest.mark.parametrize("name", ["inside(CLIP", "mask_share(boundary", "inside(nothing-like-it)"])
def test_names_that_open_nothing(name):
    with pytest.raises((InputError, RuntimeError), match=r"closing|nothing-like-it"):
        open_reward(name)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a cat", "no mask"),
        (row_of(np.zeros((8, 8), bool)), "row 0 .* is empty"),
        (row_of(np.ones((8, 8), bool)), "row 0 .* white everywhere"),
        (row_of(np.eye(8, dtype=bool), np.zeros((9, 8, 3))), "row 0 .*one size"),
        (Request("a", None, "missing.png"), "row 0 .*missing.png"),
    ],
)
@pytest.mark.parametrize("name", ["boundary", "preservation", "inside(jpeg)"])
def test_bad_masks_name_their_row(row, message, name):
    scorer = FunctionScorer(mean_red, "jpeg")
    reward = {"boundary": Boundary(), "preservation": Preservation(), "inside(jpeg)": InsideMask(scorer)}[
        name
    ]
    with pytest.raises(InputError, match=message):
        Rewards({name: (1.0, reward)})(torch.rand(1, 3, 8, 8), [row])


def test_a_server_that_fails_for_boxes_of_one_size_costs_the_others_no_reward():
    class Server(PairScorer):
        name, broken = "server", False

        def pixel_rewards(self, pixels_B_3_H_W, prompts, rows=None):
            if self.broken or pixels_B_3_H_W.shape[-1] > 5:
                raise RemoteError("no image of this request has a score")
            return torch.ones(len(prompts))

    rows = []
    for side in (4, 9, 4):
        mask = np.zeros((12, 12), bool)
        mask[1 : 1 + side, 1 : 1 + side] = True
        rows.append(row_of(mask))
    reward = InsideMask(Server(), 1)
    assert reward.pixel_rewards(torch.rand(3, 3, 12, 12), ["a"] * 3, rows).isfinite().tolist() == [
        True,
        False,
        True,
    ]
    reward.scorer.broken = True
    with pytest.raises(RemoteError, match="no image of this request"):
        reward.pixel_rewards(torch.rand(3, 3, 12, 12), ["a"] * 3, rows)


def test_preservation_needs_the_original():
    row = row_of(np.eye(8, dtype=bool))
    with pytest.raises(InputError, match="has no image"):
        Preservation().pixel_rewards(torch.rand(1, 3, 8, 8), ["a"], [row])


def test_a_mask_that_the_crop_loses_is_an_error():
    mask = np.zeros((20, 60), bool)
    mask[5:10, 0:5] = True  # the centre crop keeps columns 20 to 39
    with pytest.raises(InputError, match=r"at 20 x 20 .* is empty"):
        Boundary().pixel_rewards(torch.rand(1, 3, 20, 20), ["a"], [row_of(mask)])


def test_verbs_say_that_they_know_no_masks():
    with pytest.raises(InputError, match="boundary reads the mask"):
        Boundary().score("a cat", Image.new("RGB", (8, 8)))
