"""Buffers of transformers models that no checkpoint holds: rotary frequencies, position indices."""

import torch
from torch import nn


def make_unsaved_buffers(model: nn.Module) -> None:
    """Give values, on the CPU, to all buffers of a transformers model that are on the meta device.

    Modules of transformers compute such buffers when they are made from their config: an owner of one is made
    again, alone, and its buffers are taken over. For `Scorer.init_buffers`.
    """
    for module in model.modules():
        empty = [name for name, value in module.named_buffers(recurse=False) if value.is_meta]
        if empty:
            with torch.device("cpu"):
                made = type(module)(module.config)  # type: ignore[arg-type]
            for name in empty:
                setattr(module, name, made.get_buffer(name))
