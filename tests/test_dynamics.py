"""Dynamics: against diffusers' own schedulers, torch.distributions and closed forms."""

import math
import warnings
from itertools import pairwise

import pipelines
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from imagereward.errors import IgnoredOptionWarning, InputError
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.sampling.base import log_probability
from imagereward.tuning.sampling.diffusion import Diffusion

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def scheduler(prediction="epsilon", kind=DDIMScheduler, **options):
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction,
        **({"set_alpha_to_one": False} if kind is DDIMScheduler else {}),
        **options,
    )


def tensors(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("i", [0, 7, 19])
def test_a_step_equals_diffusers(prediction, eta, i):
    x, output, noise = tensors()
    theirs = scheduler(prediction)
    theirs.set_timesteps(20)
    expected = theirs.step(output, theirs.timesteps[i], x, eta=eta, variance_noise=noise)
    ours = Diffusion.like(theirs, 20, eta).step(x, output, torch.tensor([i, i]), noise=noise)
    torch.testing.assert_close(ours.next, expected.prev_sample, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.x0, expected.pred_original_sample, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_an_eta_of_one_a_step_equals_ddpms(prediction, spacing):
    x, output, _ = tensors()
    theirs = scheduler(prediction, DDPMScheduler, variance_type="fixed_small", timestep_spacing=spacing)
    theirs.set_timesteps(20)
    dynamics = Diffusion.like(theirs, 20, 1.0)
    assert dynamics.times_N.tolist() == theirs.timesteps.tolist()
    for i in range(19):  # DDPM's last goes to alpha = 1
        expected = theirs.step(output, theirs.timesteps[i], x, generator=torch.Generator().manual_seed(i))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        step = dynamics.step(x, output, torch.tensor([i, i]), noise=noise)
        torch.testing.assert_close(step.next, expected.prev_sample, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(step.x0, expected.pred_original_sample, atol=2e-4, rtol=1e-5)


def test_the_grid_is_the_schedulers():
    theirs = scheduler(timestep_spacing="trailing")
    theirs.set_timesteps(12)
    assert Diffusion.like(theirs, 12).times_N.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [7, 30])  # neither divides 1000
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_step_leads_to_the_next_time_of_the_grid_as_ddpms_and_not_as_ddims(spacing, steps):
    x, output, noise = tensors()
    theirs = scheduler(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    ours = Diffusion.like(theirs, steps, 1.0)
    alphas, times = theirs.alphas_cumprod, theirs.timesteps.tolist()
    i = next(at for at in range(2, steps) if times[at] - times[at + 1] != 1000 // steps)
    time, after = (theirs.timesteps[at] for at in (i, i + 1))
    # Equation 12 of DDIM, by hand, between two times of the grid.
    x0 = (x - (1 - alphas[time]).sqrt() * output) / alphas[time].sqrt()
    variance = (1 - alphas[after]) / (1 - alphas[time]) * (1 - alphas[time] / alphas[after])
    expected = alphas[after].sqrt() * x0 + (1 - alphas[after] - variance).sqrt() * output
    found = ours.step(x, output, torch.tensor([i, i]), noise=noise).next
    torch.testing.assert_close(found, expected + variance.sqrt() * noise, atol=2e-5, rtol=1e-5)
    by_ddim = theirs.step(output, time, x, eta=1.0, variance_noise=noise).prev_sample
    assert (found - by_ddim).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (DDIMScheduler, "clip_sample"),
        (DDPMScheduler, "clip_sample"),
        (DDIMScheduler, "thresholding"),
        (DPMSolverMultistepScheduler, "thresholding"),
        (UniPCMultistepScheduler, "thresholding"),
    ],
)
def test_an_option_that_is_ignored_is_said(kind, option):
    with pytest.warns(IgnoredOptionWarning, match=f"{kind.__name__}'s {option}=true is ignored"):
        Diffusion.like(kind(**{option: True}), 10)


@pytest.mark.parametrize("kind", [PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_a_scheduler_without_such_options_is_taken_in_silence(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", IgnoredOptionWarning)
        Diffusion.like(kind(), 10)


def test_a_pipeline_whose_scheduler_clips_is_said_to():
    pipeline = pipelines.sdxl()
    pipeline.scheduler = DDIMScheduler(clip_sample=True)
    with pytest.warns(IgnoredOptionWarning, match="clip_sample"):
        open_denoiser(pipeline, 16).dynamics(4)


def test_a_prediction_that_is_none_of_these_is_refused():
    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(InputError, match="prediction_type='flow_prediction'"):
        Diffusion.like(theirs, 10)


def test_a_grid_that_begins_beyond_the_last_time_is_refused():
    with pytest.raises(InputError, match="steps=1000 with the scheduler's steps_offset=1"):
        Diffusion.like(scheduler(), 1000)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_rows_at_different_steps_equal_each_alone(prediction):
    x, output, noise = tensors()
    dynamics = Diffusion.like(scheduler(prediction), 10, 1.0)
    together = dynamics.step(x, output, torch.tensor([2, 9]), noise=noise)
    for row, i in enumerate((2, 9)):
        alone = dynamics.step(
            *(part[row : row + 1] for part in (x, output)), torch.tensor([i]), noise[row : row + 1]
        )
        torch.testing.assert_close(together.next[row], alone.next[0])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_of_a_noised_sample_gives_the_sample_back(prediction):
    x0, noise, _ = tensors()
    dynamics = Diffusion.like(scheduler(prediction), 10)
    i = torch.tensor([0, 6])
    time = dynamics.model_time(i)
    noised = dynamics.add_noise(x0, noise, time)
    target = dynamics.target(x0, noise, time)
    torch.testing.assert_close(dynamics.to_x0(noised, target, i), x0, atol=1e-4, rtol=1e-4)


def test_noise_and_velocity_equal_diffusers():
    x0, noise, _ = tensors()
    theirs = scheduler("v_prediction")
    ours = Diffusion.like(theirs, 10)
    time = torch.tensor([17, 803])
    torch.testing.assert_close(ours.add_noise(x0, noise, time), theirs.add_noise(x0, noise, time))
    torch.testing.assert_close(ours.target(x0, noise, time), theirs.get_velocity(x0, noise, time))


def test_the_log_probability_is_the_normal_one_averaged_over_elements():
    x, mean, spread = tensors()
    std = spread.abs() + 0.1
    expected = torch.distributions.Normal(mean, std).log_prob(x).mean((1, 2, 3))
    torch.testing.assert_close(log_probability(x, mean, std), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_log_probability_of_a_step_is_that_of_what_it_drew(eta, prediction):
    x, output, noise = tensors()
    dynamics = Diffusion.like(scheduler(prediction), 10, eta)
    for i in range(10):
        step = dynamics.step(x, output, torch.tensor([i, (i + 3) % 10]), noise=noise)
        normal = torch.distributions.Normal(step.mean, step.std)
        torch.testing.assert_close(step.logp, normal.log_prob(step.next).mean((1, 2, 3)))


def test_a_stored_next_sample_is_scored_as_it_was_when_it_was_drawn():
    x, output, noise = tensors()
    dynamics, i = Diffusion.like(scheduler(), 10, 1.0), torch.tensor([3, 5])
    drawn = dynamics.step(x, output, i, noise=noise)
    again = dynamics.step(x, output, i, next=drawn.next)
    assert torch.equal(drawn.logp, again.logp)


def test_deterministic_steps_have_no_log_probability():
    x, output, noise = tensors()
    step = Diffusion.like(scheduler(), 10, 0.0).step(x, output, torch.tensor([3, 5]), noise=noise)
    assert step.logp is None
    assert torch.equal(step.next, step.mean)


def test_half_precision_is_computed_in_float32():
    x, output, noise = tensors()
    dynamics, i = Diffusion.like(scheduler(), 10, 1.0), torch.tensor([3, 5])
    assert dynamics.step(x.half(), output.half(), i, noise=noise).next.dtype == torch.float32


@pytest.mark.parametrize("steps", [0, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(InputError, match=f"steps={steps}"):
        Diffusion.like(scheduler(), steps)


# Data N(mean, std^2), each element with its own: the best prediction is affine, every step's moments known.


def best_epsilon(x, alpha, mean, std):
    """The noise's mean given x."""
    return math.sqrt(1 - alpha) * (x - math.sqrt(alpha) * mean) / (alpha * std**2 + 1 - alpha)


def next_moments(moments, alpha, after, eta, mean, std):
    """What becomes of x's (mean, variance), by hand: x - sqrt(alpha) mean is part data, part noise."""
    spread = eta * math.sqrt((1 - after) / (1 - alpha) * (1 - alpha / after))
    data, noise = math.sqrt(after * alpha) * std**2, math.sqrt((1 - after - spread**2) * (1 - alpha))
    factor = (data + noise) / (alpha * std**2 + 1 - alpha)
    away = moments[0] - math.sqrt(alpha) * mean
    return math.sqrt(after) * mean + factor * away, factor**2 * moments[1] + spread**2


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_recursion_of_a_normal_is_exact_step_by_step(eta):
    dynamics = Diffusion.like(scheduler(), 50, eta)
    alphas = [*dynamics.alphas_T[dynamics.times_N].tolist(), dynamics.final_alpha]
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 4, 3, 3, generator=draw, dtype=torch.float64)
    std = torch.rand(1, 4, 3, 3, generator=draw, dtype=torch.float64) + 0.2
    ours = expected = torch.zeros_like(mean), torch.ones_like(mean)
    for i, (alpha, after) in enumerate(pairwise(alphas)):
        steps = [
            dynamics.step(x, best_epsilon(x, alpha, mean, std), torch.tensor([i]))
            for x in (ours[0], ours[0] + 1)
        ]
        slope = steps[1].mean - steps[0].mean
        ours = steps[0].mean, slope**2 * ours[1] + steps[0].std ** 2
        expected = next_moments(expected, alpha, after, eta, mean, std)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert (ours[0] - mean).abs().max() < 0.2  # 50 steps come near the data
    assert ((ours[1] / std**2 - 0.85).abs() < 0.25).all()
