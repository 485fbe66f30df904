"""RewardModelConfig: the keys of a reward model's training: learning rate, warm-up, architecture, …"""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from imagereward.images.preprocess import Preprocess
from imagereward.tuning.config import Config, refuse_renamed
from imagereward.tuning.reward_model.init import Checkpointing, HeadInit
from imagereward.tuning.sharding import Mode

# Arguments of transformers' Trainer -> the keys that decide them.
RENAMED = {
    "output_dir": "output",
    "num_train_epochs": "epochs",
    "max_steps": "updates",
    "per_device_train_batch_size": "micro_batch",
    "per_device_eval_batch_size": "micro_batch",
    "gradient_accumulation_steps": "batch_size",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_updates",
    "warmup_ratio": "warmup_updates",
    "adam_beta2": "beta2",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_gradient_norm",
    "dataloader_num_workers": "workers",
    "bf16": "precision",
    "fp16": "precision",
    "seed": "seed",
    "use_cpu": "device",
}


class ScheduleConfig(Config):
    """Length, batch and learning rate of a stage; the defaults are ImageReward's published settings."""

    epochs: float = Field(10, gt=0, description="passes over the data")
    updates: int = Field(-1, ge=-1, description="number of updates, instead of epochs; -1: epochs decide")
    batch_size: int = Field(
        64, ge=1, description="prompts (of the warm-up: pairs) in an update, over all devices"
    )
    micro_batch: int = Field(
        8, ge=1, description="prompts (of the warm-up: pairs) that a device computes at once"
    )
    learning_rate: float = Field(
        1e-5, gt=0, description="step size of AdamW at its highest; falls to 0 by a cosine"
    )
    warmup_updates: int = Field(
        0, ge=0, description="number of first updates in which the learning rate rises linearly"
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="decay of AdamW's second moment; beta1 is 0.9")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to at most this norm")

    @field_validator("updates")
    @classmethod
    def _some_or_as_epochs_say(cls, value):
        if value == 0:
            raise ValueError("expected at least 1, or -1 for as many as the epochs make")
        return value


class WarmupConfig(ScheduleConfig):
    """The stage on (prompt, image) pairs before the rankings; see `image_text.py`."""

    data: str = Field("shapes", description='a table of {text, image}, or "shapes" for drawn ones')
    pairs: int = Field(50_000, ge=2, description='pairs in an epoch, for data="shapes"')
    rehearsal: int = Field(
        0,
        ge=0,
        description="pairs that are learned beside each ranked prompt, so that the warm-up is not forgotten",
    )


class ArchitectureConfig(Config):
    """The sizes of a scorer that starts from random weights."""

    vision: dict[str, Any] = Field(
        default_factory=dict,
        description="image encoder: img_size, patch_size, embed_dim, depth, num_heads; default: BLIP-large's",
    )
    text: dict[str, Any] = Field(
        default_factory=dict,
        description="text encoder: width, depth, heads, mlp_width, max_positions; default: BLIP-large's",
    )
    projection: int = Field(256, ge=1, description="width of the features compared in the warm-up")
    vocabulary: Literal["bert", "shapes"] = Field(
        "bert", description="BERT's vocabulary, or only the words of Shapes"
    )
    max_length: int = Field(35, ge=2, description="tokens of a prompt that are read")
    # TOML has no tuples, only lists.
    mean: tuple[float, float, float] = Field(
        Preprocess.mean, strict=False, description="subtracted from red, green and blue in 0..1"
    )
    std: tuple[float, float, float] = Field(
        Preprocess.std, strict=False, description="red, green and blue are divided by it after that"
    )


