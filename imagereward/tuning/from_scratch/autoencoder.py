"""Learning to code images: what a latent diffusion model's autoencoder is trained by, without its critics.

Rombach et al. 2022 (arXiv:2112.10752), section 3.1, with a small KL penalty; the perceptual and adversarial
losses, which need networks of their own, are left out.
"""

from collections.abc import Iterator, Sequence

import torch

from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples, rows_for_samples

# Updates over which the penalty rises to its weight.
KL_RISE = 500


def kl_to_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL of N(mean, exp(logvar)) to N(0, 1) [B], averaged over elements."""
    return ((mean.square() + logvar.exp() - 1 - logvar) / 2).flatten(1).mean(1)


class Autoencoder:
    """Mean squared error of the decoded image in -1..1, plus kl * KL.

    Squared, because an absolute error is content with the background: things are few of the pixels. The KL
    makes latents that stand noise: what a generator draws a little wrong still decodes to clean things.
    It counts from update `kl_from` on, and rises to its weight over KL_RISE more: at the beginning it
    would be cheapest to say nothing.
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

    def minibatches(self, learner, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, by the chunks that are this process's."""
        yield plan.mine

    def loss(self, learner, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The chunk's mean loss, with its two terms."""
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

    def describe(self, chunk: Chunk) -> Sequence[str]:
        """The chunk's prompts."""
        return [
            self.pairs[row]["prompt"] for row in rows_for_samples(chunk.samples, len(self.pairs), self.seed)
        ]
