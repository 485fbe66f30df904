"""ReFL: fine-tuning by the gradient of a reward; DRaFT and AlignProp are settings of the same objective.

ReFL: Xu et al. 2023, arXiv:2304.05977, algorithm 1. DRaFT-K: Clark et al. 2023, arXiv:2309.17400. AlignProp:
Prabhudesai et al. 2023, arXiv:2310.03739.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch.utils.checkpoint import checkpoint

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.data.seeding import noise_for_samples, random_generator, rows_for_samples
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.objectives.sft import Pretraining, with_pretraining
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.sampling.base import Noise
from imagereward.tuning.sampling.diffusion import Diffusion


class Gradient(Config):
    """The sampling steps that carry gradient, and the image that is scored after them; N steps in all.

    one     one step, drawn uniformly from first_step..last_step. The clean image that it predicts is scored
            (ReFL)
    last    the last `count` steps. The final sample is scored (DRaFT-K)
    suffix  the last K steps. The final sample is scored (AlignProp). With draw="uniform", K is drawn from
            1..N. With draw="normal", the index of the first of the K steps is drawn from normal(mean, std^2),
            truncated to a whole number, until it is in 1..N - 1; published: mean 42, std 5, N = 50
    """

    mode: Literal["one", "last", "suffix"] = Field(
        "one",
        description="one of first_step..last_step (ReFL), the last `count` (DRaFT), or a random number of "
        "last steps (AlignProp)",
    )
    first_step: int = Field(30, ge=0, description='index of the earliest step, for mode="one"')
    last_step: int = Field(39, ge=0, description='index of the latest step, for mode="one"')
    count: int = Field(1, ge=1, description='steps with gradient, for mode="last"')
    draw: Literal["uniform", "normal"] = Field(
        "uniform", description='how the first step with gradient is drawn, for mode="suffix"'
    )
    mean: float = Field(
        42.0, description='mean of the index of the first step with gradient, for draw="normal"'
    )
    std: float = Field(
        5.0,
        gt=0,
        description='standard deviation of the index of the first step with gradient, for draw="normal"',
    )
    shared_by: int = Field(
        1,
        ge=1,
        description="micro-batches in a row that draw the same steps; with sharded weights a "
        "multiple of the processes",
    )

    @model_validator(mode="after")
    def _in_order(self):
        if self.first_step > self.last_step:
            raise ValueError(f"first_step={self.first_step} is after last_step={self.last_step}")
        if self.draw == "normal" and self.mode != "suffix":
            raise ValueError(f"draw='normal' with mode={self.mode!r}: it is for mode='suffix'")
        return self

    def check(self, steps: int) -> None:
        """Raises InputError if a grid of `steps` sampling steps lacks the steps of these settings."""
        if self.mode == "one" and self.last_step >= steps:
            raise InputError(
                f"gradient.last_step={self.last_step}: the last of {steps} sampling steps is {steps - 1}"
            )
        if self.mode == "last" and self.count > steps:
            raise InputError(f"gradient.count={self.count}: expected at most the {steps} sampling steps")
        if self.draw == "normal" and not 1 - 3 * self.std < self.mean < steps + 3 * self.std:
            raise InputError(
                f"gradient.mean={self.mean}, std={self.std}: expected a mean within three deviations of the "
                f"{steps} sampling steps"
            )
        if self.draw == "normal" and steps < 2:
            raise InputError(
                f"steps={steps}: gradient.draw='normal' never chooses the first step; expected at least 2"
            )


class ReFLConfig(GeneratorConfig):
    """The config of ReFL, DRaFT and AlignProp: fine-tuning by the gradient of a reward."""

    objective: Literal["refl"] = Field("refl", description="the gradient of a differentiable reward")
    prompts: str = Field(
        description="prompts: a .txt file with one on each line; a table (.jsonl, .json, .csv, .tsv or "
        ".parquet); or a folder with originals/, masks/ and prompts/"
    )
    eta: float = Field(
        0.0,
        ge=0,
        le=1,
        description="noise of the sampling steps, diffusion models only: 0 is DDIM, deterministic; 1 has "
        "DDPM's variance, as the public scripts of ReFL and AlignProp",
    )
    gradient: Gradient = Field(Gradient(), description="the sampling steps that carry gradient")
    target: float | None = Field(
        2.0, description="rewards above it have no gradient, on the reward's own scale; null: all have"
    )
    reward_loss_weight: float = Field(1e-3, gt=0, description="factor on the reward's loss")
    reference_weight: float = Field(
        0.0, ge=0, description="weight of the distance to the base model's predictions"
    )
    pretraining: Pretraining | None = Field(
        None, description="noise-prediction loss on (prompt, image) pairs beside the reward; null: none"
    )

    def check_processes(self, ranks: int, sharded: bool) -> None:
        super().check_processes(ranks, sharded)
        if self.pretraining is not None:
            self.pretraining.check_processes(self.micro_batch, ranks, sharded)
        mode = self.gradient.mode
        drawn, several = mode != "last", mode == "suffix" or (mode == "last" and self.gradient.count > 1)
        if sharded and drawn and self.gradient.shared_by % ranks:
            raise InputError(
                f"gradient.shared_by={self.gradient.shared_by}: with sharded weights all {ranks} processes "
                f"take the same steps; expected a multiple of {ranks}"
            )
        if sharded and several and self.reference_weight:
            raise InputError(
                f"reference_weight={self.reference_weight}: with sharded weights the distance to "
                'the reference is taken over one step; expected gradient.mode="one", or "last" with count=1'
            )

    def make(self, job: ObjectiveContext) -> Any:
        rewards = job.rewards_for("ReFL")
        self.gradient.check(self.steps)
        if self.eta and not isinstance(job.denoiser.dynamics(self.steps), Diffusion):
            raise InputError(
                f"eta={self.eta}: this is a flow model, which takes no eta; expected eta=0, or a "
                "recipe of its own family, such as sd3/refl"
            )
        rewards.check_differentiable(job.denoiser.resolution, job.rows[0])
        return with_pretraining(self.pretraining, self, job, ReFL(self, job.rows, rewards))


class Span(NamedTuple):
    """The steps begin..end - 1 carry gradient.

    predicted  True: the clean image that the last of them predicts is scored; False: the latents after it
    """

    begin: int
    end: int
    predicted: bool


def draw_span(gradient: Gradient, steps: int, source: torch.Generator) -> Span:
    """The steps with gradient of one trajectory, on a grid of `steps`; `source` draws random numbers."""

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=source))

    if gradient.mode == "one":
        at = between(gradient.first_step, gradient.last_step)
        return Span(at, at + 1, True)
    if gradient.draw == "normal":
        return Span(_drawn_begin(gradient, steps, source), steps, False)
    count = gradient.count if gradient.mode == "last" else between(1, steps)
    return Span(steps - count, steps, False)


def _drawn_begin(gradient: Gradient, steps: int, source: torch.Generator) -> int:
    """The index 1..steps - 1 of the first step of a suffix, from a truncated normal(mean, std^2)."""
    while True:
        begin = int(gradient.mean + gradient.std * float(torch.randn((), generator=source)))
        if 1 <= begin < steps:
            return begin


def hinge(rewards_B: torch.Tensor, target: float | None) -> torch.Tensor:
    """relu(target - reward), [B], which has no gradient above the target; without a target, -reward."""
    return -rewards_B if target is None else torch.relu(target - rewards_B)


def denoise(
    policy: Policy,
    noise,
    condition,
    span: Span,
    *,
    eta: float = 0.0,
    fresh: Callable[[int], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents to score [B, C, h, w], distance to the reference [B]), with gradient through the span only.

    noise  the latents [B, C, h, w] at the start of sampling, standard normal
    span   the steps that carry gradient
    eta    noise of the steps, diffusion models only; 0 is deterministic
    fresh  gives a step's standard normal noise [B, C, h, w] by the step's index; needed where eta > 0

    distance = mean over elements and the span's steps of (prediction - reference's prediction)^2. It is the
    KL between their steps without the factors that do not depend on the weights. 0 for a policy without the
    snapshot "reference".
    """
    dynamics, x = policy.dynamics, noise
    if eta:
        dynamics = dynamics.with_noise(Noise(kind="ddim", level=eta))

    def noise_at(i: int) -> torch.Tensor | None:
        return fresh(i) if eta and fresh is not None else None

    rows = torch.zeros(len(x), dtype=torch.long, device=x.device)
    with torch.no_grad():
        for i in range(span.begin):
            x = dynamics.step(x, policy.predict(x, rows + i, condition), rows + i, noise_at(i)).next

    def one_step(x, i, drawn):
        prediction = policy.predict(x, rows + i, condition)
        away = x.new_zeros(len(x))
        if "reference" in policy.snapshots:
            with policy.using("reference"):
                base = policy.predict(x, rows + i, condition)
            away = (prediction - base).square().flatten(1).mean(1)
        step = dynamics.step(x, prediction, rows + i, drawn)
        return (step.x0 if span.predicted and i == span.end - 1 else step.next), away

    count, away = span.end - span.begin, x.new_zeros(len(x))
    for i in range(span.begin, span.end):
        # The backward pass recomputes each step's activations, so memory does not grow with the steps.
        once = one_step if count == 1 else partial(checkpoint, one_step, use_reentrant=False)
        x, more = once(x, i, noise_at(i))
        away = away + more / count
    return x, away


