"""Autoencoder: the objective of a latent-diffusion autoencoder, squared error and KL.

Rombach et al. 2022 (arXiv:2112.10752), section 3.1, with the KL penalty, without the perceptual and the
adversarial loss, which need further networks.
"""

from collections.abc import Iterator, Sequence

import torch

from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples, rows_for_samples
from imagereward.tuning.objectives.base import Objective

# Updates over which the weight of the KL rises from 0 to its full value.
KL_RISE = 500


def kl_to_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL of N(mean, exp(logvar)) to N(0, 1), [B]; mean and logvar are [B, C, h, w].

    KL = mean over elements of (mean^2 + exp(logvar) - 1 - logvar) / 2
    """
    return ((mean.square() + logvar.exp() - 1 - logvar) / 2).flatten(1).mean(1)


class Autoencoder(Objective):
    """L = mean over pixels of (decoded - image)^2 + weight * KL(latents || N(0, 1)), with images in [-1, 1].

    pairs         images, with prompts that are not used
    latent_shape  (C, h, w) of the latents
    kl            weight of the KL, at least 0
    seed          decides the order of pairs and the posterior's noise
    kl_from       the weight is 0 until this update, rises linearly over KL_RISE updates, and is `kl` from
                  then on. With the KL from the start, the encoder learns to ignore its input

    The error is squared because most pixels of Shapes are background: an absolute error barely changes when
    the shapes are missing. The KL keeps latents near N(0, 1), so that latents with a generator's errors still
    decode to clean shapes.
    """

    def __init__(
        self,
        pairs: Pairs,
        latent_shape: Sequence[int],
        *,
        kl: float,
        seed: int,
        kl_from: int = 0,
    ):
        self.pairs, self.latent_shape = pairs, latent_shape
        self.kl, self.kl_from, self.seed = kl, kl_from, seed

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts of all pairs."""
        return self.pairs.texts

    def minibatches(self, learner, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, with this process's chunks as its minibatches."""
        yield plan.mine

    def loss(self, learner, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The chunk's mean loss; metrics: `error` and the unweighted `kl`."""
        rows = rows_for_samples(chunk.samples, len(self.pairs), self.seed)
        images = (
            torch.stack([self.pairs[row]["pixels"] for row in rows]).to(learner.device).float() / 127.5 - 1
        )
        noise = noise_for_samples(chunk.samples, self.latent_shape, self.seed, "posterior").to(learner.device)
        decoded, posterior = learner.module(images, noise)
        error = (decoded - images).square().mean()
        kl = kl_to_normal(posterior.mean, posterior.logvar).mean()
        risen = min(max(chunk.update - self.kl_from, 0) / KL_RISE, 1)
        return error + self.kl * risen * kl, {"error": error.detach(), "kl": kl.detach()}

    def prompts_in(self, chunk: Chunk) -> Sequence[str]:
        """The chunk's prompts."""
        rows = rows_for_samples(chunk.samples, len(self.pairs), self.seed)
        return [self.pairs[row]["prompt"] for row in rows]
