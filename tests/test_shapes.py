"""Shapes: language, scenes, pictures, mistakes, damage, truth, data sets, and the measure of pixels."""

import json
import math
from collections import Counter
from dataclasses import FrozenInstanceError, asdict, replace
from itertools import combinations, islice

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from scipy import ndimage

from benchmarks.shapes import measure_accuracy
from imagereward import shapes
from imagereward.errors import ImageNotFound, ImageReadError, ImageTypeError, InputError, OutputError
from imagereward.shapes import (
    Annotator,
    Group,
    SceneRequest,
    Truth,
    arrange,
    ask,
    draw,
    measure,
    read,
    say,
    to_image,
)
from imagereward.shapes.corrupt import STRENGTH, damaged, misread, possible_mistakes, unfaithful
from imagereward.shapes.measure import judge
from imagereward.shapes.render import PAINT
from imagereward.shapes.scene import SIZES
from imagereward.shapes.segmentation import MeasuredThing

RED, BLUE = Group(1, "red", "circle"), Group(1, "blue", "star")
# Written by hand: what people may say, and what is meant.
MEANT = {
    "a red circle": SceneRequest((RED,)),
    "One red circle.": SceneRequest((RED,)),
    "an orange cross": SceneRequest((Group(1, "orange", "cross"),)),
    "a small orange cross": SceneRequest((Group(1, "orange", "cross", "small"),)),
    "three large pink crosses": SceneRequest((Group(3, "pink", "cross", "large"),)),
    "a picture of four yellow rings": SceneRequest((Group(4, "yellow", "ring"),)),
    "an image of two cyan triangles drawn simply": SceneRequest((Group(2, "cyan", "triangle"),)),
    "a red circle and a blue star": SceneRequest((RED, BLUE)),
    "two green squares and one purple ring": SceneRequest(
        (Group(2, "green", "square"), Group(1, "purple", "ring"))
    ),
    "a red circle, a blue star and a pink ring": SceneRequest((RED, BLUE, Group(1, "pink", "ring"))),
    "a red circle left of a blue star": SceneRequest((RED, BLUE), "left of"),
    "a red circle to the left of a blue star": SceneRequest((RED, BLUE), "left of"),
    "a blue star with a red circle on its left": SceneRequest((RED, BLUE), "left of"),
    "a red circle right of a blue star": SceneRequest((RED, BLUE), "right of"),
    "a red circle to the right of a blue star": SceneRequest((RED, BLUE), "right of"),
    "a blue star with a red circle on its right": SceneRequest((RED, BLUE), "right of"),
    "a red circle above a blue star": SceneRequest((RED, BLUE), "above"),
    "a red circle over a blue star": SceneRequest((RED, BLUE), "above"),
    "a blue star with a red circle above it": SceneRequest((RED, BLUE), "above"),
    "a red circle below a blue star": SceneRequest((RED, BLUE), "below"),
    "a red circle under a blue star": SceneRequest((RED, BLUE), "below"),
    "a blue star with a red circle below it": SceneRequest((RED, BLUE), "below"),
    "a red circle in the top left corner": SceneRequest((RED,), position="top left"),
    "a red circle in the bottom right corner": SceneRequest((RED,), position="bottom right"),
    "a red circle at the top": SceneRequest((RED,), position="top"),
    "a red circle at the bottom": SceneRequest((RED,), position="bottom"),
    "a red circle on the left side": SceneRequest((RED,), position="left"),
    "a red circle on the right side": SceneRequest((RED,), position="right"),
    "a red circle in the center": SceneRequest((RED,), position="center"),
    "a red circle in the middle": SceneRequest((RED,), position="center"),
    "a red circle on a white background": SceneRequest((RED,), background="white"),
    "a red circle, grey background": SceneRequest((RED,), background="grey"),
    "a red circle in front of a black background": SceneRequest((RED,), background="black"),
    "a drawing of a red circle over a blue star, black background": SceneRequest(
        (RED, BLUE), "above", background="black"
    ),
}
NOT_SAID = [
    "",
    "a cat",
    "red circle",
    "a circle",
    "a mauve circle",
    "a red hexagon",
    "five red circles",
    "two red circle",
    "a red circles",
    "a red circle and",
    "a red circle a blue star",
    "a red circle left of",
    "a red circle near a blue star",
    "a red circle left of a blue star and a green ring",
    "a red circle in the top corner",
    "a red circle on a blue background",
    "a red circle on a white background at night",
    "a photo of a red circle",
    "a red circle; drop table",
]


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def requests(count: int, seed: int = 0) -> list[SceneRequest]:
    source = rng(seed)
    return [ask(source) for _ in range(count)]


def bag(request: SceneRequest) -> Counter:
    return Counter({(g.colour, g.shape): g.count for g in request.groups})


def found(shape: str = "circle", colour: str = "red", x=0.5, y=0.5, radius=0.13, fit=1.0) -> MeasuredThing:
    return MeasuredThing(shape, colour, x, y, radius, fit)


