"""Learning to predict noise on (prompt, image) pairs: supervised fine-tuning, and ReFL's pretraining loss.

Ho et al. 2020 (arXiv:2006.11239), equation 14; min-SNR weights: Hang et al. 2023 (arXiv:2303.09556).
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.image_pairs import open_pairs
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples, random_generator, rows_for_samples
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.objectives.latent_images import LatentImages
from imagereward.tuning.policy.policy import Policy


class PairsConfig(Config):
    """(prompt, image) pairs to predict noise on. `data` is a table of {text, image}, or "shapes"."""

    data: str = Field(description='JSON list of {text, image}, or "shapes" for drawn ones')
    pairs: int = Field(10_000, ge=1, description='how many, for data="shapes"')
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


class SFTConfig(GeneratorConfig):
    """Learning to predict noise on (prompt, image) pairs."""

    objective: Literal["sft"] = Field("sft", description="noise or velocity prediction on pairs")
    pairs: PairsConfig = Field(description="the (prompt, image) pairs")

    def make(self, job: ObjectiveContext) -> "SFT":
        return sft_on(self.pairs, self.batch_size, self, job)


def sft_on(part: PairsConfig, batch_size: int, config: GeneratorConfig, job: ObjectiveContext) -> "SFT":
    """SFT on pairs, by itself or beside another objective.

    Raises InputError for a model that they cannot train.
    """
    denoiser = job.denoiser
    if denoiser.inputs:
        raise InputError(
            f"pairs are a prompt and an image: they cannot train a model that is shown {denoiser.inputs}"
        )
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
    )
    data = LatentImages(pairs, denoiser.autoencoder, job.output if part.cache else None)
    return SFT(
        data,
        batch_size=batch_size,
        micro_batch=config.micro_batch,
        min_snr_gamma=part.min_snr_gamma,
        prompt_dropout=part.prompt_dropout,
        seed=config.seed,
    )


class SFT:
    """The prediction loss, at times drawn as the family draws them, from noise drawn by sample number.

    `prompt_dropout` is the share of samples that are trained without their prompt, which guidance needs.
    """

    def __init__(
        self,
        data: LatentImages,
        *,
        batch_size: int,
        micro_batch: int,
        min_snr_gamma: float | None = None,
        prompt_dropout: float = 0.0,
        seed: int = 0,
    ):
        self.data, self.batch_size, self.micro_batch = data, batch_size, micro_batch
        self.min_snr_gamma, self.prompt_dropout, self.seed = min_snr_gamma, prompt_dropout, seed

    @property
    def texts(self) -> list[str]:
        """Every prompt that there is."""
        return self.data.texts

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, by the chunks that are this process's."""
        yield plan.resized(self.batch_size, self.micro_batch).mine

    def loss(self, policy: Policy, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean over the chunk's samples of the (weighted) squared error of the prediction."""
        denoiser, dynamics = policy.denoiser, policy.dynamics
        sources = [random_generator(self.seed, "time", sample) for sample in chunk.samples]
        time = torch.cat([dynamics.draw_times(1, source) for source in sources]).to(policy.device)
        dropped = [float(torch.rand((), generator=source)) < self.prompt_dropout for source in sources]
        texts = [
            "" if prompt_dropout else text
            for prompt_dropout, text in zip(dropped, self.describe(chunk), strict=True)
        ]
        rows = rows_for_samples(chunk.samples, len(self.data), self.seed)
        clean = self.data.latents(rows).to(policy.device)
        noise = noise_for_samples(chunk.samples, denoiser.autoencoder.shape, self.seed, "sft").to(
            policy.device
        )
        prediction = denoiser.predict(dynamics.add_noise(clean, noise, time), time, denoiser.encode(texts))
        error = (prediction - dynamics.target(clean, noise, time)).square().flatten(1).mean(1)
        weights = torch.ones_like(error)
        if self.min_snr_gamma is not None:
            weights = dynamics.min_snr_weights(time, self.min_snr_gamma)
        return (weights * error).mean(), {"error": error.detach().mean()}

    def describe(self, chunk: Chunk) -> list[str]:
        """The chunk's prompts."""
        return [self.data.texts[row] for row in rows_for_samples(chunk.samples, len(self.data), self.seed)]
