"""PersonalConfig: the config keys of teaching a scorer one taste."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from imagereward.config import ADAPTER_ACTIVATIONS, ADAPTER_KINDS
from imagereward.errors import InputError
from imagereward.tuning.config import Config, refuse_renamed

AdapterKind = Literal["loreft", "noreft", "consreft", "lobireft", "direft", "nodireft", "lora"]
Activation = Literal["none", "relu", "gelu", "silu", "tanh"]
assert AdapterKind.__args__ == ADAPTER_KINDS  # type: ignore[attr-defined]
assert Activation.__args__ == ADAPTER_ACTIVATIONS  # type: ignore[attr-defined]


MOST_FOLDS = 100
EXPECTED_FOLDS = f"expected 2 to {MOST_FOLDS} parts of a cross-validation, or 0 for one held-out share"

# Arguments of transformers' Trainer -> the keys that decide them.
RENAMED = {
    "output_dir": "output",
    "num_train_epochs": "epochs",
    "max_steps": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_share",
    "warmup_ratio": "warmup_share",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_gradient_norm",
    "eval_strategy": "folds",
    "save_strategy": "folds",
    "seed": "seed",
    "use_cpu": "device",
}


class LearningConfig(Config):
    """The adapter's form, the loss, and the length of the training."""

    kind: AdapterKind = Field("loreft", description="a ReFT intervention or lora, see docs/personal.md")
    modules: tuple[str, ...] = Field(
        (),
        strict=False,
        description='modules that it changes, or "text" or "image"; default: the scorer\'s own choice',
    )
    rank: int = Field(4, ge=1, description="number of directions in each module, at most its width")
    positions: str = Field("f1+l1", description='tokens that ReFT changes: the first and last, or "all"')
    shared: bool = Field(False, description="first and last tokens share one intervention")
    activation: Activation = Field("none", description="of W h + b in ReFT")
    bias: bool = Field(True, description="whether W h + b has its b")
    subspaces: dict[str, tuple[int, ...]] = Field(
        {},
        description="names of groups of ReFT's directions, from 0, such as {red = [0, 1], calm = [2, 3]}, "
        "which may be used alone after the training; all are trained together",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the delta that is set to 0 in training")
    alpha: int = Field(0, ge=0, description="LoRA's output is scaled by alpha / rank; 0: by 1")
    loss: Literal["own", "dpo"] = Field(
        "own",
        description="own: that of the kind of choices (pairwise, squared, cross-entropy); dpo: of rankings "
        "and pairs, relative to the scorer without the adapter",
    )
    beta: float = Field(1.0, gt=0, description="of loss=dpo: weight of the differences of scores")
    epochs: int = Field(
        20, ge=1, description="most passes over the choices; held-out choices select their number"
    )
    batch_size: int = Field(8, ge=1, description="choices in an update, over all devices")
    learning_rate: float = Field(4e-3, gt=0, description="step size of AdamW after the warm-up")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of updates in which the rate rises")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to at most this norm")
    patience: int = Field(
        5, ge=1, description="passes without a lower held-out loss after which a training stops"
    )
    seed: int = Field(0, ge=0, description="initial weights, the order of choices and the folds depend on it")
    device: str | None = Field(None, description='"cpu" or "cuda"; default: a GPU if there is one')
    trainer: dict[str, Any] = Field(
        {}, description="keys of transformers.TrainingArguments that have no key here"
    )

    @field_validator("subspaces", mode="before")
    @classmethod
    def _lists_of_directions(cls, values):
        if not isinstance(values, dict):
            return values
        return {name: tuple(rows) if isinstance(rows, list) else rows for name, rows in values.items()}

    @model_validator(mode="after")
    def _has_what_subspaces_divide(self):
        if self.subspaces and self.kind == "lora":
            raise ValueError("subspaces divide the directions of ReFT: leave them out, or take another kind")
        return self

    @field_validator("trainer")
    @classmethod
    def _leaves_alone_what_is_decided_here(cls, values):
        refuse_renamed(values, RENAMED)
        return values


class PersonalConfig(LearningConfig):
    """The config of an adapter that learns one person's or product's taste from choices."""

    objective: Literal["personal"] = Field("personal", description="an adapter for a scorer, from choices")
    data: str = Field(description="a table of choices: rankings, pairs, ratings or labels (docs/personal.md)")
    images: str | None = Field(None, description="folder that image paths start at; default: the table's")
    encoding: str | None = Field(
        None, description="encoding of the data; default: as a byte order mark says, else UTF-8"
    )
    scorer: str = Field("ImageReward-v1.0", description="the scorer that learns, as load() takes it")
    name: str = Field("", description="the adapter's name; default: the output directory's")
    output: str = Field(description="a new or empty directory for the adapter")
    folds: int = Field(
        5,
        ge=0,
        le=MOST_FOLDS,
        description="parts of a cross-validation, at least 2, each held out once; 0: one held-out share",
    )
    held_out: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="of folds=0: share of prompts that is not learned from: half selects the epoch, half "
        "measures",
    )
    resume: bool = Field(False, description="go on with the run in the output directory")

    @field_validator("folds")
    @classmethod
    def _several_folds_or_none(cls, folds):
        if folds == 1:
            raise ValueError(EXPECTED_FOLDS)
        return folds


def check_parts(folds: int, share: float) -> None:
    """Raises InputError unless `folds` is 0 or from 2 to `MOST_FOLDS`, and `share` between 0 and 1."""
    if type(folds) is not int or folds == 1 or not 0 <= folds <= MOST_FOLDS:
        raise InputError(f"folds={folds!r}: {EXPECTED_FOLDS}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InputError(f"held_out={share!r}: expected a share between 0 and 1")
