"""make_accelerator: accelerate's Accelerator for the config's precision and trackers and the launcher."""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn
from torch.distributed import HashStore

from imagereward.errors import ImageRewardError, InputError
from imagereward.tuning.distributed import (
    check_together,
    launched_together,
    processes_here,
    several_on_cpus,
)
from imagereward.tuning.sharding import shard
from imagereward.tuning.trainer_config import ShardedTrainerConfig, TrainerConfig

# Processes that each hold all weights, as accelerate starts them; shards are `tuning/sharding.py`'s.
KINDS = (
    DistributedType.NO,
    *(kind for kind in DistributedType if kind.value.startswith("MULTI_")),
)


@contextmanager
def accelerating() -> Iterator[None]:
    """A decorator of a training function that resets accelerate's global state when the function ends.

    accelerate keeps precision, device and gradient accumulation for the whole process, and refuses a second
    training in another precision. State that the caller has set up before stays. accelerate has no public
    function for the reset; transformers' TrainingArguments and accelerate's own tests call the same ones.
    """
    if AcceleratorState._shared_state:
        yield
        return
    first, grouped = not PartialState._shared_state, torch.distributed.is_initialized()
    try:
        yield
        if not grouped and torch.distributed.is_initialized():
            atexit.register(_leave_group)
    finally:
        if not grouped and torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1:
            torch.distributed.destroy_process_group()  # that `make_accelerator` made, for shards
        AcceleratorState._reset_state(reset_partial_state=first)
        GradientState._reset_state()


def _leave_group() -> None:
    """Stop the threads of torch's process group before the interpreter ends: one could abort the process.

    Only after trainings without an error, since it may wait for the other processes.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def join(cpu: bool = False, offload: bool = False) -> tuple[int, int]:
    """(index of this process, number of processes), when all processes of the launcher have found each other.

    cpu      whether a GPU is left alone
    offload  whether weights are in the host's memory, so that tensors of both memories are exchanged

    Raises ImageRewardError if the launcher started more.
    """
    cpu, more = cpu or several_on_cpus(), {}
    # Without this variable accelerate makes no group; on CPUs its own is gloo's.
    if offload and not cpu and "LOCAL_RANK" in os.environ and torch.accelerator.is_available():
        more["backend"] = _backend(torch.accelerator.current_accelerator(), offload)
    # While the first process writes a checkpoint, the others wait.
    state = PartialState(cpu=cpu, timeout=timedelta(hours=2), **more)
    check_together(state.num_processes)
    return state.process_index, state.num_processes


def _backend(device: Any, offload: bool) -> str:
    """The process group's backend, or with `offload` those of the device and of the host's memory."""
    own = torch.distributed.get_default_backend_for_device(device)
    return f"cpu:gloo,{device.type}:{own}" if offload and device.type != "cpu" else own


def join_processes() -> None:
    """Let the processes that a launcher started find each other; each then has its device.

    Does nothing in a process that is alone. Raises ImageRewardError if they do not find each other.
    """
    if launched_together():
        join()


def make_accelerator(
    config: TrainerConfig, output: Path, sharding: bool = False, cpu: bool = False
) -> Accelerator:
    """The Accelerator of this process, which has found all other processes of the launcher.

    output    directory in which trackers write
    sharding  whether weights are sharded, which takes a process group even of one process
    cpu       whether a GPU is left alone

    Raises InputError for a tracker that is not installed and for a batch size that does not suit the
    processes, ImageRewardError if the processes have not found each other.
    """
    offload = isinstance(config, ShardedTrainerConfig) and config.offload
    join(cpu, offload)
    try:
        accelerator = Accelerator(
            cpu=cpu or several_on_cpus(),
            kwargs_handlers=[
                # Buffers do not change in training. Broadcasting them would also make processes with
                # unequal numbers of forward passes wait for each other.
                DistributedDataParallelKwargs(broadcast_buffers=False),
            ],
            mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.precision],
            log_with=list(config.trackers) or None,
            project_dir=str(output),
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"accelerate refuses the config: {error}") from error
    found = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if absent := sorted({*config.trackers} - {*found, "all"}):
        raise InputError(f"trackers={list(config.trackers)}: {', '.join(absent)} not installed")
    if accelerator.distributed_type not in KINDS:
        raise InputError(
            f"accelerate was told to use {accelerator.distributed_type}; expected no plugin in its config: "
            'sharding="full" in the recipe shards weights'
        )
    config.check_processes(accelerator.num_processes, sharding)
    if sharding and not torch.distributed.is_initialized():
        backend = _backend(accelerator.device, offload)
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return accelerator


def shard_network(
    config: ShardedTrainerConfig,
    network: nn.Module,
    blocks: Sequence[str],
    accelerator: Accelerator,
    exact: Sequence[nn.Module] = (),
) -> None:
    """`shard` as the config says: not at all with sharding="none"."""
    if config.sharding != "none":
        shard(
            network,
            blocks,
            config.sharding,
            group=config.sharding_group or processes_here(),
            ranks=accelerator.num_processes,
            device=accelerator.device,
            precision=config.precision,
            offload=config.offload,
            exact=exact,
        )


def wrapped(
    accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer, sharded: bool
) -> tuple[Any, Any]:
    """(the network, the optimizer) as accelerate wraps them, for mixed precision and several processes.

    sharded  whether the network's weights are in shards

    Raises ImageRewardError for several processes that accelerate does not join.
    """
    if sharded:  # nothing to wrap; in evaluation mode accelerate adds the config's precision alone
        module = accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
        return module, accelerator.prepare_optimizer(optimizer)
    module, optimizer = accelerator.prepare(network, optimizer)
    if accelerator.num_processes > 1 and type(module) is type(network):
        raise ImageRewardError(
            f"accelerate left the network as it was, for {accelerator.distributed_type} in "
            f"{accelerator.num_processes} processes, and each would train alone; look at its config"
        )
    return module, optimizer


def start_trackers(accelerator: Accelerator, config: TrainerConfig) -> None:
    """Open the trackers that the config names, with the config's numbers and strings.

    Some trackers write to the output directory at once, so the directory must have been checked before.
    """
    if config.trackers:
        values = config.model_dump().items()
        plain = {name: value for name, value in values if isinstance(value, int | float | str)}
        accelerator.init_trackers("imagereward", config=plain)
