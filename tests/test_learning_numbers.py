"""Numbers of a training step against torch's own and closed forms: clipping, decay, rates, LoRA's scale."""

import copy
import json

import pipelines
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from test_grpo import run as run_grpo
from test_refl import STEPS, refl_of
from test_refl import run as run_refl
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters
from imagereward.tuning.trainer.optimizer import learning_rate_at, make_optimizer
from imagereward.tuning.trainer_config import OptimizerConfig


def watched_steps(monkeypatch, seen):
    """Calls `seen` with the parameters at every step of the optimizer, before it is taken."""
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        seen([value for group in self.param_groups for value in group["params"]])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_gradients_are_no_longer_than_the_clip(clip, tmp_path, monkeypatch):
    norms = []

    def norm_of(parameters):
        gradients = [value.grad.flatten() for value in parameters if value.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))

    watched_steps(monkeypatch, norm_of)
    run_refl(tmp_path / "out", max_gradient_norm=clip, reward_loss_weight=1.0, target=None)
    history = json.loads((tmp_path / "out/history.json").read_text())
    before = [entry["gradient_norm"] for entry in history if "gradient_norm" in entry]
    assert len(before) == len(norms) == 2
    assert min(before) > 0.01
    assert norms == pytest.approx([min(clip, each) for each in before], rel=1e-3)


def test_weights_decay_by_rate_times_decay_a_step():
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.2), [weight])
    weight.grad = torch.zeros(2)
    optimizer.step()  # Loshchilov and Hutter 2019: w - rate * decay * w, whatever the gradient
    assert weight.tolist() == pytest.approx([2.0 * 0.98, -3.0 * 0.98])


def test_a_step_is_adamws():
    """Two steps by hand, equations of Loshchilov and Hutter 2019, algorithm 2, with beta2 as configured."""
    rate, decay, beta1, beta2, gradients = 0.01, 0.1, 0.9, 0.95, (0.5, -0.2)
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    config = OptimizerConfig(learning_rate=rate, weight_decay=decay, beta2=beta2)
    optimizer = make_optimizer(config, [weight])
    expected, first, second = 1.0, 0.0, 0.0
    for number, gradient in enumerate(gradients, 1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
        step = first / (1 - beta1**number) / ((second / (1 - beta2**number)) ** 0.5 + 1e-8)
        expected = expected - rate * decay * expected - rate * step
    assert weight.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rates_are_those_of_torchs_schedulers(schedule, warmup):
    updates = 13
    config = OptimizerConfig(updates=updates, learning_rate=0.4, schedule=schedule, warmup_updates=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    rest = updates - warmup
    theirs = (
        CosineAnnealingLR(optimizer, rest)
        if schedule == "cosine"
        else LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=rest)
    )
    rates = []
    for _ in range(rest):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert [learning_rate_at(update, config) for update in range(warmup, updates)] == pytest.approx(rates)
    rising = [learning_rate_at(update, config) for update in range(warmup)]
    assert rising == pytest.approx([0.4 * (update + 1) / 3 for update in range(warmup)])


@pytest.mark.parametrize(("rank", "alpha"), [(2, 8), (4, 4), (4, 2)])
def test_loras_output_is_alpha_over_rank_times_its_product(rank, alpha):
    denoiser = open_denoiser(pipelines.sd(), 16)
    set_trainable(denoiser, LoRA(rank=rank, alpha=alpha))
    name = next(name for name in trainable_parameters(denoiser.network) if "lora_A" in name)
    layer = denoiser.network.get_submodule(name.split(".lora_A")[0])
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up.data, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, down.shape[1], generator=torch.Generator().manual_seed(1))
    expected = layer.base_layer(x) + alpha / rank * (x @ down.T @ up.T)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("unit", "steps"), [("updates", (3, 7)), ("steps", (1, 3, 5, 7))])
def test_averages_move_with_updates_or_with_steps_of_the_optimizer(unit, steps, tmp_path, monkeypatch):
    """Four updates of two steps; an average of every second one is that of diffusers' EMAModel."""
    taken, model, real = [], [], torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        values = [value for group in self.param_groups for value in group["params"]]
        if len(taken) in steps:
            if not model:
                model.append(EMAModel(values, decay=0.3))
            model[0].step(values)
        taken.append(1)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    values = {"updates": 4, "optimizer_steps": 2, "ema": 0.3, "ema_every": 2, "ema_unit": unit}
    run_grpo(tmp_path / "out", **values)
    assert len(taken) == 8
    averaged = load_file(tmp_path / "out/checkpoint-4/weights/ema.safetensors")
    names = [name for name, _ in pipelines.sd3().transformer.named_parameters()]
    expected = dict(zip(names, model[0].shadow_params, strict=True))
    for name, value in averaged.items():
        torch.testing.assert_close(value, expected[name])


