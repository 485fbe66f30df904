"""Fine-tuning by the tiny recipes, cut to a few updates: through the scripts, and in two processes."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pipelines
import pytest
import torch
from conftest import small_scorer
from diffusers import StableDiffusionPipeline
from forked import free_port, run_forked
from safetensors.torch import load_file

from imagereward.tuning import run_recipe

ROOT = Path(__file__).parents[1]
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--cpu")


def saved(pipeline, directory: Path) -> dict[str, Path]:
    """The models and the prompts of a run, as files."""
    pipeline.save_pretrained(directory / "base")
    small_scorer("ImageReward").save_pretrained(directory / "reward")
    (directory / "prompts.txt").write_text("a red circle\ntwo blue stars\none large square\na green ring\n")
    return {
        "model": directory / "base",
        "prompts": directory / "prompts.txt",
        "output": directory / "out",
        "reward": directory / "reward",
    }


def machines(count: int, processes: int) -> list[tuple[str, ...]]:
    """The commands by which `count` machines, all of them this one, meet and start `processes` each."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d")
    meeting = ("--nnodes", f"{count}", "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    return [(*torchrun, *meeting, "--nproc-per-node", f"{processes}")] * count


def launch(launchers, script, recipe, values):
    """The history of a run by commands that are started at once."""
    rest = (f"train/{script}.py", recipe, *(f"{key}={value}" for key, value in values.items()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    logs = [values["output"].with_suffix(f".{index}.log") for index in range(len(launchers))]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [*launcher, *rest],
                    cwd=ROOT,
                    stdout=stack.enter_context(log.open("w")),
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            )
            for launcher, log in zip(launchers, logs, strict=True)
        ]
        codes = [each.wait() for each in started]
    assert codes == [0] * len(launchers), "\n".join(log.read_text() for log in logs)
    return json.loads((values["output"] / "history.json").read_text())


def train(recipe, values, ranks=1):
    """The history of a run of the recipe in new processes, without a launcher."""
    overrides = [f"{key}={value}" for key, value in values.items()]
    ended = run_forked(run_recipe, recipe, overrides, log=values["output"].with_suffix(".log"), ranks=ranks)
    assert ended.codes == [0] * ranks, ended.output
    return json.loads((values["output"] / "history.json").read_text())


@pytest.mark.parametrize(
    ("launchers", "sharding"),
    [
        pytest.param(lambda: [(sys.executable,)], "none", id="alone"),
        pytest.param(lambda: [ACCELERATE], "none", id="accelerate"),
        pytest.param(lambda: machines(2, 1), "full", id="two machines"),
        pytest.param(lambda: machines(2, 2), "hybrid", id="two machines of two", marks=pytest.mark.long),
    ],
)
def test_refl_by_the_tiny_recipe_runs_three_updates_and_leaves_a_pipeline(launchers, sharding, tmp_path):
    values = {
        **saved(pipelines.sd("v_prediction"), tmp_path),
        "updates": 3,
        "batch_size": 4,
        "micro_batch": 1,
        "evaluate_every": 3,
        "evaluation.count": 2,
        "evaluation.batch_size": 4,
        "sharding": sharding,
        "gradient.shared_by": 4,
    }
    history = launch(launchers(), "refl", "tiny/refl", values)
    assert [entry["update"] for entry in history if "loss" in entry] == [1, 2, 3]
    before, after = (
        StableDiffusionPipeline.from_pretrained(tmp_path / name).unet for name in ("base", "out")
    )
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))


def test_half_precision_learns_from_the_same_ratios_and_leaves_the_rest_as_it_was(tmp_path):
    """accelerate takes one precision a process, so that this needs one of its own."""
    values = {
        **saved(pipelines.sd3(), tmp_path),
        "updates": 1,
        "batch_size": 8,
        "micro_batch": 4,
        "group": 4,
        "steps": 3,
        "evaluation.count": 2,
        "evaluation.batch_size": 4,
    }
    found = {}
    for precision in ("float32", "bfloat16"):
        changes = {"precision": precision, "storage": precision, "output": tmp_path / precision}
        if precision == "bfloat16":
            changes["vae_precision"] = precision
        before, update, _ = train("tiny/grpo", values | changes)
        assert update["ratio"] == pytest.approx(1, abs=1e-6)
        assert update["clipped"] == 0
        found[precision] = before["evaluation/diversity"], update["reward"]
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.05)
    start, tuned = (parts_of(tmp_path / name) for name in ("base", "bfloat16"))
    for name, part in start.items():
        same = all(torch.equal(value, tuned[name][key]) for key, value in part.items())
        assert same == (name != "transformer"), name


def parts_of(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of a pipeline's parts, as they were written."""
    return {path.parent.name: load_file(path) for path in directory.glob("*/*.safetensors")}


def test_two_processes_resume_grpo_with_lora_and_averaged_weights_where_they_were(tmp_path):
    values = {
        **saved(pipelines.sd3(), tmp_path),
        "updates": 2,
        "batch_size": 8,
        "micro_batch": 2,
        "group": 4,
        "steps": 3,
        "lora.rank": 2,
        "ema": 0.5,
        "save_every": 1,
        "evaluate_every": 2,
        "evaluation.count": 2,
        "evaluation.batch_size": 4,
    }
    whole = train("tiny/grpo", values, ranks=2)
    result = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    learned = load_file(result)
    assert any(value.any() for name, value in learned.items() if "lora_B" in name)
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    result.unlink()
    assert train("tiny/grpo", {**values, "resume": "true"}, ranks=2) == whole
    again = load_file(result)
    assert learned.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in learned.items())
