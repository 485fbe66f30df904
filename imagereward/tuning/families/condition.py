"""Condition: the named tensors that a generator is conditioned on, a row a sample; ragged text is padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from imagereward.errors import InputError


@dataclass(frozen=True)
class Condition:
    """Tensors [B, ...] by name: text embeddings, pooled embeddings, time ids, image latents, masks.

    tensors    name -> [B, ...]; the names are those of the network's arguments
    sequences  name of a text sequence [B, T, D] -> name of its mask [B, T], both in `tensors`. T may differ
               from condition to condition: rows of several are padded at the end with 0, in the mask too,
               where 0 or False is a position that the network does not read. Every tensor that is not named
               here has one shape in all conditions.

    Raises InputError for a sequence whose mask is missing or of another length.
    """

    tensors: dict[str, torch.Tensor]
    sequences: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, mask in self.sequences.items():
            if name not in self.tensors or mask not in self.tensors:
                raise InputError(f"sequence {name!r} with mask {mask!r}: tensors are {sorted(self.tensors)}")
            lengths = [tuple(self.tensors[each].shape[:2]) for each in (name, mask)]
            if lengths[0] != lengths[1]:
                raise InputError(f"sequence {name!r} is {lengths[0]}, its mask {mask!r} is {lengths[1]}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Sequence[int] | torch.Tensor) -> "Condition":
        """Some of the rows: a slice, or a tensor or list of indices. Sequences keep their padding."""
        return self._with({name: value[rows] for name, value in self.tensors.items()})

    def repeat(self, times: int) -> "Condition":
        """Every row `times` times, one after the other: [B, ...] to [B * times, ...]."""
        return self._with({name: value.repeat_interleave(times, 0) for name, value in self.tensors.items()})

    def with_others(self, others: "Condition") -> "Condition":
        """These rows, in which the one row of `others` replaces the tensors of the same names."""
        replaced = {**self.tensors, **others.repeat(len(self)).tensors}
        return Condition(replaced, {**self.sequences, **others.sequences})

    def to(self, *args, **kwargs) -> "Condition":
        """Every tensor on another device or in another dtype, as torch.Tensor.to; masks keep their dtype."""
        masks = set(self.sequences.values())
        moved = {name: value.to(*args, **kwargs) for name, value in self.tensors.items()}
        return self._with(
            {
                name: value.to(self.tensors[name].dtype) if name in masks else value
                for name, value in moved.items()
            }
        )

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """The rows of all conditions, in order; sequences and masks are padded to the longest of them."""
        first = conditions[0]
        ragged = {*first.sequences, *first.sequences.values()}
        columns = {name: [each.tensors[name] for each in conditions] for name in first.tensors}
        return first._with(
            {name: torch.cat(_padded(each) if name in ragged else each) for name, each in columns.items()}
        )

    def _with(self, tensors: dict[str, torch.Tensor]) -> "Condition":
        return Condition(tensors, self.sequences)


def _padded(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors [B, T, ...] of several T, with zeros at the end up to the longest T."""
    longest = max(value.shape[1] for value in values)
    return [
        value
        if value.shape[1] == longest
        else torch.cat([value, value.new_zeros(len(value), longest - value.shape[1], *value.shape[2:])], 1)
        for value in values
    ]
