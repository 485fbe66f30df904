"""Classifier-free guidance, as every family that has it does it."""

from collections.abc import Callable

import torch

from imagereward.tuning.denoisers.condition import Condition


def guided(
    forward: Callable, x, time_B, condition: Condition, without: Callable[[], Condition], scale: float
) -> torch.Tensor:
    """`forward(x, time, condition)` pushed away from what it gives without a prompt (one row).

    Ho and Salimans 2022, arXiv:2207.12598, equation 6 in the form prediction_0 + scale * (prediction -
    prediction_0). A scale of 1 costs one pass, any other two.
    """
    if scale == 1.0:
        return forward(x, time_B, condition)
    both = Condition.cat([without().repeat(len(x)), condition])
    nothing, prompted = forward(torch.cat([x, x]), torch.cat([time_B, time_B]), both).chunk(2)
    return nothing + scale * (prompted - nothing)