def by_pillow(things, paper: int = 235, size: int = 512) -> PIL.Image.Image:
    """(shape, colour, x, y, radius) drawn with Pillow's own circles and polygons: another renderer."""
    image = PIL.Image.new("RGB", (size, size), (paper,) * 3)
    pen = PIL.ImageDraw.Draw(image)
    for shape, colour, x, y, radius in things:
        hue, saturation, value = PAINT[colour]
        fill = f"hsv({hue},{100 * saturation:.0f}%,{100 * value:.0f}%)"
        x, y, r = x * size, y * size, radius * size
        corners = {"triangle": 3, "square": 4, "star": 10, "cross": 12}.get(shape)
        if shape in ("circle", "ring"):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            if shape == "ring":
                hole = 0.55 * r
                pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=(paper,) * 3)
        elif shape == "cross":
            arm, long = 0.36 * r, 0.93 * r
            pen.rectangle((x - arm, y - long, x + arm, y + long), fill=fill)
            pen.rectangle((x - long, y - arm, x + long, y + arm), fill=fill)
        else:
            turn = np.pi / 4 if shape == "square" else -np.pi / 2
            radii = [r, 0.45 * r] * 5 if shape == "star" else [r] * corners
            angles = turn + 2 * np.pi * np.arange(corners) / corners
            pen.polygon([(x + q * np.cos(a), y + q * np.sin(a)) for q, a in zip(radii, angles)], fill=fill)
    return image


# Language


@pytest.mark.parametrize("prompt", MEANT)
def test_a_prompt_is_read_as_people_mean_it(prompt):
    assert read(prompt) == MEANT[prompt]


def test_reading_gives_back_what_was_said():
    source = rng(1)
    for request in requests(4000, 1):
        assert read(say(request, source)) == request


def test_every_phrasing_is_said_and_nothing_else():
    source = rng(2)
    frames = ("{}", "a picture of {}", "an image of {}", "a drawing of {}", "{} drawn simply")
    alone = {f"{number} red circle" for number in ("a", "one")}
    relations = {prompt for prompt, meant in MEANT.items() if meant == SceneRequest((RED, BLUE), "above")}
    said = {say(SceneRequest((RED,)), source) for _ in range(400)}
    assert said == {frame.format(text) for frame in frames for text in alone}
    said = {say(SceneRequest((RED, BLUE), "above"), source) for _ in range(12_000)}
    assert said == {
        frame.format(text.replace("a red", f"{one} red").replace("a blue", f"{two} blue"))
        for frame in frames
        for text in relations
        for one in ("a", "one")
        for two in ("a", "one")
    }


@pytest.mark.parametrize("prompt", NOT_SAID)
def test_a_prompt_outside_the_grammar_is_refused_and_repeated(prompt):
    with pytest.raises(InputError) as error:
        read(prompt)
    assert repr(prompt) in str(error.value)


def test_the_vocabulary_is_every_word_that_is_said():
    source = rng(3)
    said = set()
    for request in requests(6000, 3):
        said |= set(say(request, source).replace(",", " , ").split())
    assert set(shapes.vocabulary()) == said
    assert shapes.vocabulary() == sorted(said)


# Scenes


def test_splits_share_no_wish_however_it_is_put():
    wishes = {"train": set(), "valid": set(), "test": set()}
    for request in requests(6000, 4):
        kinds = [(group.count, group.colour, group.shape) for group in request.groups]
        relation = request.relation
        if relation in ("right of", "below"):
            kinds.reverse()
            relation = {"right of": "left of", "below": "above"}[relation]
        wishes[request.split].add((tuple(kinds) if relation else frozenset(kinds), relation))
    assert all(not a & b for a, b in combinations(wishes.values(), 2))
    shares = [len(wishes[split]) / sum(map(len, wishes.values())) for split in ("valid", "test")]
    assert shares == pytest.approx([0.05, 0.1], abs=0.02)


def test_a_split_does_not_depend_on_order_mirroring_size_place_or_paper():
    mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}
    for request in requests(2000, 5):
        other = replace(
            request,
            groups=tuple(replace(group, size="small") for group in request.groups[::-1]),
            relation=mirrored[request.relation],
            position="top",
            background="black",
        )
        assert other.split == request.split


def test_asking_for_a_split_gives_it():
    source = rng(6)
    for split in ("train", "valid", "test"):
        assert {ask(source, split).split for _ in range(50)} == {split}


def test_scenes_answer_their_request_and_nothing_touches():
    source = rng(7)
    for request in requests(1500, 7):
        scene = arrange(request, source)
        assert Counter((t.colour, t.shape) for t in scene.things) == bag(request)
        assert scene.background == (request.background or scene.background)
        for thing in scene.things:
            assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
        for one, two in combinations(scene.things, 2):
            assert np.hypot(one.x - two.x, one.y - two.y) >= one.radius + two.radius + 0.029


