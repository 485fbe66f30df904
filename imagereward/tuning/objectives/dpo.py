"""DPO: learns from pairs of a chosen and a rejected image, from a file or drawn and scored.

Diffusion-DPO: Wallace et al. 2023, arXiv:2311.12908, equation 14.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.preferences import open_preferences
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.objectives.sampled import ComparisonConfig, SampledConfig
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.refresh import Refresher, RefreshRule
from imagereward.tuning.rollouts.clean import add_noise, mean_square
from imagereward.tuning.rollouts.latent_images import LatentPairs
from imagereward.tuning.rollouts.pairs import DrawnPairs, PairSource, StoredPairs
from imagereward.tuning.rollouts.times import Times

BETA = "strength with which the policy is held to the reference, relative to the error's units; published: "


class PreferencesConfig(Config):
    """Pairs of a chosen and a rejected image of one prompt."""

    data: str = Field(
        description="table of {prompt, chosen, rejected}, of Pick-a-Pic's columns or of rankings {prompt, "
        'generations, ranking}; or "shapes" for drawn pairs'
    )
    pairs_of: Literal["all", "extremes"] = Field(
        "all", description="for rankings: all pairs of unequal rank, or only the best against the worst"
    )
    pairs: int = Field(10_000, ge=1, description='number of drawn pairs, for data="shapes"')
    things: int = Field(4, ge=1, description='most things in a scene, for data="shapes"')
    cache: bool = Field(False, description="encode all images once, and keep their latents in the output")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of images that may be missing or damaged"
    )


class DPOConfig(GeneratorConfig):
    """The config of DPO on pairs of a file; `batch_size` and `micro_batch` count pairs."""

    objective: Literal["dpo"] = Field("dpo", description="DPO on pairs of a chosen and a rejected image")
    preferences: PreferencesConfig = Field(description="the pairs of images")
    beta: float = Field(gt=0, description=BETA + "5000 for U-Nets, 100 for flow models")
    times: Times = Field(Times(), description="the training times of each pair in an update")

    def make(self, job: ObjectiveContext) -> Objective:
        self.times.passes(self.steps)
        part = self.preferences
        pairs = open_preferences(
            part.data,
            job.denoiser.resolution,
            part.max_bad_share,
            inputs=job.denoiser.inputs,
            pairs_of=part.pairs_of,
            encoding=self.encoding,
            column=self.prompt_column,
            count=part.pairs,
            seed=self.seed,
            things=part.things,
        )
        data = LatentPairs(pairs, job.denoiser.autoencoder, job.output if part.cache else None)
        return DPO(StoredPairs(data, self.seed), self.beta, self.times, self.seed)


class OnlineDPOConfig(ComparisonConfig, SampledConfig):
    """The config of DPO on drawn images: in each group the best against the worst by reward.

    With `advantages_of="each"` every reward is standardised before they are added; advantage_std,
    advantage_std_divisor and advantage_epsilon have no other effect.
    """

    objective: Literal["dpo_online"] = Field("dpo_online", description="DPO on drawn and scored images")
    beta: float = Field(gt=0, description=BETA + "5000 for U-Nets, 100 for flow models")
    sampler: Literal["current", "reference"] = Field(
        "current", description="the weights that draw: the learner's, or the reference's"
    )
    refresh: RefreshRule | None = Field(
        None,
        description="when the weights that learn replace the reference; published: every 40; null: never",
    )
    times: Times = Field(Times(), description="the training times of each pair in an update")

    def make(self, job: ObjectiveContext) -> Objective:
        self.times.passes(self.steps)
        if self.refresh is not None and self.refresh.kl_above is not None:
            raise InputError("refresh.kl_above: DPO measures no KL; expected refresh.every alone")
        source = self.sample_source(job, "DPO on drawn images")
        pairs = DrawnPairs(source, self.sampler, self.optimizer_steps, self.compared)
        return self.add_pretraining(job, DPO(pairs, self.beta, self.times, self.seed, self.refresh))


class DPO(Objective):
    """Makes the chosen image of a pair more probable than the rejected, relative to the reference.

    With the errors e = mean (predict(x_t, t) - target)^2 of the chosen (w) and the rejected image (l), at the
    same time and with the same noise, under the policy and the reference:
        L = -log sigmoid(-beta / 2 ((e_w - e_w,ref) - (e_l - e_l,ref)))
    averaged over pairs and their training times. At the reference L = log 2.

    pairs  the source of pairs
    beta   see the loss
    times  training times of each pair in an update
    seed   seeds times and noise, with the number of the pair's first sample
    refresh  when the weights that learn replace the reference; default: never
    """

    def __init__(
        self,
        pairs: PairSource,
        beta: float,
        times: Times,
        seed: int = 0,
        refresh: RefreshRule | None = None,
    ):
        self.pairs, self.beta, self.times, self.seed = pairs, beta, times, seed
        self.rows = pairs.rows
        self.refresher = None if refresh is None else Refresher(refresh)

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts of all training data."""
        return self.pairs.prompts

    @property
    def encodes_images(self) -> bool:
        """Whether the source of pairs does."""
        return self.pairs.encodes_images

    def prepare(self) -> None:
        """Prepares the source of pairs."""
        self.pairs.prepare()

    @property
    def snapshots(self) -> tuple[str, ...]:
        """("reference",)."""
        return ("reference",)

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[Sequence[Any]]:
        """The source's minibatches: pairs at one training time each."""
        yield from self.pairs.minibatches(policy, plan, self.times)

    def loss(self, policy: Policy, minibatch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the class.

        Metrics: `accuracy`, the share of pairs of which the policy, relative to the reference, prefers the
        chosen image; `chosen` and `rejected`, the errors relative to the reference.
        """
        noised = add_noise(policy, self.pairs.batch(policy, minibatch), self.times, self.seed)
        target = policy.dynamics.target(noised.clean, noised.noise, noised.time)
        error = mean_square(policy.predict_at(noised.x, noised.time, noised.condition) - target)
        with policy.using("reference"):
            base = mean_square(policy.predict_at(noised.x, noised.time, noised.condition) - target)
        chosen, rejected = (error - base).chunk(2)
        prefers = ((rejected - chosen).sign() + 1) / 2  # 1/2 where both are equal
        metrics = {"accuracy": prefers, "chosen": chosen, "rejected": rejected}
        return dpo_loss(chosen, rejected, self.beta).mean(), {
            name: values.detach().mean() for name, values in metrics.items()
        }

    def end_update(self, policy: Policy, update: int) -> dict[str, float]:
        """The metrics of the source; with a rule, `refreshed`: 1 if the reference was replaced, else 0."""
        metrics = self.pairs.end_update()
        if self.refresher is not None:
            metrics = {**metrics, "refreshed": float(self.refresher.after_update(policy))}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The refresher's state; empty without one."""
        return {} if self.refresher is None else self.refresher.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        if self.refresher is not None:
            self.refresher.load_state_dict(state)

    def prompts_in(self, minibatch: Any) -> Sequence[str]:
        """The minibatch's prompts."""
        return self.pairs.prompts_in(minibatch)


def dpo_loss(chosen_B: torch.Tensor, rejected_B: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid(-beta / 2 (chosen - rejected)), [B].

    chosen_B, rejected_B  mean squared errors of the policy - those of the reference
    """
    return torch.nn.functional.softplus(beta / 2 * (chosen_B - rejected_B))
