"""accelerate's Accelerator, as the launcher and the config say, and its trackers."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from imagereward.errors import InputError
from imagereward.tuning.distributed import check_together, several_on_cpus
from imagereward.tuning.settings import TrainerConfig


@contextmanager
def accelerating() -> Iterator[None]:
    """Decorates a training: when it ends or fails, accelerate forgets its precision, device and accumulation.

    accelerate keeps them for the whole process, and refuses a second training in another precision. What the
    caller has set up before is left as it is. accelerate has no public function for this; transformers'
    TrainingArguments and accelerate's own tests call the same ones.
    """
    if AcceleratorState._shared_state:
        yield
        return
    first = not PartialState._shared_state
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=first)
        GradientState._reset_state()


def make_accelerator(config: TrainerConfig, output: Path) -> Accelerator:
    """One that all processes share, which must have found each other.

    Raises InputError for a tracker that is not there, ImageRewardError if processes do not find each other.
    """
    try:
        accelerator = Accelerator(
            cpu=several_on_cpus(),
            kwargs_handlers=[
                # No buffer learns; and processes that take unequally many steps would wait for them.
                DistributedDataParallelKwargs(broadcast_buffers=False),
                # The others wait while the first writes a checkpoint.
                InitProcessGroupKwargs(timeout=timedelta(hours=2)),
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
    check_together(accelerator.num_processes)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    config.check_processes(accelerator.num_processes, sharded)
    return accelerator


def start_trackers(accelerator: Accelerator, config: TrainerConfig) -> None:
    """Open what `trackers` names; some write to the output directory at once."""
    if config.trackers:
        values = config.model_dump().items()
        plain = {name: value for name, value in values if isinstance(value, int | float | str)}
        accelerator.init_trackers("imagereward", config=plain)