def test_scenes_keep_relation_position_and_size():
    source = rng(8)
    seen = Counter()
    ends = {"left of": (0, 1), "right of": (1, 0), "above": (0, 1), "below": (1, 0)}
    for request in requests(2500, 8):
        first, *rest = arrange(request, source).things
        if request.relation:
            pair = (first, rest[0])
            near, far = (pair[at] for at in ends[request.relation])
            axis = "x" if request.relation in ("left of", "right of") else "y"
            assert getattr(far, axis) - getattr(near, axis) >= 0.22
        if request.position:
            words = request.position.split()
            for axis, low, high in (("x", "left", "right"), ("y", "top", "bottom")):
                where = getattr(first, axis)
                expected = where < 1 / 3 + 0.01 if low in words else 0.37 < where < 0.63
                assert where > 2 / 3 - 0.01 if high in words else expected
        if size := request.groups[0].size:
            assert SIZES[size][0] <= first.radius <= SIZES[size][1]
        seen.update(relation=bool(request.relation), position=bool(request.position))
        seen.update(size=bool(request.groups[0].size))
    assert min(seen.values()) > 100


# Pictures


def test_a_drawing_is_a_function_of_scene_and_generator_and_no_two_are_equal():
    scene = arrange(SceneRequest((RED, BLUE)), rng(9))
    pictures = [draw(scene, rng(seed)) for seed in range(20)]
    assert np.array_equal(pictures[3], draw(scene, rng(3)))
    assert pictures[0].dtype == np.float32
    assert pictures[0].min() >= 0
    assert pictures[0].max() <= 1
    assert all(np.abs(a - b).max() > 0.01 for a, b in combinations(pictures, 2))


@pytest.mark.parametrize("size", [16, 64, 100])
def test_a_drawing_has_any_size_and_shows_the_same(size):
    scene = arrange(SceneRequest((Group(1, "red", "circle"),), background="black"), rng(10))
    (thing,) = scene.things
    redness = draw(scene, rng(10), size) @ [1, -0.5, -0.5]
    rows, columns = np.nonzero(redness > 0.3)
    assert (columns.mean() + 0.5) / size == pytest.approx(thing.x, abs=0.02)
    assert (rows.mean() + 0.5) / size == pytest.approx(thing.y, abs=0.02)
    assert np.sqrt(len(rows) / np.pi) / size == pytest.approx(thing.radius, rel=0.12)


# Mistakes


def test_a_mistake_changes_what_it_says_and_nothing_else():
    source = rng(11)
    made = Counter()
    for request in requests(1500, 11):
        for mistake in possible_mistakes(request):
            drawn = misread(request, mistake, source)
            more, fewer = bag(drawn) - bag(request), bag(request) - bag(drawn)
            assert (drawn.position, drawn.background) == (request.position, request.background)
            if mistake != "relation":
                assert drawn.relation == (None if mistake == "missing" else request.relation)
            if mistake in ("colour", "shape"):
                (new, old), = [(a, b) for a, b in zip(drawn.groups, request.groups) if a != b]  # fmt: skip
                assert replace(new, **{mistake: getattr(old, mistake)}) == old
                assert len(drawn.groups) == len(request.groups)
            elif mistake == "count":
                assert sum((more + fewer).values()) == 1
                assert bag(drawn).keys() == bag(request).keys()
            elif mistake == "relation":
                assert drawn.groups == request.groups
                assert {drawn.relation, request.relation} in ({"left of", "right of"}, {"above", "below"})
            elif mistake == "missing":
                assert len(drawn.groups) == len(request.groups) - 1
                assert set(drawn.groups) < set(request.groups)
            else:
                assert drawn.groups[:-1] == request.groups
                assert drawn.groups[-1].colour not in {group.colour for group in request.groups}
            assert 1 <= drawn.total <= 4
            made[mistake] += 1
    assert set(made) == set(shapes.MISTAKES)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_each_level_makes_that_many_different_mistakes(level):
    source = rng(12)
    for request in requests(500, 12):
        drawn, mistakes = unfaithful(request, level, source)
        assert len(set(mistakes)) == level
        assert set(mistakes) <= set(shapes.MISTAKES)
        assert (drawn == request) == (level == 0)


def test_the_third_level_is_another_scene_that_shares_no_colour():
    source = rng(13)
    for request in requests(500, 13):
        drawn, mistakes = unfaithful(request, 3, source)
        assert mistakes == ("scene",)
        assert not {g.colour for g in drawn.groups} & {g.colour for g in request.groups}


# Damage


def errors(damage: str, scenes: int = 12) -> np.ndarray:
    """[scenes, levels]: root mean square difference from the same drawing undamaged."""
    rows = []
    for seed in range(scenes):
        # On grey paper nothing is clipped.
        scene = arrange(SceneRequest((RED, BLUE), background="grey"), rng(14, seed))
        clean = draw(scene, rng(15, seed))
        rows.append(
            [np.sqrt(np.mean((damaged(scene, damage, n, rng(15, seed)) - clean) ** 2)) for n in (1, 2, 3)]
        )
    return np.array(rows)


@pytest.mark.parametrize("damage", ["noise", "blur", "banding", "occlusion"])
def test_damage_grows_with_its_level(damage):
    assert (np.diff(errors(damage), axis=1) > 0).mean() > 0.95
    assert (errors(damage) > 0.003).all()


def test_noise_and_bands_are_as_strong_as_they_say():
    assert errors("noise").mean(0)[:2] == pytest.approx(STRENGTH["noise"][:2], rel=0.05)
    assert errors("banding").mean(0) == pytest.approx(np.array(STRENGTH["banding"]) / 2, rel=0.05)


