"""Tokenizes prompts as diffusers' pipelines do; the type of a function from prompts to text embeddings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

# B prompts -> the tensors [B, ...] of the condition that depend on the prompts alone, by name.
Text = Callable[[Sequence[str]], dict[str, torch.Tensor]]
# `Denoiser.text_sequences` of families that pad every prompt to one length.
FIXED_LENGTH: Mapping[str, str] = {}


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int | None = None) -> Any:
    """Token ids and attention mask [B, length] of B prompts, padded to `length` and truncated beyond it.

    `length` is the tokenizer's model_max_length by default.
    """
    return tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=length or tokenizer.model_max_length,
        return_tensors="pt",
    )