def test_a_resumed_average_of_steps_goes_on_counting(tmp_path, monkeypatch):
    values = {"optimizer_steps": 2, "ema": 0.5, "ema_every": 3, "ema_unit": "steps", "save_every": 1}
    run_grpo(tmp_path / "whole", updates=3, **values)
    run_grpo(tmp_path / "parts", updates=1, **values)
    decays, move = [], Snapshot.update
    monkeypatch.setattr(
        Snapshot, "update", lambda self, network, decay: decays.append(decay) or move(self, network, decay)
    )
    run_grpo(tmp_path / "parts", updates=3, resume=True, **values)
    assert decays == [1 / 10, 2 / 11]  # after steps 3 and 6, of which 1 and 2 were before
    whole, parts = (
        load_file(tmp_path / each / "checkpoint-3/weights/ema.safetensors") for each in ("whole", "parts")
    )
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.fixture(scope="module")
def walked():
    """ReFL's step by hand, on diffusers' scheduler and two U-Nets: the pipeline's, and one that has learned.

    What ReFL is given, predictions of both at the last three steps, x0 and the next sample of step 3.
    """
    denoiser = open_denoiser(pipelines.sd(), 16)
    policy = Policy(denoiser, denoiser.dynamics(STEPS), 1.0, {"reference": Snapshot(denoiser.network)})
    learned, base = denoiser.network, copy.deepcopy(denoiser.network)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in learned.parameters():
            value += 0.05 * torch.randn(value.shape, generator=draws)
    chunk = UpdatePlan(0, 2, 2).chunks[0]
    objective = refl_of(batch_size=2)
    words = denoiser.encode(objective._rows(chunk)).tensors["encoder_hidden_states"]
    x = noise_for_samples(chunk.samples, denoiser.autoencoder.shape, 0)
    scheduler, pairs, seen = denoiser.pipeline.scheduler, [], {}
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for number, time in enumerate(scheduler.timesteps):
            mine, theirs = (each(x, time, words, return_dict=False)[0] for each in (learned, base))
            step = scheduler.step(mine, time, x)
            if number >= 3:
                pairs.append((mine, theirs))
            if number == 3:
                seen = {"x0": step.pred_original_sample, "next": step.prev_sample}
            x = step.prev_sample
    return policy, chunk, pairs, seen


def test_the_distance_is_the_mean_square_over_elements_and_steps(walked):
    policy, chunk, pairs, _ = walked
    expected = float(torch.stack([(mine - theirs).square() for mine, theirs in pairs]).mean())
    objective = refl_of(gradient={"mode": "last", "count": 3}, batch_size=2)
    assert expected > 1e-3
    assert float(objective.loss(policy, chunk)[1]["distance"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("reference_weight", [0.25, 7.0])
def test_the_loss_has_the_distance_times_its_weight(walked, reference_weight):
    policy, chunk, pairs, _ = walked
    mine, theirs = pairs[0]
    at_3 = {"mode": "one", "first_step": 3, "last_step": 3}
    with torch.no_grad():
        without, with_it = (
            float(refl_of(gradient=at_3, reference_weight=weight, batch_size=2).loss(policy, chunk)[0])
            for weight in (0.0, reference_weight)
        )
    expected = reference_weight * float((mine - theirs).square().mean())
    assert with_it - without == pytest.approx(expected, rel=1e-3)


def test_what_is_scored_is_the_clean_image_that_the_step_predicts(walked):
    policy, chunk, _, seen = walked
    decode = policy.denoiser.autoencoder.decode
    objective = refl_of(gradient={"mode": "one", "first_step": 3, "last_step": 3}, batch_size=2)
    with torch.no_grad():
        found = float(objective.loss(policy, chunk)[1]["reward"])
        clean, noisy = (float(decode(seen[name]).mean()) for name in ("x0", "next"))
    assert abs(clean - noisy) > 1e-4
    assert found == pytest.approx(clean, abs=1e-5)