def test_blur_lowers_the_steepest_edge_level_by_level():
    for seed in range(10):
        scene = arrange(SceneRequest((RED,)), rng(16, seed))
        steepest = [
            np.abs(np.diff(damaged(scene, "blur", level, rng(17, seed)), axis=1)).max() for level in (1, 2, 3)
        ]
        steepest.insert(0, np.abs(np.diff(draw(scene, rng(17, seed)), axis=1)).max())
        assert steepest == sorted(steepest, reverse=True)


def test_an_occlusion_is_a_grey_square_over_a_things_rim():
    for seed in range(10):
        scene = arrange(SceneRequest((RED,)), rng(18, seed))
        clean = draw(scene, rng(19, seed))
        for level, share in enumerate(STRENGTH["occlusion"], 1):
            image = damaged(scene, "occlusion", level, rng(19, seed))
            changed = np.abs(image - clean).max(-1) > 0
            assert changed.sum() == round(share * 64) ** 2
            assert np.ptp(image[changed], axis=1).max() < 1e-6
            coloured = np.ptp(clean, axis=-1) > 0.3
            assert (changed & coloured).sum() > 0


def test_a_crop_leaves_less_of_a_lone_thing_the_higher_its_level():
    for seed in range(10):
        scene = arrange(SceneRequest((RED,)), rng(20, seed))
        areas = [
            (np.ptp(damaged(scene, "crop", level, rng(21, seed)), axis=-1) > 0.25).sum()
            for level in (1, 2, 3)
        ]
        whole = (np.ptp(draw(scene, rng(21, seed)), axis=-1) > 0.25).sum()
        # Of a circle cut off along a line, these shares of the area remain.
        kept = [1 - (np.arccos(1 - 2 * c) - (1 - 2 * c) * np.sqrt(4 * c - 4 * c * c)) / np.pi for c in STRENGTH["crop"]]  # fmt: skip  # noqa: E501
        assert np.array(areas) / whole == pytest.approx(kept, abs=0.06)


# Truth


def test_utility_weighs_both_axes():
    assert Truth().utility() == 0
    assert Truth(1, ("colour",)).utility() == -1
    assert Truth(2, ("colour", "count"), 1, "blur").utility() == -2.75
    assert Truth(3, ("scene",), 3, "noise").utility() == -5.25
    assert Truth(2, ("colour", "count"), 1, "blur").utility((0.5, 2)) == -3


@pytest.mark.parametrize(
    ("one", "two", "clear"),
    [
        ((0, 0), (1, 0), True),
        ((0, 0), (0, 1), True),
        ((1, 1), (2, 3), True),
        ((1, 1), (1, 1), False),
        ((0, 1), (1, 0), False),
        ((1, 0), (0, 0), False),
    ],
)
def test_a_pair_is_clear_if_one_is_better_on_one_axis_and_not_worse_on_the_other(one, two, clear):
    truths = [Truth(f, (), q) for f, q in (one, two)]
    assert truths[0].clearly_beats(truths[1]) == clear


def test_truth_speaks_in_words():
    assert Truth().in_words() == "flawless"
    assert Truth(1, ("colour",), 2, "blur").in_words() == "wrong colour; blur 2"
    assert Truth(3, ("scene",)).in_words() == "another scene"


@pytest.mark.parametrize("levels", [(-1, 0), (4, 0), (0, 4), (0.5, 0)])
def test_a_level_out_of_range_is_refused(levels):
    with pytest.raises(InputError, match=r"0\.\.3"):
        Truth(levels[0], (), levels[1])


LADDER = [Truth(1), Truth(), Truth(0, (), 1, "blur"), Truth(3), Truth(1, (), 1, "blur")]


def test_without_noise_the_annotator_ranks_by_utility():
    assert Annotator(noise=0).rank(LADDER, rng(0)) == [3, 1, 2, 5, 4]


def test_equal_images_share_a_rank_and_no_rank_is_left_out():
    assert Annotator(noise=0).rank([Truth(1), Truth(), Truth(1), Truth(2)], rng(0)) == [2, 1, 2, 3]
    # 0, -0.75, -1: the last two are within 0.3 of each other.
    assert Annotator(noise=0, tie=0.3).rank(LADDER[:3], rng(0)) == [2, 1, 2]


def test_taste_decides_between_a_mistake_and_damage():
    pair = [Truth(1, ("colour",)), Truth(0, (), 1, "blur")]
    assert Annotator(noise=0, taste=(1, 0.5)).rank(pair, rng(0)) == [2, 1]
    assert Annotator(noise=0, taste=(0.5, 1)).rank(pair, rng(0)) == [1, 2]


def test_noise_misranks_and_ties_as_often_as_the_normal_distribution_says():
    # Utilities 0.25 apart with noise of 0.25 each: a difference of mean 0.25 and deviation 0.354.
    source, pair = rng(22), [Truth(0, (), 1, "blur"), Truth(1)]
    ranks = [Annotator().rank(pair, source) for _ in range(4000)]
    assert np.mean([a > b for a, b in ranks]) == pytest.approx(0.102, abs=0.02)
    assert np.mean([a == b for a, b in ranks]) == pytest.approx(0.342, abs=0.03)


