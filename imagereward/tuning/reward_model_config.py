"""What a reward model's training is asked for."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from imagereward.preprocess import Preprocess
from imagereward.tuning.config import Config
from imagereward.tuning.weights import Checkpointing, HeadInit


class Schedule(Config):
    """How long and how fast a stage learns; the defaults are the published ones."""

    epochs: float = Field(10, gt=0)
    max_steps: int = Field(-1, ge=-1, description="updates, instead of epochs; -1: epochs decide")
    batch_size: int = Field(64, ge=1, description="items an update, over all devices")
    micro_batch: int = Field(8, ge=1, description="items a device takes at once")
    learning_rate: float = Field(1e-5, gt=0, description="at its highest; a cosine to 0 from there")
    warmup_steps: int = Field(0, ge=0, description="updates in which the rate rises")
    beta2: float = Field(0.999, gt=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")


class WarmUp(Schedule):
    """The image-text stage before the rankings. `data` is "shapes", or a table of {text, image}."""

    data: str = "shapes"
    pairs: int = Field(50_000, ge=2, description="how many pairs of Shapes an epoch has")
    rehearsal: int = Field(0, ge=0, description="pairs that each ranked prompt brings along afterwards")


class Architecture(Config):
    """A scorer to build from nothing. `vocabulary` is "bert", or "shapes" for the words of Shapes alone."""

    vision: dict[str, Any] = Field(default_factory=dict)
    text: dict[str, Any] = Field(default_factory=dict)
    projection: int = Field(256, ge=1)
    vocabulary: Literal["bert", "shapes"] = "bert"
    max_length: int = Field(35, ge=2)
    # TOML has no tuples, only lists.
    mean: tuple[float, float, float] = Field(Preprocess.mean, strict=False)
    std: tuple[float, float, float] = Field(Preprocess.std, strict=False)


class RewardModelConfig(Schedule):
    """A whole training. Rankings are `data`/train.json and `data`/valid.json; see `ranking_file`."""

    objective: Literal["preference"] = "preference"
    data: str
    encoding: str | None = Field(None, description="of the data; default: as marked, or else UTF-8")
    output: str
    name: str = Field("", description="what the scorer calls itself; default: the output directory's name")
    start: str = Field("BLIP", description='what load() takes: an ImageReward or a BLIP; or "nothing"')
    architecture: Architecture | None = None
    warmup: WarmUp | None = None
    head: HeadInit = "published"
    fix_rate: float = Field(0.7, ge=0, le=1, description="share of both encoders' depth that is frozen")
    checkpointing: Checkpointing = "torch"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    validations: int = Field(4, ge=1, description="validations an epoch")
    dead_after: int = Field(500, ge=1, description="updates a head may stay flat before it is called dead")
    calibrate: bool = Field(True, description="set mean and std so that validation scores are normal(0, 1)")
    store: Literal["float32", "float16", "bfloat16"] = Field("float32", description="dtype of what is saved")
    most_bad: float = Field(0.01, ge=0, le=1, description="share of images that may be missing or damaged")
    workers: int = Field(0, ge=0, description="processes that decode images")
    device: str | None = None
    seed: int = Field(0, ge=0)
    resume: bool = Field(False, description="go on from the output directory's last checkpoint")
    trainer: dict[str, Any] = Field({}, description="transformers.TrainingArguments, passed on as they are")

    @field_validator("trainer")
    @classmethod
    def _leaves_alone_what_resuming_needs(cls, values):
        decided = {"output_dir", "gradient_accumulation_steps", "per_device_train_batch_size"}
        if taken := decided & values.keys():
            names = ", ".join(sorted(taken))
            raise ValueError(f"{names} follow from output, batch_size and micro_batch: set those")
        return values

    @model_validator(mode="after")
    def _from_nothing_needs_a_shape(self):
        if (self.start == "nothing") != (self.architecture is not None):
            raise ValueError('start="nothing" and an [architecture] table belong together')
        return self

    @model_validator(mode="after")
    def _fairscale_recomputes_once_a_step(self):
        # Its checkpoints are reentrant, and data parallelism stops when a layer's gradient is ready twice.
        if self.checkpointing.startswith("fairscale") and self.warmup and self.warmup.rehearsal:
            raise ValueError(
                f'checkpointing="{self.checkpointing}" and warmup.rehearsal={self.warmup.rehearsal} do not '
                'go together; take checkpointing="torch"'
            )
        return self

    @model_validator(mode="after")
    def _fairscale_knows_no_bfloat16(self):
        # It recomputes under torch.cuda.amp.autocast, which is float16 on a GPU and nothing on a CPU.
        if self.checkpointing.startswith("fairscale") and self.precision == "bfloat16":
            raise ValueError(
                f'checkpointing="{self.checkpointing}" recomputes in another precision than '
                'precision="bfloat16"; take checkpointing="torch"'
            )
        return self
