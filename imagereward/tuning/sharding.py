"""Shards a network over processes by torch's fully_shard (FSDP2); gathers the whole weights for results."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from imagereward.errors import ImageRewardError, InputError
from imagereward.precision import DTYPES

Mode = Literal["none", "zero2", "full", "hybrid"]
# Gathers a sharded network's trainable weights on the first process; frozen weights are left out.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def is_sharded(value: nn.Module | torch.Tensor) -> bool:
    """Whether a tensor, or any parameter of a network, is in shards (a DTensor)."""
    if isinstance(value, nn.Module):
        return any(is_sharded(parameter) for parameter in value.parameters())
    return hasattr(value, "full_tensor")


def whole(value: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or for a sharded one all of it; all processes must call this for a sharded one."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


def whole_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The trainable weights by name, unsharded, on the CPU; all processes must call this.

    With sharded weights the first process gets them, the others an empty dict.
    """
    return {name: value.contiguous() for name, value in get_model_state_dict(module, options=WHOLE).items()}  # type: ignore[union-attr]


def class_of(network: nn.Module) -> Any:
    """The network's class; for a sharded network the class before fully_shard made a subclass of it."""
    if not is_sharded(network):
        return type(network)
    from torch.distributed.fsdp import FSDPModule

    return next(each for each in type(network).__mro__ if not issubclass(each, FSDPModule))


def make_mesh(mode: Mode, group: int, ranks: int, device: torch.device) -> Any:
    """The DeviceMesh of all processes: one dimension, or two for "hybrid": (copies, shards of a copy).

    group  "hybrid": processes that share one copy of the weights

    Raises InputError where `group` does not divide the processes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if mode != "hybrid":
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shards",))
    if group < 1 or ranks % group:
        raise InputError(
            f'sharding="hybrid", sharding_group={group}: expected a number that divides the {ranks} processes'
        )
    return init_device_mesh(device.type, (ranks // group, group), mesh_dim_names=("copies", "shards"))


def shard(
    network: nn.Module,
    blocks: Sequence[str],
    mode: Mode,
    *,
    group: int,
    ranks: int,
    device: torch.device,
    precision: str = "float32",
    offload: bool = False,
    exact: Sequence[nn.Module] = (),
) -> None:
    """Shard the network's weights over all processes, block by block, in place; all must call this.

    blocks     class names of the modules that are gathered one at a time, such as "FluxTransformerBlock"
    mode       "full": a block's weights are gathered for its forward pass and again for its backward pass.
               "zero2": they stay gathered from the forward to the backward pass; gradients and moments are in
               shards. "hybrid": as "full" within groups of `group` processes, each of which has a copy
    precision  number format in which weights are gathered and computed with; gradients are summed in float32
    offload    shards and moments are in the host's memory
    exact      modules that are gathered and computed in their weights' own number format

    The weights may be on the CPU: a block at a time is moved to `device`. Raises InputError for a network
    without such blocks and a `group` that does not divide, ImageRewardError if weights stayed whole.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    found = [module for module in network.modules() if type(module).__name__ in blocks]
    if not found:
        raise InputError(
            f"sharding={mode!r}: {type(network).__name__} has none of the blocks {list(blocks)}; expected a "
            "denoiser whose `blocks` name the classes of its repeated modules"
        )
    dtype = None if precision == "float32" else DTYPES[precision]
    options: dict[str, Any] = {
        "mesh": make_mesh(mode, group, ranks, device),
        "reshard_after_forward": mode != "zero2",
        # Inputs keep their number format: a timestep of 999 has no bfloat16. Autocast casts products.
        "mp_policy": MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type != "cpu") if offload else OffloadPolicy(),
    }
    inner = {id(below) for module in found for below in module.modules() if below is not module}
    for module in found:
        if id(module) not in inner:
            fully_shard(module, **options)
    for module in exact:
        fully_shard(module, **options | {"mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False)})
    fully_shard(network, **options)
    check_sharded(network)


def check_sharded(network: nn.Module) -> None:
    """Raises ImageRewardError if a parameter of the network is not in shards."""
    if missed := [name for name, value in network.named_parameters() if not is_sharded(value)]:
        raise ImageRewardError(
            f"{len(missed)} of the network's weights are not in shards, such as {missed[0]}: torch did not "
            "do what sharding= asks for; please report it with torch's version"
        )


def local_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes that this process holds of the tensors: of a sharded one its own shard."""
    own = [each.to_local() if is_sharded(each) else each for each in tensors]  # type: ignore[attr-defined]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in own}
    return sum(storages.values())  # gradients of a block lie in one storage
