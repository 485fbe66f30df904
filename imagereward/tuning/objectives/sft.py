"""SFT: noise or velocity prediction on (row, image) pairs, alone or as ReFL's pretraining loss.

Ho et al. 2020 (arXiv:2006.11239), equation 14; min-SNR weights: Hang et al. 2023 (arXiv:2303.09556).
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.image_pairs import open_pairs
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row, without_prompt
from imagereward.tuning.data.seeding import noise_for_samples, random_generator, rows_for_samples
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.objectives.weighted import Weighted
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rollouts.latent_images import LatentImages


class PairsConfig(Config):
    """The (row, image) pairs of the noise-prediction loss, and the settings of the loss."""

    data: str = Field(
        description="table of {text, image}; for a model that takes pictures of {prompt, image, mask, "
        'target}, where target may be left out beside a mask; or "shapes" for drawn ones'
    )
    pairs: int = Field(10_000, ge=1, description='number of drawn pairs, for data="shapes"')
    things: int = Field(4, ge=1, description='most things in a scene, for data="shapes"')
    cache: bool = Field(False, description="encode all images once, and keep their latents in the output")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of images that may be missing or damaged"
    )
    min_snr_gamma: float | None = Field(
        None, gt=0, description="gamma of min-SNR weights, usually 5; null: all times weigh the same"
    )
    prompt_dropout: float = Field(
        0.0, ge=0, le=1, description="share of samples trained without their prompt, for guidance"
    )


class Pretraining(PairsConfig):
    """The noise-prediction loss on (prompt, image) pairs that is added to another objective's loss."""

    weight: float = Field(1.0, gt=0, description="weight of this loss in the sum")
    batch_size: int = Field(8, ge=1, description="samples in an update, over all processes")
    prompt_column: str | None = Field(
        None, description="column of the prompts in this table; default: prompt, text, caption or txt"
    )

    def check_processes(self, micro_batch: int, ranks: int, sharded: bool) -> None:
        """Raises InputError for a batch that `ranks` processes with sharded weights cannot share.

        Without sharding, a process that has no part of the batch computes one sample with a share of 0, so
        any batch size is allowed.
        """
        parts = -(-self.batch_size // micro_batch)
        if sharded and parts % ranks:
            raise InputError(
                f"pretraining.batch_size={self.batch_size}, micro_batch={micro_batch}: an update has {parts} "
                f"micro-batches for {ranks} processes; expected a multiple of {ranks}, which shards ask for"
            )


class SFTConfig(GeneratorConfig):
    """The config of supervised fine-tuning on (row, image) pairs."""

    objective: Literal["sft"] = Field("sft", description="noise or velocity prediction on pairs")
    pairs: PairsConfig = Field(description="the (prompt, image) pairs")

    def make(self, job: ObjectiveContext) -> "SFT":
        return sft_on(self.pairs, self, job, column=self.prompt_column)


def sft_on(
    part: PairsConfig,
    config: GeneratorConfig,
    job: ObjectiveContext,
    batch_size: int | None = None,
    column: str | None = None,
) -> "SFT":
    """The objective SFT on the pairs that `part` names.

    config      the training's config: its seed, steps and encoding
    job         the loaded generator and the run's directory
    batch_size  samples in an update, over all processes; default: the config's. For SFT beside another
                objective
    column      the table's column of prompts; default: by the usual names

    Raises InputError for min-SNR weights with a flow model, and for data that `open_pairs` refuses.
    """
    denoiser = job.denoiser
    if part.min_snr_gamma is not None:
        denoiser.dynamics(config.steps).min_snr_weights(torch.ones(1, dtype=torch.long), part.min_snr_gamma)
    pairs = open_pairs(
        part.data,
        denoiser.resolution,
        part.max_bad_share,
        count=part.pairs,
        seed=config.seed,
        things=part.things,
        encoding=config.encoding,
        column=column,
        inputs=denoiser.inputs,
    )
    data = LatentImages(pairs, denoiser.autoencoder, job.output if part.cache else None)
    return SFT(part, data, config.seed, batch_size)


class SFT(Objective):
    """The squared error of the network's prediction, at one random time for every sample.

        L = mean over samples b of w(t_b) * mean over elements of (predict(x_t, t_b, prompt_b) - target)^2

    t_b is drawn as the family draws training times, x_t is the image's latents with noise of that time, and
    target is the noise, v, the clean latents (`prediction_type`), or a flow's velocity. w(t) = 1, or the
    min-SNR weight: min(SNR(t), gamma) / SNR(t) for a network that predicts noise, / (SNR(t) + 1) for v, and
    min(SNR(t), gamma) for the clean latents. A share `config.prompt_dropout` of the samples gets no prompt,
    as classifier-free guidance predicts without one (`Denoiser.unprompted`), but its pictures if the model
    takes any.

    batch_size  samples in an update, over all processes; default: the plan's
    """

    def __init__(self, config: PairsConfig, data: LatentImages, seed: int = 0, batch_size: int | None = None):
        self.config, self.data, self.seed, self.batch_size = config, data, seed, batch_size
        self.rows = data.rows

    @property
    def prompts(self) -> list[str]:
        """The prompts of all rows of the training data."""
        return self.data.texts

    @property
    def encodes_images(self) -> bool:
        """Yes, unless the latents are cached and rows have no pictures."""
        return self.data.encodes

    def prepare(self) -> None:
        """Fills the cache of latents, if the config has one."""
        self.data.fill()

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, with this process's chunks as its minibatches.

        A process without a chunk gets a sample with a share of 0, because processes wait for each other in
        the backward pass, and another objective in the sum may have nothing to learn in this update.
        """
        resized = plan.resized(self.batch_size or plan.batch_size)
        yield resized.mine or [resized.spare]

    def loss(self, policy: Policy, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The chunk's mean loss; metric: `error`, the squared error without weights."""
        denoiser, dynamics = policy.denoiser, policy.dynamics
        sources = [random_generator(self.seed, "time", sample) for sample in chunk.samples]
        time = torch.cat([dynamics.draw_times(1, source) for source in sources]).to(policy.device)
        dropped = [float(torch.rand((), generator=source)) < self.config.prompt_dropout for source in sources]
        indices = rows_for_samples(chunk.samples, len(self.data), self.seed)
        rows = [self.data.rows[index] for index in indices]
        clean = self.data.latents(indices).to(policy.device)
        noise = noise_for_samples(chunk.samples, denoiser.autoencoder.shape, self.seed, "sft").to(
            policy.device
        )
        condition = encode_without(denoiser, rows, dropped)
        prediction = policy.predict_at(dynamics.add_noise(clean, noise, time), time, condition)
        error = (prediction - dynamics.target(clean, noise, time)).square().flatten(1).mean(1)
        weights = torch.ones_like(error)
        if self.config.min_snr_gamma is not None:
            weights = dynamics.min_snr_weights(time, self.config.min_snr_gamma)
        return (weights * error).mean(), {"error": error.detach().mean()}

    def prompts_in(self, chunk: Chunk) -> list[str]:
        """The chunk's prompts."""
        return [self.data.texts[row] for row in rows_for_samples(chunk.samples, len(self.data), self.seed)]


def encode_without(denoiser: Denoiser, rows: Sequence[Row], dropped: Sequence[bool]) -> Condition:
    """The condition of the rows, in which the `dropped` ones have no prompt, but their pictures."""
    kept = [without_prompt(row) if drop else row for drop, row in zip(dropped, rows, strict=True)]
    encoded = denoiser.encode(kept)
    if not any(dropped):
        return encoded
    each = [encoded[[place]] for place in range(len(rows))]
    return Condition.cat(
        [
            row.with_others(denoiser.unprompted) if drop else row
            for drop, row in zip(dropped, each, strict=True)
        ]
    )


def with_pretraining(
    part: Pretraining | None, config: GeneratorConfig, job: ObjectiveContext, objective: Objective
) -> Objective:
    """The objective in a weighted sum with SFT on the pairs that `part` names; alone if `part` is None.

    The metrics of SFT are prefixed, as in "pretraining/error".
    """
    if part is None:
        return objective
    beside = sft_on(part, config, job, part.batch_size, part.prompt_column)
    return Weighted({config.objective: (1.0, objective), "pretraining": (part.weight, beside)})
