"""ImageReward-tiny, the model in the package, and the demo that shows it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import imagereward as RM
from benchmarks.shapes.scorer_accuracy import accuracy
from imagereward import demo, shapes
from imagereward.checkpoints.registry import ASSETS, REGISTRY
from imagereward.cli import app

RESULTS = Path(__file__).parents[1] / "benchmarks/results/tiny.json"
SEED = 5  # of none of the training data, and not the seed of the published figures


@pytest.fixture(scope="module")
def tiny():
    return RM.load("ImageReward-tiny", "cpu", local_files_only=True)


@pytest.fixture(scope="module")
def held_out(tiny):
    return accuracy(tiny, 700, SEED)


def test_it_is_at_most_twelve_megabytes_and_fits_its_config(tiny):
    assert (ASSETS / "ImageReward-tiny/model.safetensors").stat().st_size <= 12e6
    assert tiny.config == REGISTRY["ImageReward-tiny"].config


@pytest.mark.parametrize(
    "kind",
    ["all clear pairs", "quality", *(f"faithfulness: {kind}" for kind in ("colour", "count", "shape"))],
)
def test_other_held_out_pairs_confirm_the_published_accuracy(held_out, kind):
    published = {row["pairs"]: row["accuracy"] for row in json.loads(RESULTS.read_text())["rows"]}
    share, count = held_out[0][kind]
    # Three standard errors of this sample, which is smaller than the published one.
    assert (
        abs(share - published[kind]) <= 3 * (published[kind] * (1 - published[kind]) / count) ** 0.5 + 0.005
    )


@pytest.mark.parametrize(
    ("kind", "least"),
    [("all clear pairs", 0.90), ("faithfulness: colour", 0.90), ("faithfulness: count", 0.80)],
)
def test_it_ranks_held_out_clear_pairs_right(held_out, kind, least):
    assert held_out[0][kind][0] >= least


def test_it_reads_the_prompt_with_shuffled_ones_faithfulness_is_chance(held_out):
    share, count = held_out[1]["faithfulness, one mistake"]
    assert abs(share - 0.5) <= 3 * (0.25 / count) ** 0.5


def test_its_scores_have_mean_0_and_standard_deviation_1_on_shapes(tiny):
    rng = np.random.default_rng([SEED, 8])
    prompts, images = [], []
    for _ in range(150):
        request = shapes.ask(rng, "valid")
        for image, _ in shapes.candidates(request, 6, rng):
            prompts.append(shapes.say(request, rng))
            images.append(image)
    scores = np.array(tiny.score_pairs(prompts, images, batch_size=90))
    assert abs(scores.mean()) < 0.15
    assert 0.85 < scores.std() < 1.15


def test_a_word_it_does_not_know_is_no_error(tiny):
    assert tiny.count_tokens(["a red zeppelin"]) == [5]
    assert np.isfinite(tiny.score("a red zeppelin", np.zeros((64, 64, 3), np.uint8)))


def test_the_demo_prints_the_rankings_and_writes_a_page_that_stands_alone(tmp_path):
    page = tmp_path / "new" / "page.html"
    command = [
        sys.executable,
        "-m",
        "imagereward",
        "demo",
        "--out",
        str(page),
        "--prompts",
        "2",
        "--seed",
        "3",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    judged = demo.judge(2, 6, 3)
    for each in judged:
        assert each.ranking.prompt in result.stdout
        for row in each.rows():
            assert f"{row['reward']:.4f}" in result.stdout
    assert "knows Shapes" in result.stderr
    html = page.read_text()
    assert html.count("<figure>") == 12
    assert not re.findall(r"https?://|<script|@import|url\(|<link", html)
    pictures = [demo.thumbnail(each.ranking.images[index]) for each in judged for index in each.ranking.order]
    assert [html.index(picture) for picture in pictures] == sorted(
        html.index(picture) for picture in pictures
    )


def test_every_use_from_the_command_says_what_it_knows(tmp_path):
    image, _ = shapes.candidate(shapes.read("a red circle"), 0, 0, np.random.default_rng(0))
    image.save(tmp_path / "a.png")
    for command in ("score", "rank"):
        result = CliRunner().invoke(
            app, [command, "-m", "ImageReward-tiny", "a red circle", str(tmp_path / "a.png")]
        )
        assert result.exit_code == 0
        assert REGISTRY["ImageReward-tiny"].note in result.stderr


def test_a_clear_pair_is_better_on_one_axis_and_not_worse_on_the_other():
    ranking = RM.load("ImageReward-tiny").rank("a red circle", [np.zeros((64, 64, 3), np.uint8)] * 3)
    judged = demo.Judged(
        # On some CPUs the last bit of equal images differs with their place in the batch.
        ranking=replace(ranking, rewards=[0.5] * 3, ranks=[1] * 3),
        truths=[shapes.Truth(), shapes.Truth(1, ("colour",)), shapes.Truth(0, (), 2, "blur")],
    )
    assert len(judged.clear_pairs) == 2  # nobody says whether a wrong colour is worse than blur
    assert not any(judged.clear_pairs)  # equal images tie, and a tie is not right
