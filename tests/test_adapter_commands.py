"""Adapters in tables of scores, behind the server, in the commands, and where they have no place."""

import json
import re

import numpy as np
import pytest
from conftest import PROMPTS, pictures
from test_adapted_scorers import shaken
from typer.testing import CliRunner

import imagereward as RM
from benchmarks.lib.serving import serving
from imagereward.bulk import score_table
from imagereward.checkpoints.adapted import with_adapter, with_adapters
from imagereward.cli import app
from imagereward.config import AdapterConfig
from imagereward.errors import CheckpointError, InputError, OutputError


def taste(models, folder, seed: int = 1):
    """The directory of an adapter for the small CLIP."""
    scorer = RM.load(models["CLIP"], "cpu")
    scorer.add_adapter(AdapterConfig("loreft", "mine"))
    return shaken(scorer.adapters["mine"], seed).save_pretrained(folder)


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_table_has_base_and_adapter_side_by_side_and_its_fingerprint_names_the_adapter(models, table):
    where = taste(models, table / "my-taste")
    name = f"{models['CLIP']}+{where}"
    options = {"progress": False, "device": "cpu", "workers": 0, "part_rows": 10}
    score_table(table / "table.jsonl", table / "out.jsonl", [models["CLIP"], name], **options)
    found = rows(table / "out.jsonl")
    scorer = RM.load(models["CLIP"], "cpu", adapter=where)
    first = rows(table / "table.jsonl")[0]
    expected = scorer.score(first["prompt"], str(table / first["image"]))
    assert found[0]["score:CLIP+my-taste"] == pytest.approx(expected, abs=1e-5)
    with scorer.using_adapters():
        base = scorer.score(first["prompt"], str(table / first["image"]))
    assert found[0]["score:CLIP"] == pytest.approx(base, abs=1e-5)
    taste(models, where, seed=2)
    score_table(table / "table.jsonl", table / "part.jsonl", [name], **options)
    again = rows(table / "part.jsonl")
    assert abs(again[0]["score:CLIP+my-taste"] - found[0]["score:CLIP+my-taste"]) > 1e-6


def test_parts_scored_with_another_adapter_are_not_taken_over(models, table, monkeypatch):
    where = taste(models, table / "my-taste")
    name = f"{models['CLIP']}+{where}"
    options = {"progress": False, "device": "cpu", "workers": 0, "part_rows": 10}
    monkeypatch.setattr("imagereward.bulk.output.Output.finish", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_table(table / "table.jsonl", table / "out.jsonl", [name], **options)
    monkeypatch.undo()
    taste(models, where, seed=2)
    with pytest.raises(OutputError, match="weights of"):
        score_table(table / "table.jsonl", table / "out.jsonl", [name], **options)


def test_the_server_scores_with_the_adapter(models, tmp_path):
    scorer = RM.load(models["CLIP"], "cpu", adapter=taste(models, tmp_path / "my-taste"))
    with serving(scorer) as url:
        remote = RM.connect(url)
        assert remote.name == "CLIP+my-taste"
        found = remote.score(PROMPTS[0], pictures(3))
    np.testing.assert_allclose(found, scorer.score(PROMPTS[0], pictures(3)), atol=2e-5)


def test_commands_take_an_adapter(models, tmp_path, image_paths):
    where = str(taste(models, tmp_path / "my-taste"))
    expected = RM.load(models["CLIP"], "cpu", adapter=where).score("a red bicycle", image_paths)
    common = ["a red bicycle", *image_paths, "-m", models["CLIP"], "--device", "cpu", "--format", "json"]
    for extra in (["--adapter", where], []):
        if not extra:
            common[common.index(models["CLIP"])] = f"{models['CLIP']}+{where}"
        scored = CliRunner().invoke(app, ["score", *common, *extra], catch_exceptions=False)
        assert [row["score"] for row in json.loads(scored.stdout)] == pytest.approx(expected, abs=1e-5)
    ranked = CliRunner().invoke(app, ["rank", *common], catch_exceptions=False)
    assert "CLIP+my-taste" in ranked.stdout
    both = [
        "score",
        "a red bicycle",
        image_paths[0],
        "-m",
        models["CLIP"],
        "-m",
        models["HPS"],
        "--device",
        "cpu",
    ]
    shown = CliRunner().invoke(app, [*both, "--adapter", where], catch_exceptions=False)
    assert "my-taste" in shown.stdout
    assert "HPS" in shown.stdout


def test_an_adapter_finds_its_scorer_among_several(models, tmp_path):
    where = str(taste(models, tmp_path / "mine"))
    assert with_adapters(["ImageReward-v1.0"], [where]) == [f"ImageReward-v1.0+{where}"]
    assert with_adapters(["Aesthetic", "CLIP"], [where]) == ["Aesthetic", f"CLIP+{where}"]
    with pytest.raises(InputError, match="is for 'CLIP', which is not among Aesthetic, BLIP"):
        with_adapters(["Aesthetic", "BLIP"], [where])
    with pytest.raises(InputError, match="two adapters for CLIP"):
        with_adapters(["CLIP"], [where, where])


def test_names_with_a_plus_that_exist_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    assert with_adapter("a+b") == ("a+b", None)
    assert with_adapter("CLIP+mine") == ("CLIP", "mine")
    assert with_adapter("me/clip+you/taste") == ("me/clip", "you/taste")
    released = "weights/sac+logos+ava1-l14-linearMSE.pth"  # it is not there
    assert with_adapter(released) == (released, None)
    with pytest.raises(CheckpointError, match=f"the path {re.escape(released)} does not exist"):
        RM.load(released)
    for name in ("a+b/model", "a+b/taste", "mine"):
        (tmp_path / name).mkdir()
    assert with_adapter("a+b/model+taste") == ("a+b/model", "taste")
    assert with_adapter("a+b/model+a+b/taste") == ("a+b/model", "a+b/taste")
    assert with_adapter("CLIP+a+b/taste") == ("CLIP", "a+b/taste")
    assert with_adapter("CLIP+mine+taste") == ("CLIP+mine", "taste")
    assert with_adapter("vqa:a+b/model") == ("vqa:a+b/model", None)
    assert with_adapter("vqa:a+b/model+mine") == ("vqa:a+b/model", "mine")
    assert with_adapters(["a+b/model"], ["a+b/taste"]) == ["a+b/model+a+b/taste"]
    with pytest.raises(InputError, match=r"two adapters for a\+b/model: mine and taste"):
        with_adapters(["a+b/model"], ["mine", "taste"])
    for name in ("CLIP", "+mine", "CLIP+", "0.5 CLIP + 1 BLIP"):
        assert with_adapter(name) == (name, None)


def test_a_function_as_a_scorer_has_no_modules_to_change(models, tmp_path, monkeypatch):
    (tmp_path / "own_scorer_x.py").write_text(
        "def brightness(pixels, prompts):\n    return pixels.mean((1, 2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    where = taste(models, tmp_path / "mine")
    with pytest.raises(InputError, match="is no Scorer, whose modules could change"):
        RM.load("own_scorer_x:brightness", "cpu", adapter=where)


def test_a_reward_model_does_not_start_from_an_adapted_scorer(models, tmp_path):
    from imagereward.tuning.reward_model.init import start_from

    scorer = RM.load(models["ImageReward"], "cpu")
    where = scorer.add_adapter(AdapterConfig("loreft", "mine")).save_pretrained(tmp_path / "mine")
    with pytest.raises(InputError, match="has an adapter; expected a scorer without"):
        start_from(f"{models['ImageReward']}+{where}", "ordinary", "cpu", 0)
