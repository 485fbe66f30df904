"""What every training of a generator is asked for, and what its objective is built from."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from imagereward.errors import InputError
from imagereward.tuning.adapt import LoRA
from imagereward.tuning.denoisers import Denoiser
from imagereward.tuning.dynamics import Dynamics
from imagereward.tuning.evaluate import EvaluationConfig
from imagereward.tuning.loop import LoopConfig
from imagereward.tuning.rewards import Rewards
from imagereward.tuning.rows import Row
from imagereward.tuning.scoring import Scoring

Precision = Literal["float32", "bfloat16", "float16"]


class Job(NamedTuple):
    """What a config names, opened."""

    denoiser: Denoiser
    rewards: Rewards | None
    rows: list[Row]
    output: Path

    def rewards_for(self, objective: str) -> Rewards:
        """The rewards, for an objective that cannot do without; InputError if there are none."""
        if self.rewards is None:
            raise InputError(f'reward="": {objective} needs one, such as reward="ImageReward-v1.0"')
        return self.rewards


class GeneratorConfig(LoopConfig):
    """What every objective needs. `model` is a diffusers pipeline: a directory or a hub id."""

    objective: str
    model: str
    output: str
    prompt_column: str | None = Field(
        None, description="of tables of prompts; default: prompt, text, caption or txt"
    )
    encoding: str | None = Field(
        None, description="of files of prompts and pairs; default: as marked, or else UTF-8"
    )
    family: str | None = Field(None, description='"module:name" of a Denoiser that is none of ours')
    resolution: int | None = Field(None, ge=1, description="of the images; default: the model's own")
    steps: int = Field(40, ge=1, description="sampling steps")
    guidance: float = Field(
        1.0,
        ge=0,
        description="classifier-free guidance scale; 1 and below is none, as in diffusers. A FLUX that was "
        "distilled for guidance (guidance_embeds) takes the number itself as an input",
    )
    lora: LoRA | None = None
    quantise: bool = Field(False, description="the network's frozen weights in 4 bits, under LoRA")
    checkpointing: bool = Field(True, description="recompute activations of network, decoder and scorers")
    embeddings: str = Field(
        "", description="directory that keeps prompts' embeddings; text encoders then leave the device"
    )
    vae_precision: Literal["float32", "bfloat16"] = "float32"
    reward: str | dict[str, float] = Field("", description="what to load, or several with weights")
    scoring: Scoring = Scoring()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _quantised_under_lora(self):
        if self.quantise and self.lora is None:
            raise ValueError("quantise=true without lora: weights in 4 bits cannot learn; add lora.rank=...")
        return self

    def dynamics(self, denoiser: Denoiser) -> Dynamics:
        """The noise and the sampling grid of training, deterministic."""
        return denoiser.dynamics(self.steps)

    @property
    def anchored(self) -> bool:
        """Whether the objective asks for the base model's predictions."""
        return False

    def make(self, job: Job) -> Any:
        """The objective. Raises InputError for what only shows with the model at hand."""
        raise NotImplementedError
