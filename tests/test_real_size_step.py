"""The benchmark of a step of ReFL and of GRPO at real size, at the size of the tiny Stable Diffusion."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import small_scorer
from diffusers import StableDiffusionPipeline

from benchmarks.lib import plain_steps, record
from benchmarks.lib.paths import TINY_SD
from benchmarks.lib.steps import Clock, union
from benchmarks.pages import training_tables
from benchmarks.training import real_size_step
from benchmarks.training.real_size_step import (
    LEARNING_RATE,
    LOOP,
    METHODS,
    NAMES,
    compared,
    measured,
    prepare,
    rows_of,
)

CPU, SIZE = torch.device("cpu"), 32


def gradients_of(learned):
    return torch.cat([value.grad.flatten() for value in learned.values()])


def run(name, updates=1):
    """What the step `name` measured, its gradients, and the weights after it; the adapters are not 0."""
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_SD, dtype=torch.float32)
    prepared = prepare(name, pipeline, small_scorer("ImageReward"), SIZE)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in prepared.learned.values():
            value += 0.05 * torch.randn(value.shape, generator=source)
    found = measured(prepared, CPU, updates - 1)
    weights = torch.cat([value.detach().flatten() for value in prepared.learned.values()])
    return found, gradients_of(prepared.learned), weights


@pytest.fixture(scope="module")
def runs():
    return {name: run(name) for name in NAMES}


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loop_finds_the_same_numbers_and_gradients(runs, method):
    (ours, gradient, weights), (loop, expected, after) = runs[method], runs[method + LOOP]
    assert ours["loss"] == pytest.approx(loop["loss"], rel=1e-4, abs=1e-6 if method == "GRPO" else 0)
    assert ours["reward"] == pytest.approx(loop["reward"], rel=1e-4)
    assert expected.norm() > 0
    assert (gradient - expected).norm() <= 1e-3 * expected.norm()
    assert (weights - after).abs().mean() < LEARNING_RATE / 100
    assert 0 <= ours["outside"] < 1
    assert 0 <= loop["outside"] < 1
    assert ours["peak_mb"] > 0
    assert ours["gradient_norm"] == pytest.approx(float(gradient.double().norm()), rel=1e-4)


def test_a_second_update_draws_other_images(runs):
    found, _, _ = run("GRPO" + LOOP, updates=2)
    assert found["reward"] != pytest.approx(runs["GRPO" + LOOP][0]["reward"], rel=1e-4)


def test_another_arithmetic_is_noticed(runs, monkeypatch):
    monkeypatch.setattr(plain_steps, "ADVANTAGE_EPSILON", 1.0)
    found, _, _ = run("GRPO" + LOOP)
    with pytest.raises(AssertionError, match=r"gradient_norm is .* computes something else"):
        compared("GRPO", runs["GRPO"][0], found)


def test_rows_are_medians_beside_the_loop_and_make_the_table():
    def once(seconds, loss):
        values = {"peak_mb": 7000.0, "outside": 0.01, "loss": loss, "reward": 0.5, "gradient_norm": 2.0}
        return {"seconds": seconds, **values}

    measures = {
        "ReFL": [once(3.0, 1.0), once(1.0, 1.0), once(2.0, 1.0)],
        "ReFL, plain loop": [once(4.0, 1.0), once(4.0, 1.0005), once(9.0, 1.0)],
        "GRPO": [once(3.0, 0.0)] * 3,
        "GRPO, plain loop": [once(2.0, 1e-9)] * 3,
    }
    rows = rows_of(measures)
    assert [row["step"] for row in rows] == list(NAMES)
    assert [row["seconds"] for row in rows] == [2.0, 4.0, 3.0, 2.0]
    assert [rows[0]["of_loop"], rows[2]["of_loop"]] == [0.5, 1.5]
    assert rows[0]["differences"] == {"loss": pytest.approx(5e-4, rel=1e-3), "gradient_norm": 0.0}
    result = {"resolution": 512, "steps": 2, "group": 2, "rounds": 3, "rows": rows}
    environment = {"device": "a CPU", "threads": 1, "versions": {}, "commit": "abc", "date": "2026-01-01"}
    lines = training_tables.real_size_step({**result, "environment": environment}).splitlines()
    assert lines[4] == "| ReFL | 2.0 | 50 % | 7000 | 1.0 % | 1 | 0.5 | 2 | 0.0005 |"
    assert lines[5] == "| ReFL, plain loop | 4.0 | | 7000 | 1.0 % | 1 | 0.5 | 2 | |"
    measures["ReFL, plain loop"][2] = once(9.0, 1.1)
    with pytest.raises(
        AssertionError, match=r"ReFL: loss is 1\.0, in the plain loop 1\.1; they differ by 0\.09"
    ):
        rows_of(measures)


def test_the_command_measures_in_turns_and_writes_one_file(monkeypatch, tmp_path):
    asked = []

    def answer(command, **_):
        asked.append(command[-1])
        found = {"seconds": 1.0, "peak_mb": 1.0, "outside": 0.0, "loss": 1.0, "reward": 1.0}
        line = json.dumps({**found, "gradient_norm": 1.0})
        return subprocess.CompletedProcess(command, 0, f"a warning\n{line}\n")

    monkeypatch.setattr(real_size_step, "subprocess", SimpleNamespace(run=answer, PIPE=subprocess.PIPE))
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["real_size_step", "--rounds", "2", "--allow-changes"])
    real_size_step.main()
    assert asked == [*NAMES, *NAMES]
    result = json.loads((tmp_path / "real-size-step-cpu.json").read_text())
    assert [row["step"] for row in result["rows"]] == list(NAMES)
    assert result["rows"][0]["seconds_of_rounds"] == [1.0, 1.0]
    assert training_tables.real_size_step(result).count("| 100 % |") == 2


def test_intervals_that_overlap_count_once():
    assert union([]) == 0
    assert union([(5, 6), (0, 3), (1, 2), (2, 4)]) == 5


def test_only_modules_backward_passes_and_the_optimizer_are_inside(monkeypatch):
    """A clock that counts its readings: each part of the step is one tick away from the next."""
    layer, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    clock = Clock(CPU, [layer], optimizer)
    ticks = iter(range(100))
    monkeypatch.setattr(clock, "_now", lambda: float(next(ticks)))

    def step():
        other(torch.ones(2))
        layer(torch.ones(2)).sum().backward()
        optimizer.step()

    assert clock.measure(step) == (7.0, pytest.approx(4 / 7))
    assert torch.Tensor.backward.__name__ == "backward"
