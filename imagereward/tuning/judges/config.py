"""JudgeTrainingConfig: the config keys of training a reward head on a vision-language model."""

from typing import Literal

from pydantic import Field

from imagereward.tuning.config import Config
from imagereward.tuning.trainer_config import ShardedTrainerConfig

UNCERTAIN = ("uncertain", "thurstone")
Loss = Literal["bradley-terry", "ties", "uncertain", "thurstone"]


class LoRAConfig(Config):
    """Low-rank updates of the language model's linear layers, which are merged into the saved weights."""

    rank: int = Field(16, ge=1, description="rank of the updates")
    alpha: int = Field(32, ge=1, description="the updates are scaled by alpha / rank")
    vision: bool = Field(False, description="whether the vision tower gets updates too")


class JudgeTrainingConfig(ShardedTrainerConfig):
    """The config of training a reward head, with LoRA or all weights, from rankings."""

    objective: Literal["judge"] = Field("judge", description="a vision-language model learns to score")
    model: str = Field(description="hub id or directory of an image-text-to-text model of transformers")
    template: str = Field(
        "preference", description="what is asked: name of a template, or a .toml or .json file"
    )
    data: str = Field(
        description="directory with rankings: train.json and valid.json, or the tables that "
        "docs/reward-models.md lists under Data"
    )
    encoding: str | None = Field(
        None, description="encoding of the data; default: as a byte order mark says, else UTF-8"
    )
    output: str = Field(description="a new or empty directory for the result")
    loss: Loss = Field(
        "bradley-terry",
        description="ties: Rao-Kupper's; uncertain: HPSv3's, with a standard deviation of each score; "
        "thurstone: -log of the probability that the better score is higher, under the same normal scores",
    )
    tie_threshold: float = Field(
        0.5, gt=0, description="for loss=ties: margin within which people see no difference"
    )
    hidden: tuple[int, ...] = Field(
        (1024, 16), strict=False, description="widths of the head's layers between hidden state and score"
    )
    dropout: float = Field(
        0.05, ge=0, lt=1, description="share of the head's first layer dropped in training"
    )
    lora: LoRAConfig | None = Field(
        None, description="low-rank updates, as lora=true or lora.rank=16; null: none"
    )
    train: Literal["head", "language", "all"] = Field(
        "head", description="what learns beside LoRA: the head, the language model's weights, or all"
    )
    pixels: tuple[int, int] | None = Field(
        None, strict=False, description="(least, most) pixels of an image after resizing; null: the model's"
    )
    checkpointing: bool = Field(True, description="recompute activations: slower, with less memory")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the computations; what learns is stored in float32"
    )
    updates: int = Field(1000, ge=1, description="updates of the weights in the whole training")
    batch_size: int = Field(8, ge=1, description="prompts in an update, each with all its images")
    micro_batch: int = Field(1, ge=1, description="prompts that a process computes at once")
    learning_rate: float = Field(2e-6, gt=0, description="step size of AdamW at its highest")
    warmup_updates: int = Field(50, ge=0, description="first updates, in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    evaluate_every: int = Field(100, ge=1, description="updates from one validation to the next")
    save_every: int = Field(100, ge=1, description="write a checkpoint every this many updates")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of images that may be missing or damaged"
    )
    device: Literal["cpu"] | None = Field(
        None, description='"cpu" leaves a GPU alone; default: a GPU if there is one'
    )
    seed: int = Field(0, ge=0, description="the head's first weights and the order of prompts depend on it")