class ReFL(Objective):
    """Denoises, decodes and scores images with gradient, and makes their rewards higher.

    The loss of a sample is
        L = reward_loss_weight * hinge(reward) + reference_weight * distance to the reference
    with hinge(r) = relu(target - r), or -r without a target; for the distance see `denoise`.
    """

    def __init__(self, config: ReFLConfig, rows: Sequence[Row], rewards: Rewards):
        self.config, self.rows, self.rewards = config, rows, rewards

    @property
    def snapshots(self) -> tuple[str, ...]:
        """("reference",) if the config weighs the distance to it, else none."""
        return ("reference",) if self.config.reference_weight > 0 else ()

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, with this process's chunks as its minibatches."""
        yield plan.mine

    def loss(self, policy: Policy, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The chunk's mean loss; metrics: `reward`, `reward/NAME`, and `distance` with a reference."""
        config, denoiser, rows = self.config, policy.denoiser, self._rows(chunk)
        gradient, shape, device = config.gradient, denoiser.autoencoder.shape, policy.device
        shared = random_generator(config.seed, "span", chunk.update, chunk.index // gradient.shared_by)
        span = draw_span(gradient, policy.dynamics.steps, shared)
        noise = noise_for_samples(chunk.samples, shape, config.seed).to(device)

        def fresh(i: int) -> torch.Tensor:
            return noise_for_samples(chunk.samples, shape, config.seed, f"step {i}").to(device)

        latents, away = denoise(policy, noise, denoiser.encode(rows), span, eta=config.eta, fresh=fresh)
        rewards, parts = self.rewards(denoiser.autoencoder.decode(latents), rows)
        loss = config.reward_loss_weight * hinge(rewards, config.target).mean()
        loss = loss + config.reference_weight * away.mean()
        metrics = {"reward": rewards, **{f"reward/{name}": values for name, values in parts.items()}}
        if "reference" in policy.snapshots:
            metrics["distance"] = away
        return loss, {name: values.detach().float().mean() for name, values in metrics.items()}

    def prompts_in(self, chunk: Chunk) -> list[str]:
        """The chunk's prompts."""
        return prompts_of(self._rows(chunk))

    def _rows(self, chunk: Chunk) -> list[Row]:
        places = rows_for_samples(chunk.samples, len(self.rows), self.config.seed)
        return [self.rows[place] for place in places]
