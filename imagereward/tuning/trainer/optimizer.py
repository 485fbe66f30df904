"""The optimizer of a training, and the formula of the learning rate: warm-up and schedule."""

import math
from typing import Any

import torch

from imagereward.errors import ImageRewardError
from imagereward.tuning.settings import OptimizerConfig


def learning_rate_at(update: int, config: OptimizerConfig) -> float:
    """The learning rate of an update, numbered from 0."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    if config.schedule == "constant":
        return config.learning_rate
    done = (update - config.warmup_updates) / max(1, config.updates - config.warmup_updates)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * left


def make_optimizer(config: OptimizerConfig, parameters: list) -> torch.optim.Optimizer:
    """AdamW, in 8 bits where the config asks for it. Raises ImageRewardError without bitsandbytes."""
    kind: Any = torch.optim.AdamW
    if config.optimizer == "adamw-8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise ImageRewardError(
                f'optimizer="adamw-8bit" needs bitsandbytes: python -m pip install bitsandbytes ({error})'
            ) from error
        kind = AdamW8bit
    return kind(
        parameters, lr=config.learning_rate, betas=(0.9, config.beta2), weight_decay=config.weight_decay
    )
