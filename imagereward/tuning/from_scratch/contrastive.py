"""ContrastiveObjective: CLIP's loss between prompts and images (Radford et al. 2021, arXiv:2103.00020)."""

from collections.abc import Iterator, Sequence

import torch

from imagereward.errors import InputError
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import rows_for_samples
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.reward_model.image_text import contrastive_loss


class ContrastiveObjective(Objective):
    """The contrastive loss between the images and the prompts of a chunk; see `contrastive_loss`.

    pairs      (prompt, image) pairs; their `wrong` prompts, which have a mistake and belong to no image, are
               compared with all images of the chunk as well
    tokenizer  a CLIPTokenizer
    seed       decides the order of pairs
    """

    def __init__(self, pairs: Pairs, tokenizer, *, seed: int):
        self.pairs, self.tokenizer, self.seed = pairs, tokenizer, seed

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts of all pairs."""
        return self.pairs.texts

    def minibatches(self, learner, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, with all of this process's samples in one chunk, over micro_batch."""
        part = -(-plan.batch_size // plan.ranks)
        if -(-plan.batch_size // part) < plan.ranks:
            raise InputError(
                f"batch_size={plan.batch_size}: in parts of {part}, some of {plan.ranks} processes have "
                f"none; expected a multiple of {plan.ranks}"
            )
        yield plan.resized(plan.batch_size, part).mine

    def loss(self, learner, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The chunk's loss; metric: `accuracy`, the share of images most similar to their own prompt."""
        items = [self.pairs[row] for row in rows_for_samples(chunk.samples, len(self.pairs), self.seed)]
        texts = [item["prompt"] for item in items] + [text for item in items for text in item["wrong"]]
        images = torch.stack([item["pixels"] for item in items]).to(learner.device).float() / 127.5 - 1
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        images_B, texts_T, log_scale = learner.module(images, tokens.to(learner.device))
        similarity = log_scale.exp().clamp(max=100) * images_B @ texts_T.T
        numbers = torch.tensor([texts.index(text) for text in texts], device=learner.device)
        same = numbers[: len(items), None] == numbers
        right = same.gather(1, similarity.argmax(1, keepdim=True)).float().mean()
        return contrastive_loss(similarity, same), {"accuracy": right}

    def prompts_in(self, chunk: Chunk) -> Sequence[str]:
        """The chunk's prompts."""
        rows = rows_for_samples(chunk.samples, len(self.pairs), self.seed)
        return [self.pairs[row]["prompt"] for row in rows]
