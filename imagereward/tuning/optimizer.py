"""What takes the steps of a training, and how long they are."""

import math
from typing import Any, Literal

import torch
from pydantic import Field

from imagereward.errors import ImageRewardError
from imagereward.tuning.config import Config


class OptimizerConfig(Config):
    """How many steps are taken, and how."""

    updates: int = Field(100, ge=1, description="updates of the weights in the whole training")
    learning_rate: float = Field(1e-5, gt=0, description="step size of AdamW at its highest")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="the learning rate after the warm-up: the same, or falling to 0 at the end"
    )
    warmup_updates: int = Field(0, ge=0, description="first updates, in which the learning rate rises")
    weight_decay: float = Field(
        1e-2, ge=0, description="decoupled weight decay of AdamW, relative to the rate"
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="decay of AdamW's second moment; beta1 is 0.9")
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw", description="AdamW; in 8 bits its moments take a quarter of the memory (needs bitsandbytes)"
    )


def rate_at(update: int, config: OptimizerConfig) -> float:
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
