"""ShardedTrainer: transformers' Trainer for a reward model whose weights and moments are in shards.

transformers' own sharding does nothing on CPUs, and cannot resume a network that was sharded before. Here the
network is sharded as generators and judges are. Checkpoints have whole weights and moments, so that any
number of processes goes on from them, with shards or without.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import distribute_tensor
from transformers import Trainer

from imagereward.checkpoints.assembling import assemble
from imagereward.models.imagereward import ImageReward
from imagereward.tuning.distributed import processes_here
from imagereward.tuning.reward_model.preference import Preference
from imagereward.tuning.sharding import Mode, is_sharded, shard, whole

# Class names of the layers of both encoders, which are gathered one at a time.
BLOCKS = ("Block", "Layer")


class ShardedPreference(Preference):
    """A Preference in shards: reads whole weights, and gives those that were `gathered` last."""

    gathered: dict[str, torch.Tensor]

    def state_dict(self, *args, **kwargs):
        return self.gathered

    def load_state_dict(self, state_dict, *args, **kwargs):
        own = self.scorer.state_dict()
        shards = {name: _like(own[name], value) for name, value in state_dict.items()}
        return self.scorer.load_state_dict(shards, *args, **kwargs)


class ShardedTrainer(Trainer):
    """A Trainer whose `model`, a ShardedPreference, is sharded over all processes when it is made.

    mode       "zero2", "full" or "hybrid", see `shard`
    precision  number format in which weights are gathered; the head's stay as they are
    """

    def __init__(self, model: ShardedPreference, *arguments: Any, mode: Mode, precision: str, **more: Any):
        super().__init__(model, *arguments, **more)
        shard(
            model,
            BLOCKS,
            mode,
            group=processes_here(),
            ranks=self.args.world_size,
            device=self.args.device,
            precision=precision,
            exact=[model.scorer.get_submodule("mlp")],
        )
        self.network = model
        self.moments: dict[str, Any] | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, without DistributedDataParallel: shards exchange gradients themselves."""
        super().create_accelerator_and_postprocess()
        prepare: Callable = self.accelerator.prepare_model
        clip: Callable = self.accelerator.clip_grad_norm_
        self.accelerator.prepare_model = lambda model, *_, **__: prepare(  # type: ignore[method-assign]
            model, device_placement=False, evaluation_mode=True
        )
        self.accelerator.clip_grad_norm_ = lambda *of: whole(clip(*of))  # type: ignore[method-assign]

    def create_optimizer(self, *arguments: Any) -> Any:
        """Trainer's optimizer, whose state dicts have whole moments: those that `save_model` gathered."""
        optimizer: Any = super().create_optimizer(*arguments)
        optimizer.register_state_dict_post_hook(lambda _, state: self.moments or state)
        optimizer.register_load_state_dict_pre_hook(_in_shards)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Gather weights and moments in all processes, and save the weights in the first."""
        self.gather()
        super().save_model(output_dir, _internal_call)

    def gather(self) -> dict[str, torch.Tensor]:
        """The scorer's whole weights, on the CPU; all processes must call this."""
        self.moments, optimizer = None, self.optimizer
        if optimizer is not None:
            state = optimizer.state_dict()
            self.moments = {**state, "state": _gathered(state["state"])}
        self.network.gathered = _gathered(self.network.scorer.state_dict())
        return self.network.gathered

    def unsharded(self) -> ImageReward:
        """The scorer with whole weights, on this process's device; all processes must call this."""
        found = assemble(self.network.scorer.config, self.gather(), self.args.device, torch.float32)
        assert isinstance(found, ImageReward)
        return found


def _gathered(values: Any) -> Any:
    """The same, nested dicts too, with whole tensors on the CPU."""
    if isinstance(values, dict):
        return {name: _gathered(value) for name, value in values.items()}
    return whole(values).cpu() if isinstance(values, torch.Tensor) else values


def _in_shards(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict with whole moments, whose moments are sharded as the optimizer's parameters are."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    found = {
        number: {name: _like(parameters[number], value) for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    return {**state, "state": found}


def _like(own: torch.Tensor, value: Any) -> Any:
    """A whole tensor of the shape of `own`, sharded as it is; any other value as it is."""
    if is_sharded(own) and isinstance(value, torch.Tensor) and value.shape == own.shape:
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)  # type: ignore[attr-defined]
    return value
