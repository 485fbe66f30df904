"""set_trainable: makes a generator's network trainable, or LoRA adapters in it, and freezes the rest."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.families.base import Denoiser


class LoRA(Config):
    """Low-rank adapters, by peft: W x becomes W x + (alpha / rank) B A x, with A and B trainable.

    Hu et al. 2021, arXiv:2106.09685.
    """

    rank: int = Field(4, ge=1, description="rank of the two small matrices beside each adapted layer")
    alpha: int = Field(4, ge=1, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs set to 0 in training")
    init: Literal["gaussian", "default"] = Field(
        "gaussian",
        description="how the first matrix begins: normal(0, 1/rank^2), or peft's default; the second is 0",
    )
    targets: tuple[str, ...] = Field(
        (), strict=False, description="names of the layers to adapt, such as to_q; default: the family's own"
    )


def set_trainable(denoiser: Denoiser, lora: LoRA | None, seed: int = 0) -> None:
    """Make the network trainable, or with `lora` only new adapters in it; freeze the rest, in place.

    seed  seeds the adapters' first matrix

    Trainable weights become float32. Raises InputError for a network that has adapters already, and for
    `targets` that name no layer.
    """
    network = denoiser.network
    network.requires_grad_(lora is None)
    if lora is not None:
        from peft import LoraConfig

        if getattr(network, "peft_config", None):
            raise InputError(
                "the model has adapters already; expected it without: call its unload_lora_weights(), or "
                "fuse_lora() before that to keep what they learned"
            )
        targets = list(lora.targets or denoiser.lora_targets)
        adapter = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            init_lora_weights="gaussian" if lora.init == "gaussian" else True,
            target_modules=targets,
        )
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network.add_adapter(adapter)
        except ValueError as error:  # peft: no module has such a name
            raise InputError(f"lora.targets={targets}: {error}") from error
    for value in network.parameters():
        if value.requires_grad:
            value.data = value.data.float()
    for frozen in denoiser.frozen:
        frozen.requires_grad_(False).eval()


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}
