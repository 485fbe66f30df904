"""The network with other weights for a while: as it was before training, or averaged."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.policy.trainable import trainable_parameters


class FrozenCopy:
    """The network as it was before training: adapters switched off, or a frozen copy of full weights.

    The copy is made at once, and costs the network's memory again. It computes in `precision`, as the network
    does in training: otherwise the two would differ before anything is learned.
    """

    def __init__(self, denoiser: Denoiser, precision: torch.dtype = torch.float32):
        self.denoiser, self.precision = denoiser, precision
        self.adapted = bool(getattr(denoiser.network, "peft_config", None))
        self.copy = None if self.adapted else copy.deepcopy(denoiser.network).requires_grad_(False).eval()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, the denoiser predicts as the base does."""
        network, module = self.denoiser.network, self.denoiser.module
        if self.copy is not None:
            self.denoiser.module = self.copy
            half = self.precision != torch.float32
            try:
                with torch.autocast(next(network.parameters()).device.type, self.precision, enabled=half):
                    yield
            finally:
                self.denoiser.module = module
            return
        learned = trainable_parameters(network)  # switching adapters off and on also decides what learns
        network.disable_adapters()
        try:
            yield
        finally:
            network.enable_adapters()
            for name, value in network.named_parameters():
                value.requires_grad_(name in learned)


@contextlib.contextmanager
def with_weights(module: nn.Module, weights: dict[str, torch.Tensor] | None) -> Iterator[None]:
    """Within, what learns has these values (an average of its own, say); afterwards its own again."""
    if weights is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in trainable_parameters(module).items()}
    _fill(module, weights)
    try:
        yield
    finally:
        _fill(module, own)


@torch.no_grad()
def _fill(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, value in trainable_parameters(module).items():
        value.copy_(weights[name])
