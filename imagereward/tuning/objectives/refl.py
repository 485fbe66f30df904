"""Fine-tuning by the gradient of a reward: ReFL, DRaFT and AlignProp are three settings of one objective.

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
from imagereward.tuning.objectives.sft import PairsConfig, sft_on
from imagereward.tuning.objectives.weighted import Weighted
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.sampling.base import Noise
from imagereward.tuning.sampling.diffusion import Diffusion


class Gradient(Config):
    """Which steps of a trajectory carry gradient, and what is scored after them.

    one     one step m, drawn from first..last; scored is the clean image that it predicts (ReFL)
    last    the last `count` steps; scored is the final sample (DRaFT-K)
    suffix  the last K steps; scored is the final sample (AlignProp). K is drawn from 1..all; with
            `draw` = "normal" the first of them is drawn instead: its index is normal(mean, std), cut to a
            whole number, drawn again until it is in 1..all - 1. As published: 42 and 5, of 50 steps
    """

    steps: Literal["one", "last", "suffix"] = Field(
        "one",
        description="one step of first..last (ReFL), the last `count` (DRaFT), a random number (AlignProp)",
    )
    first: int = Field(30, ge=0, description='index of the earliest step, for steps="one"')
    last: int = Field(39, ge=0, description='index of the latest step, for steps="one"')
    count: int = Field(1, ge=1, description='steps with gradient, for steps="last"')
    draw: Literal["uniform", "normal"] = Field(
        "uniform", description='how the first step with gradient is drawn, for steps="suffix"'
    )
    mean: float = Field(42.0, description='mean of the index of that step, for draw="normal"')
    std: float = Field(5.0, gt=0, description='standard deviation of that index, for draw="normal"')
    shared_by: int = Field(
        1, ge=1, description="chunks that draw the same steps; when weights are sharded, all processes must"
    )

    @model_validator(mode="after")
    def _in_order(self):
        if self.first > self.last:
            raise ValueError(f"first={self.first} is after last={self.last}")
        if self.draw == "normal" and self.steps != "suffix":
            raise ValueError(f"draw='normal' with steps={self.steps!r}: it is for steps='suffix'")
        return self

    def check(self, steps: int) -> None:
        """Raises InputError if a grid of so many steps does not have these."""
        if self.steps == "one" and self.last >= steps:
            raise InputError(f"gradient.last={self.last}: the last of {steps} sampling steps is {steps - 1}")
        if self.steps == "last" and self.count > steps:
            raise InputError(f"gradient.count={self.count}: there are {steps} sampling steps")
        if self.draw == "normal" and not 1 - 3 * self.std < self.mean < steps + 3 * self.std:
            raise InputError(
                f"gradient.mean={self.mean}, std={self.std}: expected a mean within three deviations of the "
                f"{steps} sampling steps"
            )
        if self.draw == "normal" and steps < 2:
            raise InputError(
                "gradient.draw='normal' leaves the first step without gradient: steps of 2 or more"
            )


class Pretraining(PairsConfig):
    """The pretraining loss beside the reward."""

    weight: float = Field(1.0, gt=0, description="weight of this loss in the sum")
    batch_size: int = Field(8, ge=1, description="samples in an update, over all processes")


class ReFLConfig(GeneratorConfig):
    """Fine-tuning by the gradient of a reward."""

    objective: Literal["refl"] = Field("refl", description="the gradient of a differentiable reward")
    prompts: str = Field(description="file of prompts: .json, .jsonl, or text with one a line")
    eta: float = Field(
        0.0,
        ge=0,
        description="noise of the sampling steps, diffusion models only: 0 is DDIM, deterministic; 1 has "
        "DDPM's variance, as the public scripts of ReFL and AlignProp",
    )
    gradient: Gradient = Field(Gradient(), description="the sampling steps that carry gradient")
    target: float | None = Field(
        2.0, description="rewards above it have no gradient, on the reward's own scale; null: all have"
    )
    reward_loss_weight: float = Field(1e-3, gt=0, description="factor of the reward's loss")
    reference_weight: float = Field(
        0.0, ge=0, description="weight of the distance to the base model's predictions"
    )
    pretraining: Pretraining | None = Field(
        None, description="noise-prediction loss on (prompt, image) pairs beside the reward; null: none"
    )

    def check_processes(self, ranks: int, sharded: bool) -> None:
        super().check_processes(ranks, sharded)
        drawn = self.gradient.steps != "last"
        if sharded and drawn and self.gradient.shared_by % ranks:
            raise InputError(
                f"gradient.shared_by={self.gradient.shared_by}: with sharded weights all {ranks} processes "
                f"take the same steps; expected a multiple of {ranks}"
            )

    def make(self, job: ObjectiveContext) -> Any:
        rewards = job.rewards_for("ReFL")
        self.gradient.check(self.steps)
        if self.eta and not isinstance(job.denoiser.dynamics(self.steps), Diffusion):
            raise InputError(
                f"eta={self.eta}: this is a flow model, whose steps have no such noise; expected eta=0, or a "
                "recipe of its own family, such as sd3/refl"
            )
        rewards.check_differentiable(job.denoiser.resolution, job.rows[0])
        refl = ReFL(self, job.rows, rewards)
        part = self.pretraining
        if part is None:
            return refl
        beside = sft_on(part, self, job, part.batch_size)
        return Weighted({"refl": (1.0, refl), "pretraining": (part.weight, beside)})


class Span(NamedTuple):
    """Steps begin..end-1 carry gradient; `predicted`: scored is the clean image the last of them predicts."""

    begin: int
    end: int
    predicted: bool


def draw_span(gradient: Gradient, steps: int, source: torch.Generator) -> Span:
    """One trajectory's span, on a grid of so many steps."""

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=source))

    if gradient.steps == "one":
        at = between(gradient.first, gradient.last)
        return Span(at, at + 1, True)
    if gradient.draw == "normal":
        return Span(_drawn_begin(gradient, steps, source), steps, False)
    count = gradient.count if gradient.steps == "last" else between(1, steps)
    return Span(steps - count, steps, False)


