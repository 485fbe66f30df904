"""Snapshot: a copy of the trainable weights, which can replace them within a context.

The snapshots of a policy, by name:

reference  made by the trainer at the start where an objective names it; `refresh.py` may replace it. KL and
           distance penalties, DPO and `sampler="reference"` use it
old        the weights that draw the images: NFT's, which it moves after every update, and AWM's where an
           update has several optimizer steps
average    AWM's quick average of the weights (`average_decay`), moved after every update
ema        the moving average of the config's `ema`, moved by `average.py`; evaluated, and saved as the result
base       the weights before training, made by `finetune.py` for evaluations of both networks in turn
best       a judge's weights at the validation with the lowest loss, made by `judges/train.py`; the result

The trainer saves all of them in checkpoints and restores them.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from imagereward.errors import CheckpointError
from imagereward.tuning.policy.trainable import trainable_parameters
from imagereward.tuning.sharding import is_sharded, whole


class Snapshot:
    """A copy of a network's trainable weights by name, on the same device, sharded in the same way.

    With LoRA a snapshot holds the adapters' weights alone. At the start of training the adapters' second
    matrix is 0, so a snapshot of the start is the base model.
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
        """Copy the snapshot's weights into the network, whose own are lost."""
        for name, value in _parameters(network).items():
            value.copy_(self.weights[name])

    @contextlib.contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """A context in which the network has the snapshot's weights; afterwards its own, bit for bit.

        The context may stand between a forward pass with gradient and its backward pass. Within it
        parameters point to the snapshot's memory, and no memory is overwritten, so the backward pass uses
        the weights of its forward pass. Sharded parameters (DTensor) cannot point elsewhere: their values
        are copied in and back, and the backward pass gathers them after they are restored.
        """
        own = {
            name: value.detach().clone() if is_sharded(value) else value.data
            for name, value in _parameters(network).items()
        }
        _put(network, self.weights)
        try:
            yield
        finally:
            _put(network, own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights by name, unsharded, on the CPU. With sharded weights all processes must call this."""
        return {name: whole(value).cpu().contiguous() for name, value in self.weights.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the weights of a `state_dict`. Raises CheckpointError if their names differ."""
        if differing := sorted(state.keys() ^ self.weights.keys()):
            raise CheckpointError(
                f"the snapshot is of another model: {len(differing)} names differ, {differing[:4]}"
            )
        for name, own in self.weights.items():
            value = state[name].to(own.device)
            if is_sharded(own):
                from torch.distributed.tensor import distribute_tensor

                value = distribute_tensor(value, own.device_mesh, own.placements)  # type: ignore[attr-defined]
            own.copy_(value)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A context in which the module and all its submodules are in eval mode; afterwards each in its own."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name; of a network under FSDP, the sharded ones.

    A forward pass under FSDP may leave gathered weights in the network. They are resharded here; FSDP
    gathers them again when it needs them.
    """
    for module in network.modules():
        if callable(reshard := getattr(module, "reshard", None)):
            reshard()
    return trainable_parameters(network)


@torch.no_grad()
def _put(network: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give the trainable parameters these values."""
    for name, parameter in _parameters(network).items():
        if is_sharded(parameter):
            parameter.copy_(values[name])
        else:
            parameter.data = values[name]
    # Autocast keeps half-precision copies of the previous weights until its outermost context ends.
    torch.clear_autocast_cache()
