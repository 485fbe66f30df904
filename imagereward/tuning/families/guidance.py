"""Classifier-free guidance, which all families share: predictions with and without a prompt, combined."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from imagereward.errors import InputError
from imagereward.tuning.families.condition import Condition


def with_guidance(
    forward: Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor],
    x: torch.Tensor,
    time_B: torch.Tensor,
    condition: Condition,
    without: Callable[[], Condition],
    scale: float,
) -> torch.Tensor:
    """prediction_0 + scale * (prediction - prediction_0), float32 [B, C, h, w].

    forward  (x [B, C, h, w], time [B], condition) -> the network's prediction [B, C, h, w]
    without  makes the one row of text embeddings of an empty prompt; prediction_0 is made with these in the
             place of the prompts' and with the rows' own pictures
    scale    1 and below: `prediction` alone, as in diffusers, in one pass; above: one of twice the rows

    Ho and Salimans 2022, arXiv:2207.12598, equation 6 with w = scale - 1.
    """
    if scale <= 1.0:
        return forward(x, time_B, condition)
    both = Condition.cat([condition.with_others(without()), condition])
    unprompted, prompted = forward(torch.cat([x, x]), torch.cat([time_B, time_B]), both).chunk(2)
    return unprompted + scale * (prompted - unprompted)


def takes_guidance(network: Any) -> bool:
    """Whether the network takes the guidance scale as an input: a FLUX distilled for guidance."""
    return bool(getattr(getattr(network, "config", None), "guidance_embeds", False))


def refuse_embedded_guidance(unet: Any) -> None:
    """Raises InputError for a U-Net that takes guidance as an input, as latent consistency models do."""
    if getattr(unet.config, "time_cond_proj_dim", None) is not None:
        raise InputError(
            "the U-Net takes its guidance as an input (time_cond_proj_dim), as latent consistency models do: "
            "it cannot be trained here; expected a U-Net with classifier-free guidance"
        )


def default_guidance(pipeline: Any, network: Any) -> float:
    """The guidance scale that a diffusers pipeline uses when its caller gives none.

    That is the default of its argument `guidance_scale`; of `true_cfg_scale` for a FLUX without
    `guidance_embeds`, which does not use its `guidance_scale`.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    if getattr(getattr(network, "config", None), "guidance_embeds", None) is False:
        return parameters["true_cfg_scale"].default if "true_cfg_scale" in parameters else 1.0
    return parameters["guidance_scale"].default