def _drawn_begin(gradient: Gradient, steps: int, source: torch.Generator) -> int:
    """The first step of a suffix: 1..steps - 1, from a normal distribution cut to whole numbers."""
    while True:
        begin = int(gradient.mean + gradient.std * float(torch.randn((), generator=source)))
        if 1 <= begin < steps:
            return begin


def hinge(rewards_B: torch.Tensor, target: float | None) -> torch.Tensor:
    """relu(target - reward) [B], whose gradient above the target is 0; -reward without a target."""
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
    """(latents to be scored, distance to the base [B]); gradient flows through the span's steps alone.

    eta    noise of the steps, of diffusion models; 0 is deterministic
    fresh  standard normal noise of a step by its index [B, C, h, w], where eta is above 0

    The distance is the squared difference of the learner's and the base's predictions, averaged over elements
    and the span's steps: of the KL between their steps, the part that learns. 0 for a policy without a base.
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
        # Of many steps, one at a time is kept and the others recomputed: memory does not grow with them.
        once = one_step if count == 1 else partial(checkpoint, one_step, use_reentrant=False)
        x, more = once(x, i, noise_at(i))
        away = away + more / count
    return x, away


class ReFL(Objective):
    """Denoise, decode and score images with gradient: the loss falls as their rewards rise.

    Per sample, reward_loss_weight * hinge(reward) + reference_weight * distance to the reference, where
    hinge(r) = relu(target - r), and -r without a target.
    """

    def __init__(self, config: ReFLConfig, rows: Sequence[Row], rewards: Rewards):
        self.config, self.rows, self.rewards = config, rows, rewards

    @property
    def prompts(self) -> list[str]:
        """The prompts of all rows of the training data."""
        return prompts_of(self.rows)

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The reference, for the distance to it."""
        return ("reference",) if self.config.reference_weight > 0 else ()

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, by the chunks that are this process's."""
        yield plan.mine

    def loss(self, policy: Policy, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The chunk's mean loss; metrics: rewards, and the distance where the policy has a reference."""
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
