"""Snapshot: a copy of the trainable weights, which can take their place for a while."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from imagereward.errors import CheckpointError
from imagereward.tuning.policy.trainable import trainable_parameters


class Snapshot:
    """A copy of a network's trainable weights by name, on their device, sharded as they are.

    Of a network under LoRA a snapshot has the adapters' weights alone. At the start of training their second
    matrix is 0, so a snapshot from the start is the base model.
    """

    def __init__(self, network: nn.Module):
        self.weights = {name: value.detach().clone() for name, value in _parameters(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float = 0.0) -> None:
        """weights <- decay * weights + (1 - decay) * the network's weights; with a decay of 0, a copy."""
        for name, value in _parameters(network).items():
            if decay:
                self.weights[name].lerp_(value.detach(), 1 - decay)
            else:
                self.weights[name].copy_(value.detach())

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Leave the snapshot's weights in the network for good."""
        for name, value in _parameters(network).items():
            value.copy_(self.weights[name])

    @contextlib.contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """Within, the network has the snapshot's weights; afterwards its own again, bit for bit.

        May stand between a forward pass with gradient and its backward pass, which still sees the weights of
        the forward pass: parameters point to other memory for a while, and no memory is overwritten. Sharded
        parameters (DTensor) must stay where they are; their values are copied there and back. The backward
        pass gathers them anew, after they have their own values again.
        """
        own = {
            name: value.detach().clone() if _is_sharded(value) else value.data
            for name, value in _parameters(network).items()
        }
        _put(network, self.weights)
        try:
            yield
        finally:
            _put(network, own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights, whole and on the CPU. With sharded weights all processes call this."""
        return {
            name: (value.full_tensor() if _is_sharded(value) else value).cpu().contiguous()  # type: ignore[attr-defined]
            for name, value in self.weights.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take whole weights back. Raises CheckpointError if their names are not the network's."""
        if differing := sorted(state.keys() ^ self.weights.keys()):
            raise CheckpointError(
                f"a snapshot of another model: {len(differing)} names differ, {differing[:4]}"
            )
        for name, own in self.weights.items():
            value = state[name].to(own.device)
            if _is_sharded(own):
                from torch.distributed.tensor import distribute_tensor

                value = distribute_tensor(value, own.device_mesh, own.placements)  # type: ignore[attr-defined]
            own.copy_(value)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within, the module and all modules in it are in eval mode; afterwards each in the mode it was in."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters, of a network under FSDP the sharded ones.

    A forward pass may leave whole weights in the network; FSDP gathers them again when it needs them.
    """
    for module in network.modules():
        if callable(reshard := getattr(module, "reshard", None)):
            reshard()
    return trainable_parameters(network)


@torch.no_grad()
def _put(network: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give the trainable parameters these values."""
    for name, parameter in _parameters(network).items():
        if _is_sharded(parameter):
            parameter.copy_(values[name])
        else:
            parameter.data = values[name]
    torch.clear_autocast_cache()  # of weights in half precision, which live until the outermost context ends


def _is_sharded(value: torch.Tensor) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor
