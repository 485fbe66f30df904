"""Flow dynamics: against diffusers' scheduler, torch.distributions, published formulas and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_dynamics import scheduler as ddim_scheduler

from imagereward.errors import IgnoredOptionWarning, InputError
from imagereward.tuning.sampling.base import Noise, kl_divergence, log_probability
from imagereward.tuning.sampling.diffusion import Diffusion
from imagereward.tuning.sampling.flow import Flow

STOCHASTIC = {
    "flow_grpo": Noise(kind="flow_grpo", level=0.7),
    "constant": Noise(kind="constant", level=0.3),
    "table": Noise(kind="table", table=(0.9, 0.1, 0.4, 0.2, 0.3, 0.5, 0.2, 0.6, 0.1, 0.05)),
    "cps": Noise(kind="cps", level=0.8),
}
STEPS = 10
DATA_STD = 0.6


def scheduler(**options):
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **options})


def flow(steps=STEPS, **options):
    return Flow.like(scheduler(**options), steps, 16)


def tensors(count=3, dtype=torch.float32, rows=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 4, 6, 6, generator=generator, dtype=dtype) for _ in range(count)]


def each_normal(step):
    normal = torch.distributions.Normal(step.mean, step.std.expand_as(step.mean))
    return normal.log_prob(step.next).mean((1, 2, 3))


# Grids.


def test_a_static_shift_is_that_of_the_formula():
    # diffusers spaces times from the largest to the smallest *shifted* one, then shifts.
    last = 3 * 0.001 / (1 + 2 * 0.001)
    times = np.linspace(1, last, STEPS)
    expected = 3 * times / (1 + 2 * times)
    np.testing.assert_allclose(flow().sigmas_N1[:-1], expected, rtol=1e-5)
    assert flow().sigmas_N1[-1] == 0


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.5 + 0.65 * 768 / 3840)])
def test_a_dynamic_shift_follows_the_number_of_patches(tokens, mu):
    theirs = scheduler(shift=1.0, use_dynamic_shifting=True)
    times = np.linspace(1, 1 / STEPS, STEPS)
    expected = math.exp(mu) / (math.exp(mu) + (1 / times - 1))
    ours = Flow.like(theirs, STEPS, tokens, even=True)
    np.testing.assert_allclose(ours.sigmas_N1[:-1], expected, rtol=1e-5)
    theirs.set_timesteps(sigmas=times, mu=mu)
    torch.testing.assert_close(ours.sigmas_N1, theirs.sigmas)
    torch.testing.assert_close(ours.model_time(torch.arange(STEPS)), theirs.timesteps)


@pytest.mark.parametrize(
    "options", [{}, {"shift": 1.0}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1}]
)
def test_the_grid_is_the_schedulers(options):
    theirs = scheduler(**options)
    theirs.set_timesteps(7)
    ours = Flow.like(theirs, 7, 16)
    assert torch.equal(ours.sigmas_N1, theirs.sigmas)
    torch.testing.assert_close(ours.model_time(torch.arange(7)), theirs.timesteps)


@pytest.mark.parametrize("steps", [0, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(InputError, match=f"steps={steps}"):
        flow(steps)


# Steps.


@pytest.mark.parametrize("i", [0, 4, 9])
def test_an_ode_step_equals_diffusers(i):
    x, velocity, noise = tensors()
    theirs = scheduler()
    theirs.set_timesteps(STEPS)
    expected = theirs.step(velocity, theirs.timesteps[i], x).prev_sample
    step = flow().step(x, velocity, torch.tensor([i, i]), noise=noise)
    assert torch.equal(step.next, expected)
    assert step.logp is None


@pytest.mark.parametrize("i", [0, 3, 9])
def test_an_sde_step_has_the_published_mean_and_deviation(i):
    x, v, _ = tensors(dtype=torch.float64)
    dynamics = flow()
    sigma, after = (float(dynamics.sigmas_N1[at]) for at in (i, i + 1))
    dt, a = after - sigma, 0.7
    below = sigma if sigma < 1 else float(dynamics.sigmas_N1[1])
    sigma_t = a * math.sqrt(sigma / (1 - below))
    step = dynamics.with_noise(STOCHASTIC["flow_grpo"]).step(x, v, torch.tensor([i, i]))
    # The velocity and the score that it implies, along the time-reversed equation.
    score = -(x + (1 - sigma) * v) / sigma
    torch.testing.assert_close(step.mean, x + (v - sigma_t**2 / 2 * score) * dt, atol=1e-6, rtol=1e-6)
    assert step.std.flatten().tolist() == pytest.approx([sigma_t * math.sqrt(-dt)] * 2, rel=1e-6)
    torch.testing.assert_close(step.x0, x - sigma * v)


def test_a_constant_and_a_table_are_taken_as_they_are():
    x, v, _ = tensors()
    for name, value in (("constant", 0.3), ("table", 0.4)):
        step = flow().with_noise(STOCHASTIC[name]).step(x, v, torch.tensor([2, 2]))
        dt = float(flow().sigmas_N1[3] - flow().sigmas_N1[2])
        assert step.std.flatten().tolist() == pytest.approx([value * math.sqrt(-dt)] * 2)


@pytest.mark.parametrize("i", [0, 5, 9])
def test_cps_has_its_published_coefficients(i):
    x, v, _ = tensors(dtype=torch.float64)
    dynamics = flow().with_noise(STOCHASTIC["cps"])
    sigma, after = (float(dynamics.sigmas_N1[at]) for at in (i, i + 1))
    step = dynamics.step(x, v, torch.tensor([i, i]))
    std = after * math.sin(0.8 * math.pi / 2)
    x0, x1 = x - sigma * v, x + (1 - sigma) * v
    torch.testing.assert_close(step.mean, x0 * (1 - after) + x1 * math.sqrt(after**2 - std**2))
    assert step.std.flatten().tolist() == pytest.approx([std] * 2)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_of_zero_gives_the_eulers_step(name):
    x, v, noise = tensors()
    kind = STOCHASTIC[name].kind
    none = Noise(kind=kind, table=(0.0,) * STEPS) if kind == "table" else Noise(kind=kind, level=0)
    for i in (0, 6, 9):
        rows = torch.tensor([i, i])
        expected = flow().step(x, v, rows).next
        step = flow().with_noise(none).step(x, v, rows, noise=noise)
        torch.testing.assert_close(step.next, expected, atol=1e-5, rtol=1e-5)
        assert step.logp is None


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_that_vanishes_approaches_the_eulers_step(name):
    x, v, noise = tensors()
    kind, rows = STOCHASTIC[name].kind, torch.tensor([4, 4])
    away = []
    for level in (1e-1, 1e-2, 1e-3):
        small = Noise(kind=kind, table=(level,) * STEPS) if kind == "table" else Noise(kind=kind, level=level)
        step = flow().with_noise(small).step(x, v, rows, noise=noise)
        away.append(float((step.next - flow().step(x, v, rows).next).abs().max()))
    assert away[0] > 5 * away[1] > 25 * away[2]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_without_noise_it_is_the_ode_again(name):
    x, v, _ = tensors()
    rows = torch.tensor([1, 7])
    expected = flow().step(x, v, rows).next
    assert torch.equal(flow().with_noise(STOCHASTIC[name]).without_noise().step(x, v, rows).next, expected)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_rows_at_different_steps_equal_each_alone(name):
    x, v, noise = tensors()
    dynamics = flow().with_noise(STOCHASTIC[name])
    together = dynamics.step(x, v, torch.tensor([2, 8]), noise=noise)
    for row, i in enumerate((2, 8)):
        one = slice(row, row + 1)
        alone = dynamics.step(x[one], v[one], torch.tensor([i]), noise=noise[one])
        assert torch.equal(together.next[one], alone.next)
        assert torch.equal(together.logp[one], alone.logp)


def test_half_precision_is_computed_in_float32_and_double_in_double():
    x, v, noise = tensors()
    dynamics, rows = flow().with_noise(STOCHASTIC["flow_grpo"]), torch.tensor([2, 8])
    assert dynamics.step(x.bfloat16(), v.bfloat16(), rows, noise=noise).next.dtype == torch.float32
    assert dynamics.step(x.double(), v.double(), rows, noise=noise.double()).logp.dtype == torch.float64


# Log-probabilities.


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_log_probability_is_the_normal_one(name):
    x, v, noise = tensors()
    step = flow().with_noise(STOCHASTIC[name]).step(x, v, torch.tensor([2, 8]), noise=noise)
    torch.testing.assert_close(step.logp, each_normal(step))


def velocity_of(x, i_B, scale):
    """A stand-in for a network: elementwise, so that batches of any size give the same numbers."""
    return scale * torch.sin(x) + (0.1 * i_B + 0.05).view(-1, 1, 1, 1)


def walked(dynamics, x, noises, storage):
    """A trajectory as it is stored, and its log-probabilities [steps, B]."""
    x = x if storage is None else x.to(storage)
    kept, logps = [x], []
    for i in range(dynamics.steps):
        rows = torch.full((len(x),), i)
        step = dynamics.step(x, velocity_of(x.float(), rows, 0.7), rows, noise=noises[i])
        x = step.next if storage is None else step.next.to(storage)
        kept.append(x)
        logps.append(step.logp)
    return kept, logps


@pytest.mark.parametrize("storage", [None, torch.bfloat16])
@pytest.mark.parametrize("name", [*STOCHASTIC, "ddim"])
def test_the_ratio_to_oneself_is_one(name, storage):
    if name == "ddim":
        dynamics = Diffusion.like(ddim_scheduler(), STEPS).with_noise(Noise(kind="ddim"), storage)
    else:
        dynamics = flow().with_noise(STOCHASTIC[name], storage)
    x, *noises = tensors(1 + STEPS, rows=3)
    kept, logps = walked(dynamics, x, noises, storage)
    for i in range(STEPS):
        if logps[i] is None:  # CPS's last step
            assert (name, i) == ("cps", STEPS - 1)
            continue
        # All samples of a step with others of the next: a batch of its own.
        at = torch.tensor([i] * 3 + [min(i + 1, STEPS - 1)])
        before = torch.cat([kept[i], kept[min(i + 1, STEPS - 1)][:1]])
        after = torch.cat([kept[i + 1], kept[min(i + 2, STEPS)][:1]])
        again = dynamics.step(before, velocity_of(before.float(), at, 0.7), at, next=after).logp[:3]
        ratio = (again - logps[i]).exp()
        assert (ratio == 1).all() if storage is None else (ratio - 1).abs().max() <= 1e-6


def test_without_rounding_half_precision_storage_would_change_the_ratio():
    x, *noises = tensors(1 + STEPS)
    dynamics = flow().with_noise(STOCHASTIC["flow_grpo"])
    kept, logps = walked(dynamics, x, noises, torch.bfloat16)
    rows = torch.full((2,), 3)
    again = dynamics.step(kept[3], velocity_of(kept[3].float(), rows, 0.7), rows, next=kept[4]).logp
    assert ((again - logps[3]).exp() - 1).abs().max() > 1e-5


def test_rows_without_noise_have_no_number_among_rows_with():
    x, v, noise = tensors()
    x.requires_grad_(True)
    window = Noise(kind="table", table=(0.0, 0.5) + (0.0,) * 8)
    step = flow().with_noise(window).step(x, v, torch.tensor([1, 5]), noise=noise)
    assert step.logp[0].isfinite()
    assert step.logp[1].isnan()
    torch.testing.assert_close(step.next[1], flow().step(x, v, torch.tensor([1, 5])).next[1])
    step.logp[0].backward()
    assert x.grad[1].abs().max() == 0
    assert x.grad.isfinite().all()


def test_the_gradient_of_the_log_probability_is_that_of_the_normal():
    x, v, noise = tensors(dtype=torch.float64)
    dynamics, rows = flow().with_noise(STOCHASTIC["flow_grpo"]), torch.tensor([2, 8])
    stored = dynamics.step(x, v, rows, noise=noise).next
    v.requires_grad_(True)
    dynamics.step(x, v, rows, next=stored).logp.sum().backward()
    ours, v.grad = v.grad, None
    each_normal(dynamics.step(x, v, rows, next=stored)).sum().backward()
    torch.testing.assert_close(ours, v.grad)


def test_the_kl_is_that_of_two_normals():
    mean, reference, spread = tensors()
    std = spread.abs()[:, :1, :1, :1] + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(reference, std)).mean((1, 2, 3))
    torch.testing.assert_close(kl_divergence(mean, reference, std), expected)
    assert (kl_divergence(mean, mean, std) == 0).all()


def test_a_log_probability_without_spread_is_no_number():
    x, mean, _ = tensors()
    assert log_probability(x, mean, torch.zeros(2, 1, 1, 1)).isnan().all()


# Data N(0, s^2): the best velocity is linear, and every step's variance is known.


def true_variance(sigma):
    return (1 - sigma) ** 2 * DATA_STD**2 + sigma**2


def best_velocity(sigma):
    """v = c x: the mean of epsilon - x0 given x."""
    return (sigma - (1 - sigma) * DATA_STD**2) / true_variance(sigma)


def factor_and_std(name, sigma, after, sigma_t):
    """The step is x' = factor x + std z, by hand."""
    c, dt = best_velocity(sigma), after - sigma
    if name == "cps":
        std = after * math.sin(0.8 * math.pi / 2)
        return (1 - after) * (1 - sigma * c) + math.sqrt(after**2 - std**2) * (1 + (1 - sigma) * c), std
    drift = sigma_t**2 / (2 * sigma)
    return 1 + drift * dt + c * (1 + drift * (1 - sigma)) * dt, sigma_t * math.sqrt(-dt)


def spread(name, sigmas, i):
    if name == "flow_grpo":
        return 0.7 * math.sqrt(sigmas[i] / (1 - (sigmas[i] if sigmas[i] < 1 else sigmas[1])))
    return (
        {"constant": 0.3, "ode": 0.0, "cps": 0.0}.get(name) if name != "table" else STOCHASTIC[name].table[i]
    )


@pytest.mark.parametrize("name", [*STOCHASTIC, "ode"])
def test_the_recursion_of_a_normal_is_exact_step_by_step(name):
    dynamics = flow() if name == "ode" else flow().with_noise(STOCHASTIC[name])
    sigmas = dynamics.sigmas_N1.double().tolist()
    # Four samples and four noises whose empirical moments are exactly those of independent normals.
    x0, z = torch.tensor([1.0, 1, -1, -1]).double(), torch.tensor([1.0, -1, 1, -1]).double()
    variance = 1.0
    for i in range(STEPS):
        factor, std = factor_and_std(name, sigmas[i], sigmas[i + 1], spread(name, sigmas, i))
        x = (math.sqrt(variance) * x0).view(4, 1)
        step = dynamics.step(x, best_velocity(sigmas[i]) * x, torch.full((4,), i), noise=z.view(4, 1))
        variance = factor**2 * variance + std**2
        assert float(step.next.square().mean()) == pytest.approx(variance, rel=1e-6)
        assert step.std.flatten().tolist() == pytest.approx([std] * 4, abs=1e-7)
    assert 0.1 < math.sqrt(variance) / DATA_STD < 3


