"""Prompts as the text encoders of diffusers' pipelines take them."""

from collections.abc import Callable, Sequence

import torch

# Prompts -> what of the condition depends on them alone, by name, a row each.
Text = Callable[[Sequence[str]], dict[str, torch.Tensor]]


def tokenize(tokenizer, prompts: Sequence[str], length: int | None = None):
    """Tokens and mask [B, length]: padded, and cut where they are more."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=length or tokenizer.model_max_length,
        return_tensors="pt",
    )
