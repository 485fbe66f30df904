"""The optimizer and the formula of its learning rate, whose keys are in `tuning/trainer_config.py`."""

import math
from typing import Any

import torch

from imagereward.errors import ImageRewardError
from imagereward.tuning.trainer_config import OptimizerConfig


def learning_rate_at(update: int, config: OptimizerConfig) -> float:
    """The learning rate of update u (`update`, from 0), with w warm-up updates of U updates in all.

    u < w     learning_rate * (u + 1) / w
    u >= w    learning_rate * f(p), with the progress p = (u - w) / (U - w) in 0..1
              f = 1 (constant), 1 - p (linear) or (1 + cos(pi p)) / 2 (cosine)
    """
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    if config.schedule == "constant":
        return config.learning_rate
    done = (update - config.warmup_updates) / max(1, config.updates - config.warmup_updates)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * left


def make_optimizer(config: OptimizerConfig, parameters: list) -> torch.optim.Optimizer:
    """AdamW with beta1 = 0.9, or with "adamw-8bit" bitsandbytes' AdamW, whose moments have 8 bits.

    Its `lr` is the first one; the trainer sets `learning_rate_at` before every update.

    Raises ImageRewardError if bitsandbytes is needed and not installed.
    """
    optimizer_class: Any = torch.optim.AdamW
    if config.optimizer == "adamw-8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise ImageRewardError(
                f'optimizer="adamw-8bit" needs bitsandbytes: python -m pip install bitsandbytes ({error})'
            ) from error
        optimizer_class = AdamW8bit
    return optimizer_class(
        parameters, lr=config.learning_rate, betas=(0.9, config.beta2), weight_decay=config.weight_decay
    )
