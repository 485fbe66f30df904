"""NF4 quantization of the frozen weights under LoRA: 4 bits a weight, by bitsandbytes.

The scales of blocks of weights are quantized too (double quantization). QLoRA: Dettmers et al. 2023,
arXiv:2305.14314.
"""

import torch
from torch import nn

from imagereward.errors import ImageRewardError


def quantize_to_4bit(network: nn.Module, device: torch.device | str) -> None:
    """Replace every linear layer of the network by a frozen `Linear4bit` on `device`, in place.

    Raises ImageRewardError, with the network unchanged, if bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401  # tried first, so that a failure leaves the network unchanged
    except ImportError as error:
        raise ImageRewardError(
            f"quantize=true needs bitsandbytes: python -m pip install bitsandbytes ({error})"
        ) from error
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and not isinstance(layer, Linear4bit):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, Linear4bit(layer, device))


class Linear4bit(nn.Linear):
    """A frozen linear layer with weights in NF4, which are dequantized for each product and then freed.

    bitsandbytes' own layer gives different numbers with a gradient than without one. Sampling and training
    would differ, and the probability ratios of GRPO would not start at 1.
    """

    def __init__(self, layer: nn.Linear, device: torch.device | str):
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        weight = layer.weight.detach().to(device)
        packed, self.scales = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + bias, [..., out_features], of x [..., in_features]."""
        return _Product.apply(x, self)

    def written_out(self) -> torch.Tensor:
        """The dequantized weights [out_features, in_features], in the number format before quantization."""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight, self.scales)


class _Product(torch.autograd.Function):
    """The layer's product; the backward pass dequantizes the weights again instead of keeping them."""

    @staticmethod
    def forward(ctx, x, layer: Linear4bit):
        """x W^T + bias."""
        ctx.layer = layer
        return nn.functional.linear(x, layer.written_out(), layer.bias)

    @staticmethod
    def backward(ctx, gradient):
        """The gradient of x, gradient W; none for the layer, which is frozen."""
        weight = ctx.layer.written_out()
        return gradient.to(weight.dtype) @ weight, None
