"""Config keys of the trainer, the optimizer and the evaluation, which all trainings of generators share."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.image_size import Resolution, parse_resolution
from imagereward.tuning.sharding import Mode

# Keys that may differ when a run is resumed: they change where weights are, not what is computed.
SHARDING_KEYS = ("sharding", "sharding_group", "offload", "save_in_background")


class OptimizerConfig(Config):
    """Number of updates, learning rate, schedule and optimizer; see `learning_rate_at` for the schedules."""

    updates: int = Field(100, ge=1, description="updates of the weights in the whole training")
    learning_rate: float = Field(1e-5, gt=0, description="step size of AdamW at its highest")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="the learning rate after the warm-up: the same, or falling to 0 at the end"
    )
    warmup_updates: int = Field(
        0, ge=0, description="number of first updates in which the learning rate rises linearly"
    )
    weight_decay: float = Field(
        1e-2,
        ge=0,
        description="AdamW multiplies weights by 1 - learning_rate * weight_decay at every step",
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="decay of AdamW's second moment; beta1 is 0.9")
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw", description="AdamW; in 8 bits its moments take a quarter of the memory (needs bitsandbytes)"
    )


class TrainerConfig(OptimizerConfig):
    """The optimizer's keys, batch sizes, averaged weights, precision, checkpoints, trackers and seed."""

    batch_size: int = Field(64, ge=1, description="samples in an update, over all processes")
    micro_batch: int = Field(4, ge=1, description="samples that a process computes at once")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to at most this norm")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0: no average"
    )
    ema_every: int = Field(1, ge=1, description="the average is updated once every this many `ema_unit`")
    ema_unit: Literal["updates", "steps"] = Field(
        "updates",
        description="what `ema_every` counts: updates, or steps of the optimizer (an update "
        "of GRPO may have several)",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of the network's computations; what learns is stored in float32"
    )
    evaluate_every: int = Field(20, ge=1, description="evaluate every this many updates")
    save_every: int = Field(20, ge=1, description="write a checkpoint every this many updates")
    keep_checkpoints: int = Field(3, ge=1, description="number of newest checkpoints that are kept")
    save_in_background: bool = Field(
        False,
        description="write checkpoints of sharded weights while training goes on, from a copy in the host's "
        "memory",
    )
    trackers: tuple[str, ...] = Field(
        (),
        strict=False,
        description='accelerate\'s trackers that get all logged numbers: ["tensorboard"], ["wandb"]',
    )
    seed: int = Field(0, ge=0, description="seed of all noise and of the order of prompts")
    resume: bool = Field(False, description="resume from the last checkpoint in `output`")

    @model_validator(mode="after")
    def _shards_alone_are_written_in_the_background(self):
        if self.save_in_background and getattr(self, "sharding", "none") == "none":
            raise ValueError("save_in_background is for sharded weights; expected sharding=...")
        return self

    def check_processes(self, ranks: int, sharded: bool) -> None:
        """Raises InputError for batch sizes that `ranks` processes cannot share.

        sharded  whether weights are in shards; each process then needs the same number of chunks
        """
        parts = -(-self.batch_size // self.micro_batch)
        if parts < ranks or (sharded and parts % ranks):
            expected = f"a multiple of {ranks}, which shards ask for" if sharded else f"at least {ranks}"
            raise InputError(
                f"batch_size={self.batch_size}, micro_batch={self.micro_batch}: an update has {parts} "
                f"micro-batches for {ranks} processes; expected {expected}"
            )


class ShardedTrainerConfig(TrainerConfig):
    """The trainer's keys, and how the weights are divided between processes, see `sharding.shard`."""

    sharding: Mode = Field(
        "none",
        description="whether each process holds all weights (none), or a share of gradients and moments "
        "(zero2), of the weights too (full), or of all of them within groups of processes (hybrid)",
    )
    sharding_group: int = Field(
        0, ge=0, description='processes of a group, for sharding="hybrid"; 0: those of one machine'
    )
    offload: bool = Field(
        False, description="hold sharded weights, gradients and moments in the host's memory: slower"
    )

    @model_validator(mode="after")
    def _can_be_sharded(self):
        if self.sharding == "none":
            if self.sharding_group or self.offload:
                raise ValueError("sharding_group and offload are for sharded weights; expected sharding=...")
            return self
        if self.sharding_group and self.sharding != "hybrid":
            raise ValueError(f"sharding_group with sharding={self.sharding!r}: it is for sharding='hybrid'")
        named = f"with sharding={self.sharding!r}"
        if self.optimizer == "adamw-8bit":
            raise ValueError(
                f"optimizer='adamw-8bit' {named}: bitsandbytes does not know shards; expected 'adamw', whose "
                "moments are sharded"
            )
        if self.precision == "float16":
            raise ValueError(
                f"precision='float16' {named}: processes would disagree about the loss's scale; expected "
                "'bfloat16'"
            )
        return self


class EvaluationConfig(Config):
    """The prompts and images of an evaluation, the held-out reward, and when to stop the training early."""

    prompts: str = Field(
        "", description="file of prompts that are not trained on; default: the first of the training prompts"
    )
    count: int = Field(16, ge=1, description="number of prompts, from the first")
    seeds: int = Field(
        2, ge=1, description="images for each prompt; with 2 or more their diversity is measured"
    )
    steps: int = Field(0, ge=0, description="denoising steps; 0: as in training")
    resolution: Annotated[Resolution, BeforeValidator(parse_resolution)] | None = Field(
        None, description="size of the images in pixels, as `resolution`; default: that of training"
    )
    tuned_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the steps that the tuned network takes, from the first; the network before "
        "training takes the others",
    )
    batch_size: int = Field(8, ge=1, description="images that a process draws at once")
    held_out: str | dict[str, float] = Field(
        "", description="a reward that is logged but not trained on, in the forms of `reward`; empty: none"
    )
    patience: int = Field(
        2,
        ge=0,
        description="stop after this many evaluations in a row in which the reward rose and "
        "held_out fell; 0: never",
    )
    grid_prompts: int = Field(6, ge=1, description="prompts in the grid of pictures under samples/")