# Data sets


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "new"
    return out, shapes.write(out, prompts=12, seed=3, images=3, progress=False)


def test_a_data_set_has_imagerewarddbs_layout_and_the_truth(written):
    out, counts = written
    assert counts == {"train": 10, "valid": 1, "test": 1}
    assert sorted(path.name for path in out.iterdir()) == ["images", "test.json", "train.json", "valid.json"]
    names = set()
    for split, count in counts.items():
        records = json.loads((out / f"{split}.json").read_text())
        assert len(records) == count
        for record in records:
            assert set(record) == {"id", "prompt", "generations", "ranking", "truth"}
            assert read(record["prompt"]).split == split
            assert len(record["generations"]) == len(record["ranking"]) == len(record["truth"]) == 3
            assert set(record["ranking"]) == set(range(1, max(record["ranking"]) + 1))
            assert max(record["ranking"]) > 1
            for name, truth in zip(record["generations"], record["truth"]):
                assert PIL.Image.open(out / name).size == (64, 64)
                Truth(**{**truth, "mistakes": tuple(truth["mistakes"])})
            names |= {record["id"], *record["generations"]}
    assert len(names) == 12 * 4


def test_equal_arguments_write_equal_bytes_and_another_seed_others(written, tmp_path):
    out, _ = written
    again, other = tmp_path / "again", tmp_path / "other"
    shapes.write(again, prompts=12, seed=3, images=3, progress=False)
    shapes.write(other, prompts=12, seed=4, images=3, progress=False)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert len(files) == 3 + 36
    assert all((out / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert (out / "train.json").read_bytes() != (other / "train.json").read_bytes()


def test_a_directory_that_is_not_empty_is_left_alone(written, tmp_path):
    out, _ = written
    before = (out / "train.json").read_bytes()
    with pytest.raises(OutputError, match="exists; pass --overwrite"):
        shapes.write(out, prompts=12)
    assert (out / "train.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        shapes.write(tmp_path / "file", prompts=12)


def test_overwrite_replaces_a_data_set_and_nothing_else(tmp_path):
    out = tmp_path / "shapes"
    for seed in (0, 1):
        shapes.write(out, prompts=4, seed=seed, images=2, progress=False, overwrite=True)
    shapes.write(tmp_path / "fresh", prompts=4, seed=1, images=2, progress=False)
    names = {path.relative_to(out) for path in out.rglob("*")}
    assert names == {path.relative_to(tmp_path / "fresh") for path in (tmp_path / "fresh").rglob("*")}
    assert (out / "train.json").read_bytes() == (tmp_path / "fresh/train.json").read_bytes()
    for stranger in (out / "notes.txt", out / "images/mine.png"):
        stranger.write_text("mine")
        with pytest.raises(OutputError, match=stranger.name):
            shapes.write(out, prompts=4, images=2, progress=False, overwrite=True)
        assert stranger.read_text() == "mine"
        stranger.unlink()


@pytest.mark.parametrize("name", ["train.json", "images/train/train_1/a.webp", "images/test/a.png"])
def test_overwrite_leaves_imagerewarddb_alone(tmp_path, name):
    """Its files have the names of a data set of Shapes; its records and images have not."""
    theirs = tmp_path / name
    theirs.parent.mkdir(parents=True, exist_ok=True)
    record = {"id": "000864-0061", "prompt": "a", "generations": ["a.webp"], "ranking": [1]}
    theirs.write_text(json.dumps([record]))
    with pytest.raises(OutputError, match="more than a data set of Shapes"):
        shapes.write(tmp_path, prompts=4, images=2, progress=False, overwrite=True)
    assert json.loads(theirs.read_text()) == [record]


def test_overwrite_replaces_what_a_killed_run_left(tmp_path):
    shapes.write(tmp_path, prompts=4, images=2, progress=False)
    (tmp_path / "train.json").unlink()  # it is written after the images of its split
    shapes.write(tmp_path, prompts=4, images=2, progress=False, overwrite=True)
    assert (tmp_path / "train.json").exists()


@pytest.mark.parametrize(
    ("noise", "taste"), [(0.0, (0.0, 0.0)), (0.0, (0.03, 0.03)), (0.01, (0.0, 0.0)), (math.nan, (1.0, 1.0))]
)
def test_an_annotator_to_whom_all_images_tie_is_refused(tmp_path, noise, taste):
    with pytest.raises(InputError, match="share a rank: expected more noise"):
        shapes.write(tmp_path / "new", prompts=3, annotator=shapes.Annotator(noise, taste), progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "numbers",
    [
        {"prompts": 2},
        {"prompts": 2.5},
        {"prompts": True},
        {"prompts": 3, "images": 1},
        {"prompts": 3, "size": 15},
        {"prompts": 3, "seed": -1},
    ],
    ids=str,
)
def test_a_number_out_of_range_writes_nothing(numbers, tmp_path):
    with pytest.raises(InputError, match=list(numbers)[-1]):
        shapes.write(tmp_path / "new", **numbers)
    assert not (tmp_path / "new").exists()


def test_pairs_are_a_function_of_seed_and_split_and_faithful():
    made = list(islice(shapes.pairs(5), 30))
    again = list(islice(shapes.pairs(5), 30))
    assert all(a[0] == b[0] and a[1].tobytes() == b[1].tobytes() for a, b in zip(made, again))
    assert made[7][1].tobytes() == shapes.pair(7, 5)[1].tobytes()
    assert made[0][1].tobytes() != next(shapes.pairs(6))[1].tobytes()
    assert {read(prompt).split for prompt, _ in made} == {"train"}
    assert all(measure(image, prompt).faithful for prompt, image in made)


def test_a_wrong_prompt_asks_for_something_else_in_the_grammar():
    source = rng(28)
    for request in requests(1000, 28):
        other = read(shapes.wrong_prompt(say(request, source), source))
        assert (bag(other), other.relation) != (bag(request), request.relation)
        difference = (bag(other) - bag(request)) + (bag(request) - bag(other))
        # One mistake touches one kind of things, or turns one into another.
        assert len(difference) <= 2
        assert (other.position, other.background) == (request.position, request.background)
    four = "a red circle, a blue star, a green ring and a yellow square"
    assert all(bag(read(shapes.wrong_prompt(four, source))) != bag(read(four)) for _ in range(50))


def test_candidates_have_the_truth_they_come_with():
    source, request = rng(23), SceneRequest((RED, BLUE), "left of")
    for level in range(4):
        image, truth = shapes.candidate(request, level, 0, source)
        assert (truth.faithfulness, truth.quality, truth.damage) == (level, 0, None)
        assert measure(image, request).faithful == (level == 0)
        image, truth = shapes.candidate(request, 0, level, source)
        assert truth.quality == level
        assert (truth.damage in shapes.DAMAGES) == (level > 0)
    assert len(shapes.candidates(request, 5, source)) == 5


# The measure


@pytest.fixture(scope="module")
def agreement():
    return measure_accuracy.attributes(images=14, seed=77)


@pytest.mark.parametrize("attribute", measure_accuracy.ATTRIBUTES)
def test_the_measure_agrees_with_the_truth_on_clean_and_lightly_degraded_images(agreement, attribute):
    rows = [row for row in agreement if row["attribute"] == attribute]
    assert [row["condition"] for row in rows] == list(measure_accuracy.CONDITIONS)
    least = 0.98 if attribute in ("colour", "shape", "thing") else 0.95
    assert min(row["agreement"] for row in rows) >= least
    assert sum(row["right"] for row in rows) > 10
    assert sum(row["wrong"] for row in rows) > 5


def test_a_clean_image_measures_cleaner_than_a_damaged_one():
    rows = measure_accuracy.cleanliness(images=12, seed=78)
    assert {(row["damage"], row["level"]) for row in rows[1:]} == {
        (damage, level) for damage in shapes.DAMAGES for level in (1, 2, 3)
    }
    assert np.mean([row["ordered"] for row in rows]) >= 0.98
    assert rows[0]["median"] > 0.9


@pytest.mark.parametrize("paper", [20, 130, 235])
def test_pictures_by_another_renderer_are_read_back(paper):
    colours = iter(2 * shapes.scene.COLOURS)
    for shape in shapes.scene.SHAPES:
        for radius in (0.08, 0.12, 0.17):
            drawn = [(shape, next(colours), 0.3, 0.4, radius), ("square", next(colours), 0.75, 0.7, 0.1)]
            colours = iter([*colours, *(colour for _, colour, *_ in drawn)])
            seen = measure(by_pillow(drawn, paper), "a red circle")
            things = sorted(seen.found, key=lambda thing: thing.x)
            assert [(t.shape, t.colour) for t in things] == [(s, c) for s, c, *_ in drawn]
            for thing, (_, _, x, y, r) in zip(things, drawn):
                assert (thing.x, thing.y) == pytest.approx((x, y), abs=0.01)
                assert thing.radius == pytest.approx(r, rel=0.1)
            assert seen.background == {20: "black", 130: "grey", 235: "white"}[paper]


def test_things_that_touch_are_told_apart():
    for colour, other in (("red", "blue"), ("red", "orange"), ("purple", "blue")):
        two = by_pillow([("square", colour, 0.37, 0.5, 0.18), ("square", other, 0.62, 0.5, 0.18)])
        assert measure(
            two, SceneRequest((Group(1, colour, "square"), Group(1, other, "square")), "left of")
        ).faithful
    same = by_pillow([("circle", "red", 0.35, 0.5, 0.15), ("circle", "red", 0.65, 0.5, 0.155)])
    assert measure(same, "two red circles").faithful


@pytest.mark.parametrize("shape", shapes.scene.SHAPES)
def test_a_shape_is_read_through_blur_of_a_third_of_its_radius(shape):
    sharp = by_pillow([(shape, "green", 0.5, 0.5, 0.1)]).resize((64, 64), PIL.Image.Resampling.BOX)
    soft = ndimage.gaussian_filter(np.asarray(sharp, np.float32) / 255, (2, 2, 0))
    assert measure(to_image(soft), f"a green {shape}").faithful


def test_an_image_counts_alike_in_whatever_form_it_comes(tmp_path):
    prompt, image = shapes.pair(3)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [image, str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), array, tensor, tensor / 255]
    first = measure(image, prompt)
    assert all(measure(form, prompt) == first for form in forms)
    assert measure(image, read(prompt)) == first


@pytest.mark.parametrize("size", [32, 48, 96, 128, 300])
def test_images_of_other_sizes_are_measured(size):
    source = rng(24, size)
    faithful = []
    for request in requests(15, 24):
        faithful.append(measure(to_image(draw(arrange(request, source), source, size)), request).faithful)
    assert np.mean(faithful) > 0.9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["blank", "coloured", "noise", "blotches", "two halves", "stripes"])
def test_an_image_of_nothing_is_neither_faithful_nor_clean(kind, seed):
    pixels = {
        "blank": lambda: np.full((64, 64, 3), seed * 127),
        "coloured": lambda: np.full((64, 64, 3), (200, 30, 30)),
        "noise": lambda: rng(25, seed).integers(0, 256, (64, 64, 3)),
        "blotches": lambda: rng(25, seed).integers(0, 256, (8, 8, 3)).repeat(8, 0).repeat(8, 1),
        "two halves": lambda: np.repeat([[(255, 0, 0)], [(0, 255, 255)]], 32, 0).repeat(64, 1),
        "stripes": lambda: np.tile([[[255, 0, 0]], [[0, 0, 255]]], (32, 64, 1)),
    }[kind]()
    for prompt in ("a red circle", "two blue stars and a green ring on a grey background"):
        seen = measure(pixels.astype(np.uint8), prompt)
        assert not seen.faithful
        assert 0 <= seen.faithfulness < 0.5
        assert 0 <= seen.cleanliness < 0.2


def test_faithfulness_rises_as_things_asked_for_appear():
    parts = [("circle", "red", 0.2, 0.2, 0.12), ("star", "blue", 0.6, 0.3, 0.12), ("ring", "green", 0.4, 0.7, 0.12)]  # fmt: skip  # noqa: E501
    prompt = "a red circle, a blue star and a green ring"
    values = [measure(by_pillow(parts[:count]), prompt).faithfulness for count in range(4)]
    assert values == sorted(set(values))
    assert (values[0], values[-1]) == (0, 1)


def test_a_malformed_thing_counts_less_the_worse_it_fits():
    weights = [
        judge([found(fit=fit)], (0.9,) * 3, read("a red circle")) for fit in (0.4, 0.6, 0.7, 0.8, 0.85, 1)
    ]
    assert [w["shape"] for w in weights] == pytest.approx([0, 2 / 7, 4 / 7, 6 / 7, 1, 1])
    assert [w["thing"] for w in weights] == [w["shape"] for w in weights]
    assert all(w["colour"] == 1 for w in weights)


def test_cleanliness_falls_with_every_step_of_noise_and_blur():
    prompt, image = shapes.pair(11)
    pixels = np.asarray(image, np.float32) / 255
    noise = rng(26).standard_normal(pixels.shape)
    for spoiled in (
        [pixels + level * noise for level in (0, 0.02, 0.04, 0.06, 0.08, 0.12)],
        [ndimage.gaussian_filter(pixels, (s, s, 0)) for s in (0, 0.6, 0.8, 1, 1.2, 1.5)],
    ):
        values = [measure(to_image(each.clip(0, 1)), prompt).cleanliness for each in spoiled]
        assert values == sorted(set(values), reverse=True)


def test_flaws_have_the_strength_that_was_dealt():
    source = rng(27)
    scenes = [arrange(request, source) for request in requests(12, 27)]
    for damage in ("noise", "banding", "occlusion"):
        strengths = [
            measure(to_image(damaged(s, damage, 1, source)), "a red ring").flaws[damage] for s in scenes
        ]
        # White and black papers clip noise; of a block, what lies over a thing's rim is not counted.
        assert np.median(strengths) == pytest.approx(STRENGTH[damage][0], rel=0.3)


def test_what_lies_on_the_border_measures_as_cropped_and_nothing_else_does():
    source = rng(29)
    for request in requests(12, 29):
        scene = arrange(request, source)
        whole, cut = draw(scene, source), damaged(scene, "crop", 1, source)
        assert measure(to_image(whole), request).flaws["crop"] == 0
        assert measure(to_image(cut), request).flaws["crop"] > 0.3


def test_attributes_are_those_the_prompt_asks_about():
    image = by_pillow([("circle", "red", 0.2, 0.2, 0.1)])
    always = {"colour", "shape", "thing", "count"}
    for prompt, more in {
        "a red circle": set(),
        "a small red circle in the top left corner on a white background": {"size", "position", "background"},
        "a red circle above a blue star": {"relation"},
    }.items():
        assert set(measure(image, prompt).attributes) == always | more


@pytest.mark.parametrize(
    ("prompt", "things", "expected"),
    [
        ("a red circle", [], {"colour": 0, "shape": 0, "thing": 0, "count": 0}),
        ("a red circle", [found()], {"colour": 1, "shape": 1, "thing": 1, "count": 1}),
        ("a red circle", [found(colour="pink")], {"colour": 0, "shape": 1, "thing": 0, "count": 1}),
        (
            "a red circle",
            [found(), found("ring", "blue")],
            {"colour": 1, "shape": 1, "thing": 1, "count": 0.5},
        ),
        ("three red circles", [found(), found()], {"colour": 1, "shape": 1, "thing": 1, "count": 2 / 3}),
        (
            "a red circle and a blue star",
            [found("star", "red"), found("circle", "blue")],
            {"colour": 1, "shape": 1, "thing": 0, "count": 1},
        ),
        (
            "a red circle and a blue star",
            [found()],
            {"colour": 0.5, "shape": 0.5, "thing": 0.5, "count": 0.5},
        ),
        (
            "two red circles and a blue star",
            [found(), found("star", "blue"), found("star", "blue")],
            {"colour": 2 / 3, "shape": 2 / 3, "thing": 2 / 3, "count": 1},
        ),
    ],
)
def test_the_judgement_of_things_equals_numbers_worked_by_hand(prompt, things, expected):
    assert judge(things, (0.9,) * 3, read(prompt)) == pytest.approx(expected)


def test_place_size_and_paper_are_judged_within_bounds_and_fall_off_beyond():
    def judged(prompt, thing, paper=(0.9,) * 3):
        return list(judge([thing], paper, read(prompt)).values())[-1]

    (small, most), (least, large) = SIZES["small"], SIZES["large"]
    assert judged("a small red circle", found(radius=small)) == 1
    assert judged("a small red circle", found(radius=most)) == 1
    assert judged("a small red circle", found(radius=large)) == 0
    assert judged("a large red circle", found(radius=large)) == 1
    assert judged("a large red circle", found(radius=least)) == 1
    assert judged("a large red circle", found(radius=small)) == 0
    # Small ends half way to large; 0.015 on, half of the slack of 0.03 is used up.
    assert judged("a small red circle", found(radius=(most + least) / 2 + 0.015)) == pytest.approx(0.5)
    assert judged("a red circle in the top left corner", found(x=0.2, y=0.3)) == 1
    assert judged("a red circle in the top left corner", found(x=0.2, y=0.435)) == pytest.approx(0.5)
    assert judged("a red circle in the middle", found(x=0.9)) == 0
    assert judged("a red circle on a white background", found()) == 1
    assert judged("a red circle on a white background", found(), (0.5,) * 3) == 0
    assert judged("a red circle on a white background", found(), (1, 0.6, 1)) == 0


def test_a_relation_is_judged_between_the_things_of_its_two_groups():
    def related(prompt, *things):
        return judge(things, (0.9,) * 3, read(prompt))["relation"]

    left, right = found(x=0.2), found("star", "blue", x=0.7)
    assert related("a red circle left of a blue star", left, right) == 1
    assert related("a red circle right of a blue star", left, right) == 0
    assert related("a blue star right of a red circle", left, right) == 1
    assert related("a red circle left of a blue star", left) == 0
    # The wrong colour leaves the relation standing; so does an extra thing.
    assert related("a red circle left of a blue star", replace(left, colour="pink"), right) == 1
    assert related("a red circle left of a blue star", left, right, found("star", "green", x=0.1)) == 1
    # 0.125 along, of 0.2 that are enough: half of the slack of 0.15.
    near = found("star", "blue", x=0.325)
    assert related("a red circle left of a blue star", left, near) == pytest.approx(0.5)
    # Two groups that ask for the same.
    assert related("a red circle left of a red circle", found(x=0.7), found(x=0.2)) == 1


def test_a_measurement_is_frozen_and_made_of_plain_values():
    seen = measure(by_pillow([("circle", "red", 0.5, 0.5, 0.1)]), "a red circle")
    with pytest.raises(FrozenInstanceError):
        seen.faithfulness = 1
    assert json.loads(json.dumps(asdict(seen)))["background"] == "white"
    assert seen.faithfulness == 1
    assert seen.faithful


@pytest.mark.parametrize("prompt", [*NOT_SAID, None, 3, b"a red circle", ["a red circle"]], ids=repr)
def test_a_prompt_that_is_none_of_shapes_is_an_input_error(prompt):
    with pytest.raises(InputError):
        measure(PIL.Image.new("RGB", (64, 64)), prompt)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (PIL.Image.new("RGB", (64, 48)), InputError),
        (PIL.Image.new("RGB", (31, 31)), InputError),
        (np.zeros((64, 64, 3)), ImageTypeError),
        (np.zeros((64, 64, 2), np.uint8), InputError),
        (torch.full((3, 64, 64), 2.0), InputError),
        (torch.full((3, 64, 64), float("nan")), InputError),
        ("missing.png", ImageNotFound),
        (b"not an image", ImageReadError),
        (None, ImageTypeError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else value.__name__,
)
def test_an_image_that_cannot_be_measured_says_so(image, error):
    with pytest.raises(error):
        measure(image, "a red circle")