class RewardModelConfig(ScheduleConfig):
    """The config of a reward model's training: optional warm-up on pairs, then learning from rankings."""

    objective: Literal["preference"] = Field("preference", description="the better image scores higher")
    data: str = Field(
        description="directory with rankings: train.json and valid.json, or the tables that "
        "docs/reward-models.md lists under Data"
    )
    encoding: str | None = Field(
        None, description="encoding of the data; default: as a byte order mark says, else UTF-8"
    )
    output: str = Field(description="a new or empty directory for the result")
    name: str = Field("", description="the scorer's name; default: the output directory's")
    start: str = Field(
        "BLIP", description='an ImageReward or a BLIP as load() takes it, or "nothing" for random weights'
    )
    architecture: ArchitectureConfig | None = Field(
        None, description='sizes of a scorer with random weights, for start="nothing"; null: those of `start`'
    )
    warmup: WarmupConfig | None = Field(
        None, description="image-text training before the rankings; null: none"
    )
    head: HeadInit = Field(
        "published",
        description="initial weights of a new reward head on a loaded BLIP; small models need ordinary, "
        "which "
        'start="nothing" always has',
    )
    fix_rate: float = Field(0.7, ge=0, le=1, description="share of both encoders' layers that stays frozen")
    checkpointing: Checkpointing = Field(
        "torch",
        description="recompute activations in the learning from rankings, not in the warm-up: slower, with "
        "less memory",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of the computations"
    )
    sharding: Mode = Field(
        "none",
        description="whether each process holds all weights (none), or a share of gradients and moments "
        "(zero2), of the weights too (full), or of all of them within the processes of a machine (hybrid)",
    )
    validations: int = Field(
        4, ge=1, description="validations in an epoch; the result has the weights of the best one"
    )
    dead_after: int = Field(
        500,
        ge=1,
        description="stop with an error if the scores of different images still hardly "
        "differ after this many updates",
    )
    calibrate: bool = Field(
        True, description="shift and scale scores to mean 0 and standard deviation 1 on the validation data"
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="number format of the saved weights"
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of images that may be missing or damaged"
    )
    workers: int = Field(
        0, ge=0, description="number of processes that decode images; 0: the training's own process"
    )
    device: str | None = Field(None, description='"cpu" or "cuda"; default: a GPU if there is one')
    seed: int = Field(0, ge=0, description="seed of random weights and of the order of prompts")
    resume: bool = Field(False, description="resume from the last checkpoint in `output`")
    trainer: dict[str, Any] = Field(
        {}, description="keys of transformers.TrainingArguments that have no key here; also for the warm-up"
    )

    @field_validator("trainer")
    @classmethod
    def _leaves_alone_what_resuming_needs(cls, values):
        refuse_renamed(values, RENAMED)
        if taken := {"ddp_backend", "ddp_timeout"} & values.keys():
            names = ", ".join(sorted(taken))
            raise ValueError(
                f"{names}: the processes are joined, and watch each other, before Trainer starts"
            )
        return values

    @model_validator(mode="after")
    def _from_nothing_needs_a_shape(self):
        if (self.start == "nothing") != (self.architecture is not None):
            raise ValueError('start="nothing" and an [architecture] table belong together')
        return self

    @model_validator(mode="after")
    def _fairscale_recomputes_once_a_step(self):
        # fairscale's checkpoints are reentrant; DistributedDataParallel fails if a layer gets two gradients.
        if self.checkpointing.startswith("fairscale") and self.warmup and self.warmup.rehearsal:
            raise ValueError(
                f'checkpointing="{self.checkpointing}" and warmup.rehearsal={self.warmup.rehearsal} do not '
                'go together; take checkpointing="torch"'
            )
        return self

    @model_validator(mode="after")
    def _shards_go_with(self):
        others = {
            "a [warmup] table": self.warmup is not None,
            f'checkpointing="{self.checkpointing}"': self.checkpointing.startswith("fairscale"),
            'precision="float16"': self.precision == "float16",
            "trainer.fsdp or trainer.deepspeed": bool({"fsdp", "deepspeed"} & self.trainer.keys()),
        }
        if self.sharding != "none" and any(others.values()):
            names = ", ".join(name for name, there in others.items() if there)
            raise ValueError(f'sharding="{self.sharding}" does not go with {names}')
        return self

    @model_validator(mode="after")
    def _fairscale_knows_no_bfloat16(self):
        # fairscale recomputes under torch.cuda.amp.autocast: in float16 on a GPU, in float32 on a CPU.
        if self.checkpointing.startswith("fairscale") and self.precision == "bfloat16":
            raise ValueError(
                f'checkpointing="{self.checkpointing}" recomputes in another precision than '
                'precision="bfloat16"; take checkpointing="torch"'
            )
        return self
