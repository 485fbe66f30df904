"""What a denoiser is conditioned on: named tensors with a row a sample, taken apart and joined as one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Condition:
    """Tensors [B, ...] by name: embeddings, pooled embeddings, time ids, image latents, masks."""

    tensors: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows) -> "Condition":
        """Some of the rows: a slice, or a tensor or list of indices."""
        return Condition({name: value[rows] for name, value in self.tensors.items()})

    def repeat(self, times: int) -> "Condition":
        """Every row `times` times, one after the other."""
        return Condition({name: value.repeat_interleave(times, 0) for name, value in self.tensors.items()})

    def with_others(self, others: "Condition") -> "Condition":
        """These rows, with `others` (one row) in the place of what has the same names."""
        return Condition({**self.tensors, **others.repeat(len(self)).tensors})

    def to(self, *args, **kwargs) -> "Condition":
        """As torch.Tensor.to, for all of them."""
        return Condition({name: value.to(*args, **kwargs) for name, value in self.tensors.items()})

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """The rows of all, in order."""
        names = conditions[0].tensors
        return Condition({name: torch.cat([each.tensors[name] for each in conditions]) for name in names})