@pytest.mark.parametrize("name", ["flow_grpo", "constant", "ode"])
def test_marginals_converge_with_the_step_from_sigma_point_nine(name):
    """Half the step, half the error of the variance at every sigma on the way: first order."""
    errors = []
    for steps in (40, 80, 160, 320):
        sigmas = np.linspace(0.9, 0.05, steps + 1)
        table = [spread(name, sigmas, i) for i in range(steps)]
        dynamics = Flow(torch.tensor(sigmas), transition=flow().transition)
        dynamics = dynamics.with_noise(Noise(kind="table", table=tuple(table)))
        variance, worst = true_variance(0.9), 0.0
        x0, z = torch.tensor([1.0, 1, -1, -1]).double(), torch.tensor([1.0, -1, 1, -1]).double()
        for i in range(steps):
            x = (math.sqrt(variance) * x0).view(4, 1)
            step = dynamics.step(x, best_velocity(sigmas[i]) * x, torch.full((4,), i), noise=z.view(4, 1))
            variance = float(step.next.square().mean())
            worst = max(worst, abs(variance / true_variance(sigmas[i + 1]) - 1))
        errors.append(worst)
    assert errors[-1] < 0.01
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.6


# Training.


def test_the_target_of_a_noised_sample_gives_the_sample_back():
    x0, noise, _ = tensors()
    dynamics, rows = flow(), torch.tensor([0, 6])
    time = dynamics.model_time(rows)
    noised = dynamics.add_noise(x0, noise, time)
    torch.testing.assert_close(dynamics.to_x0(noised, dynamics.target(x0, noise, time), rows), x0)


