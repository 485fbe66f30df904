"""What every training by the loop is asked for, beside what its optimizer is."""

from typing import Literal

from pydantic import Field

from imagereward.errors import InputError
from imagereward.tuning.optimizer import OptimizerConfig


class LoopConfig(OptimizerConfig):
    """How long, how fast, and what is kept."""

    batch_size: int = Field(64, ge=1, description="samples in an update, over all processes")
    micro_batch: int = Field(4, ge=1, description="samples that a process computes at once")
    clip: float = Field(1.0, gt=0, description="gradients are scaled down to at most this norm")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0: no average"
    )
    ema_every: int = Field(1, ge=1, description="the average moves after so many of `ema_unit`")
    ema_unit: Literal["updates", "steps"] = Field(
        "updates", description="steps: the optimizer's, of which an update of GRPO may have several"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of the network's computations; what learns is stored in float32"
    )
    evaluate_every: int = Field(20, ge=1, description="updates from one evaluation to the next")
    save_every: int = Field(20, ge=1, description="updates from one checkpoint to the next")
    keep: int = Field(3, ge=1, description="how many of the last checkpoints stay on disk")
    trackers: tuple[str, ...] = Field(
        (),
        strict=False,
        description='accelerate\'s trackers that get all logged numbers: ["tensorboard"], ["wandb"]',
    )
    seed: int = Field(0, ge=0, description="all noise and the order of prompts depend on it")
    resume: bool = Field(False, description="go on from the output directory's last checkpoint")

    def check_processes(self, ranks: int, sharded: bool) -> None:
        """Raises InputError where processes would have unequally much to do in a way that they cannot."""
        parts = -(-self.batch_size // self.micro_batch)
        if parts < ranks or (sharded and parts % ranks):
            expected = f"a multiple of {ranks}, which shards ask for" if sharded else f"at least {ranks}"
            raise InputError(
                f"batch_size={self.batch_size}, micro_batch={self.micro_batch}: an update has {parts} parts "
                f"for {ranks} processes; expected {expected}"
            )
        if sharded and self.ema:
            raise InputError(f"ema={self.ema}: no average is kept of sharded weights; expected ema=0")
