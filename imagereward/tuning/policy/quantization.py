"""NF4 quantization of frozen weights under LoRA: four bits each, with quantized scales, by bitsandbytes.

QLoRA: Dettmers et al. 2023, arXiv:2305.14314.
"""

import torch
from torch import nn

from imagereward.errors import ImageRewardError


def quantize_to_4bit(network: nn.Module, device: torch.device | str) -> None:
    """Freeze the network's linear layers and keep their weights in four bits, in place, on a device.

    Raises ImageRewardError without bitsandbytes.
    """
    try:
        import bitsandbytes  # noqa: F401  # here, so that nothing has changed when it is missing
    except ImportError as error:
        raise ImageRewardError(
            f"quantize=true needs bitsandbytes: python -m pip install bitsandbytes ({error})"
        ) from error
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, Linear4bit(layer, device))


class Linear4bit(nn.Linear):
    """A linear layer whose weights are written out while they are used, and only then.

    bitsandbytes' own layer computes otherwise with a gradient than without one: what is drawn with it is
    not what is trained, and ratios of probabilities are not 1.
    """

    def __init__(self, layer: nn.Linear, device: torch.device | str):
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        weight = layer.weight.detach().to(device)
        packed, self.scales = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] times the weights, plus the bias."""
        return _Product.apply(x, self)

    def written_out(self) -> torch.Tensor:
        """The weights [out_features, in_features], in the precision they had before."""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight, self.scales)


class _Product(torch.autograd.Function):
    """Keeps the layer for the backward pass, and not its weights written out."""

    @staticmethod
    def forward(ctx, x, layer: Linear4bit):
        """x times the layer's weights, plus its bias."""
        ctx.layer = layer
        return nn.functional.linear(x, layer.written_out(), layer.bias)

    @staticmethod
    def backward(ctx, gradient):
        """What reaches x; the layer learns nothing."""
        weight = ctx.layer.written_out()
        return gradient.to(weight.dtype) @ weight, None