def test_noise_is_added_as_diffusers_does():
    x0, noise, _ = tensors()
    theirs = scheduler()
    time = theirs.timesteps[[17, 803]]
    torch.testing.assert_close(flow().add_noise(x0, noise, time), theirs.scale_noise(x0, time, noise))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_times_are_logit_normal_and_shifted(shift):
    dynamics = flow(shift=shift)
    times = dynamics.draw_times(20_000, torch.Generator().manual_seed(0))
    sigma = (times / 1000).double()
    assert 0 < float(sigma.min()) < float(sigma.max()) < 1
    even = sigma / (shift - (shift - 1) * sigma)
    logit = torch.log(even / (1 - even))
    assert abs(float(logit.mean())) < 0.03
    assert float(logit.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("kind", "tokens"), [("exponential", 256), ("exponential", 4096), ("linear", 4096)])
def test_training_times_are_shifted_as_the_grid_is(kind, tokens):
    """FLUX's: exp(mu) t / (1 + (exp(mu) - 1) t), with mu .5 at 256 patches and 1.15 at 4096."""
    theirs = scheduler(shift=1.0, use_dynamic_shifting=True, time_shift_type=kind)
    times = Flow.like(theirs, STEPS, tokens, even=True).draw_times(20_000, torch.Generator().manual_seed(0))
    mu = {256: 0.5, 4096: 1.15}[tokens]
    # diffusers' own shift of logit-normal times, quantile by quantile.
    even = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.1, 0.9, 9)).sigmoid()
    expected = torch.tensor([float(theirs.time_shift(mu, 1.0, float(each))) for each in even])
    torch.testing.assert_close(
        (times / 1000).quantile(torch.linspace(0.1, 0.9, 9)), expected, atol=0.01, rtol=0
    )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("shift", "steps"), [(3.0, 16), (1.0, 10), (5.0, 7)])
