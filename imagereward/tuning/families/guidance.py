"""Classifier-free guidance, as every family that has it does it."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from imagereward.errors import InputError
from imagereward.tuning.families.condition import Condition


def with_guidance(
    forward: Callable, x, time_B, condition: Condition, without: Callable[[], Condition], scale: float
) -> torch.Tensor:
    """`forward(x, time, condition)` pushed away from what it gives without a prompt (`without`, a row).

    Pictures stay: what is taken away are the words.

    Ho and Salimans 2022, arXiv:2207.12598, equation 6 in the form prediction_0 + scale * (prediction -
    prediction_0). A scale of 1 and below is none, as in diffusers, and costs one pass, any other two.
    """
    if scale <= 1.0:
        return forward(x, time_B, condition)
    both = Condition.cat([condition.with_others(without()), condition])
    nothing, prompted = forward(torch.cat([x, x]), torch.cat([time_B, time_B]), both).chunk(2)
    return nothing + scale * (prompted - nothing)


def refuse_embedded_guidance(unet: Any) -> None:
    """Raises InputError for a U-Net that takes guidance as an input, as latent consistency models do."""
    if getattr(unet.config, "time_cond_proj_dim", None) is not None:
        raise InputError(
            "the U-Net takes its guidance as an input (time_cond_proj_dim), as latent consistency models do: "
            "it cannot be trained here; expected a U-Net with classifier-free guidance"
        )


def default_guidance(pipeline: Any, network: Any) -> float:
    """The guidance that a pipeline draws with where none is asked for.

    A FLUX without `guidance_embeds` does not use its `guidance_scale`: what guides it is `true_cfg_scale`.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    if getattr(getattr(network, "config", None), "guidance_embeds", None) is False:
        return parameters["true_cfg_scale"].default if "true_cfg_scale" in parameters else 1.0
    return parameters["guidance_scale"].default
