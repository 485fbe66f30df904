"""Cards: the Python that a result's README.md shows is run, for every family, and gives what was trained."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pipelines
import pytest
import torch
from conftest import pictures
from safetensors.torch import load_file
from test_families import drawn
from test_refl import run
from test_tuning import data, recipe, train  # noqa: F401 - a fixture

import imagereward as RM
from imagereward.tuning.export import LORA_FILE

ROOT = Path(__file__).parents[1]


def python_of(card: Path) -> str:
    """The card's only block of Python."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return code


def loaded(card: Path, **given):
    """The pipeline that the card's lines make."""
    names = dict(given)
    exec(python_of(card), names)
    return names["pipeline"]


def dtypes(pipeline) -> set[torch.dtype]:
    """Of all parameters but T5's wo, which transformers keeps in float32 beside float16."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    named = [each for part in parts for each in part.named_parameters()]
    return {value.dtype for name, value in named if not name.endswith(".wo.weight")}


def tuned_from_disk(tmp_path, family, **changes):
    pipelines.FAMILIES[family]().save_pretrained(tmp_path / "model")
    rows = pipelines.rows(family, 2)
    prompts = [row if isinstance(row, str) else record_of(row) for row in rows]
    changes = {"learning_rate": 1e-2, "target": None, "reward_loss_weight": 1.0, **changes}
    tuned = run(tmp_path / "out", model=str(tmp_path / "model"), prompts=prompts, **changes)
    return tuned, rows


def record_of(row) -> dict:
    """A request as a record of `prompts`."""
    given = {"prompt": row.prompt, "image": row.image, "mask": row.mask}
    return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 8}], ids=["full", "lora"])
@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_the_cards_lines_load_what_was_trained(family, lora, tmp_path):
    tuned, rows = tuned_from_disk(tmp_path, family, lora=lora)
    again = loaded(tmp_path / "out/README.md")
    assert type(again) is type(tuned)
    assert dtypes(again) == {torch.float32}
    torch.testing.assert_close(drawn(again, rows, 1.0), drawn(tuned, rows, 1.0), atol=1e-5, rtol=1e-5)
    base = drawn(type(again).from_pretrained(tmp_path / "model", **absent(again)), rows, 1.0)
    assert (drawn(again, rows, 1.0) - base).abs().max() > 1e-4


def absent(pipeline) -> dict[str, None]:
    return {name: None for name, part in pipeline.components.items() if part is None}


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_card_names_one_dtype_for_all_parts(family, precision, tmp_path):
    tuned_from_disk(tmp_path, family, lora={"rank": 2}, precision=precision, updates=1)
    assert dtypes(loaded(tmp_path / "out/README.md")) == {getattr(torch, precision)}


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_an_sd3_without_its_third_encoder_is_loaded_without_it(lora, tmp_path):
    pipeline = pipelines.sd3()
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path / "model")
    run(tmp_path / "out", model=str(tmp_path / "model"), lora=lora, updates=1)
    assert "text_encoder_3=None" in python_of(tmp_path / "out/README.md")
    assert loaded(tmp_path / "out/README.md").text_encoder_3 is None


def test_the_card_of_adapters_of_a_pipeline_at_hand_takes_the_pipeline(tmp_path):
    run(tmp_path / "out", model=pipelines.sd(), lora={"rank": 2}, updates=1)
    pipeline = loaded(tmp_path / "out/README.md", pipeline=pipelines.sd())
    assert pipeline.get_active_adapters()


# A checkpoint's directory.


def network_state(pipeline) -> dict[str, torch.Tensor]:
    state = pipelines.network_of(pipeline).state_dict()
    return {re.sub(r"\.default_0\.", ".default.", name): value for name, value in state.items()}


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_checkpoint_of_adapters_is_one_that_diffusers_loads(family, ema, tmp_path):
    tuned, _ = tuned_from_disk(tmp_path, family, lora={"rank": 2, "alpha": 8}, save_every=1, ema=ema)
    first, last = (load_file(tmp_path / f"out/checkpoint-{number}/{LORA_FILE}") for number in (1, 2))
    assert any(not torch.equal(value, last[name]) for name, value in first.items())
    again = pipelines.FAMILIES[family]()
    again.load_lora_weights(tmp_path / "out/checkpoint-2")
    found, expected = network_state(again), network_state(tuned)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_a_checkpoint_of_all_weights_is_not_taken_for_adapters(family, tmp_path):
    tuned_from_disk(tmp_path, family, updates=1)
    with pytest.raises(Exception, match=r"(?i)lora|adapter"):
        pipelines.FAMILIES[family]().load_lora_weights(tmp_path / "out/checkpoint-1")


# Reward models.


def test_a_reward_models_card_loads_it_and_says_what_was_measured(data, tmp_path, monkeypatch, capsys):  # noqa: F811
    output = tmp_path / "out"
    scorer = train(data, output)
    monkeypatch.chdir(tmp_path)
    (picture,) = pictures(1)
    picture.save("image.png")
    capsys.readouterr()
    exec(python_of(output / "README.md"), {})
    assert float(capsys.readouterr().out) == pytest.approx(scorer.score("a red circle", picture), abs=1e-5)
    card = (output / "README.md").read_text()
    history = [each for each in json.loads((output / "history.json").read_text()) if "eval_accuracy" in each]
    best = min(history, key=lambda entry: entry["eval_pair_loss"])
    for key in ("eval_accuracy", "eval_pair_loss"):
        assert f"| {history[0][key]:.4f} | {best[key]:.4f} |" in card
    assert f"of update {best['step']}," in card
    assert "trained with imagereward" in card
    config = json.loads(re.findall(r"```json\n(.*?)```", card, re.DOTALL)[0])
    assert config["data"] == str(data)


def test_a_reward_models_training_tells_its_plan_and_its_outcome(data, tmp_path, capsys):  # noqa: F811
    scorer = train(data, tmp_path / "out")
    text = capsys.readouterr().err
    learns = sum(value.numel() for value in scorer.parameters())
    assert f"of {learns:,} parameters" in text
    assert f"output {tmp_path / 'out'}" in " ".join(text.split())
    assert "validation pairs" in text
    assert f"model = RM.load('{tmp_path / 'out'}')" in text
    assert RM.load(tmp_path / "out", "cpu").name == scorer.name


# The repository's own pipelines.


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-flow"])
def test_the_repositorys_pipelines_load_and_draw_as_their_cards_say(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(python_of(ROOT / f"benchmarks/toy_models/{name}/README.md"), names)
    assert dtypes(names["pipeline"]) == {torch.float32}
    assert names["image"].size == (64, 64)


def test_a_script_without_a_main_guard_is_told_so(data, tmp_path):  # noqa: F811
    path = recipe(tmp_path / "mine.toml", data, tmp_path / "out", workers=1)
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from imagereward.tuning import run_recipe
run_recipe({path!r})
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1
    assert f"{script}, line 5, starts a training again, in a process that was spawned" in result.stderr
    assert 'a script must start its training under `if __name__ == "__main__":`' in result.stderr