def test_a_grid_of_its_own_is_that_of_dancegrpo(shift, steps, whole):
    dynamics = flow(steps).on_grid(shift, whole)
    even = np.linspace(1, 0, steps + 1)
    sigmas = shift * even / (1 + (shift - 1) * even)
    np.testing.assert_allclose(dynamics.sigmas_N1, sigmas, rtol=1e-5, atol=1e-7)
    times = dynamics.model_time(torch.arange(steps)).tolist()
    expected = [int(sigma * 1000) if whole else sigma * 1000 for sigma in dynamics.sigmas_N1[:-1]]
    assert times == pytest.approx([float(each) for each in expected], abs=1e-3)
    # The step is between the grid's sigmas, whatever the network is told.
    x, v, _ = tensors()
    moved = dynamics.step(x, v, torch.tensor([2, 2])).next
    torch.testing.assert_close(moved, x + float(sigmas[3] - sigmas[2]) * v, atol=1e-5, rtol=1e-5)


def test_whole_times_leave_the_pipelines_grid():
    assert torch.equal(flow().on_grid(None, True).sigmas_N1, flow().sigmas_N1)


def test_a_stochastic_scheduler_is_said_to_be_taken_without_its_noise():
    with pytest.warns(IgnoredOptionWarning, match="stochastic_sampling=true is ignored"):
        flow(stochastic_sampling=True)


def test_min_snr_is_refused():
    with pytest.raises(InputError, match=r"min_snr_gamma=5\.0: flow models draw"):
        flow().min_snr_weights(torch.tensor([1.0]), 5.0)


# Bad input.


def test_noise_of_another_kind_of_model_is_refused():
    with pytest.raises(InputError, match="this is a flow model, and takes 'flow_grpo'"):
        flow().with_noise(Noise(kind="ddim"))
    with pytest.raises(InputError, match="no flow model, and takes 'ddim'"):
        Diffusion.like(ddim_scheduler(), 10).with_noise(Noise(kind="cps", level=0.5))


def test_a_table_of_another_length_is_refused():
    with pytest.raises(InputError, match=r"noise\.table has 2 values; there are 10 steps"):
        flow().with_noise(Noise(kind="table", table=(0.1, 0.2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "table"}, "a table belongs to kind='table'"),
        ({"kind": "constant", "table": (0.1,)}, "a table belongs to kind='table'"),
        ({"kind": "table", "table": (-0.1,)}, "no value below 0"),
        ({"kind": "cps", "level": 1.5}, "at most 1 of the noise can be new"),
        ({"kind": "constant", "level": -1.0}, "greater than or equal to 0"),
    ],
)
def test_impossible_noise_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Noise(**values)


@pytest.mark.parametrize("shift", [1.82, 2.36, 2.59, 3.0])
def test_noise_is_bounded_where_shifting_rounds_the_first_sigma(shift):
    """Its sigma_t is that of the second step's denominator, whether it is 1 or rounded to beside it."""
    dynamics = flow(steps=4, shift=shift).with_noise(Noise(kind="flow_grpo", level=0.7))
    sigmas = dynamics.sigmas_N1
    expected = 0.7 * (sigmas[0] / (1 - sigmas[1])).sqrt()
    torch.testing.assert_close(dynamics.transition.spreads_N[0], expected)
