"""GeneratorConfig: the config keys of every training of a generator; ObjectiveContext for its objective."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from imagereward.errors import InputError
from imagereward.rewards.opening import shown_name
from imagereward.tuning.data.image_size import Resolution, parse_resolution
from imagereward.tuning.data.prompts import has_lines
from imagereward.tuning.data.requests import Row
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.policy.trainable import LoRA
from imagereward.tuning.rewards.scoring import ScoringConfig
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.sampling.base import Dynamics
from imagereward.tuning.trainer_config import EvaluationConfig, ShardedTrainerConfig

Precision = Literal["float32", "bfloat16", "float16"]


class ObjectiveContext(NamedTuple):
    """The objects that a config names, loaded, from which `GeneratorConfig.make` builds the objective.

    denoiser  the generator, on its device
    rewards   the rewards; None for a config without a reward
    rows      the training prompts with their pictures; empty for a config without prompts
    output    the run's directory
    """

    denoiser: Denoiser
    rewards: Rewards | None
    rows: list[Row]
    output: Path

    def rewards_for(self, objective: str) -> Rewards:
        """The rewards; InputError, naming the objective, if the config has no reward with a weight but 0."""
        if self.rewards is None:
            raise InputError(f'reward="": {objective} needs one, such as reward="ImageReward-v1.0"')
        if not any(self.rewards.weights.values()):
            raise InputError(
                f"reward: the weights of {', '.join(map(shown_name, self.rewards.weights))} are 0, so "
                f"{objective} would learn nothing; expected another weight for at least one reward"
            )
        return self.rewards


class GeneratorConfig(ShardedTrainerConfig):
    """The config of a generator's training, with the keys that all objectives share.

    The config of an objective inherits it, adds its own keys, and defines `make`.
    """

    objective: str = Field(description='"refl", "grpo", "nft", …, or "module:Config" for one of your own')
    model: str = Field(
        description="the diffusers pipeline to start from: a directory, or a repository on the hub"
    )
    output: str = Field(description="a new or empty directory for the result")
    prompt_column: str | None = Field(
        None,
        description="column of the prompts in tables of prompts, pairs and preferences; default: prompt, "
        "text, caption or txt",
    )
    encoding: str | None = Field(
        None,
        description="encoding of files of prompts and pairs; default: as a byte order mark says, else UTF-8",
    )
    family: str | None = Field(
        None, description='"module:name" of a Denoiser of your own; default: decided by the pipeline'
    )
    resolution: Annotated[Resolution, BeforeValidator(parse_resolution)] | None = Field(
        None,
        description="size of the images in pixels, at least 1: one number for a square, or [height, width], "
        "on the command line also HEIGHTxWIDTH; default: the model's own",
    )
    steps: int = Field(40, ge=1, description="denoising steps from noise to image in training")
    guidance: float = Field(
        1.0,
        ge=0,
        description="classifier-free guidance scale in training; 1 and below is none, as in diffusers. A "
        "FLUX that was distilled for guidance (guidance_embeds) takes the number itself as an input",
    )
    lora: LoRA | None = Field(None, description="low-rank adapters learn; null: all weights of the network")
    quantize: bool = Field(
        False, description="hold the network's frozen weights in 4 bits; needs lora and bitsandbytes"
    )
    checkpointing: bool = Field(
        True, description="recompute activations in the backward pass: slower, with less memory"
    )
    text_cache: str = Field(
        "", description="directory to keep prompts' embeddings in; the text encoders then leave the device"
    )
    latent_cache: str = Field(
        "",
        description="directory to keep the latents of rows' pictures in, which may be that of text_cache; "
        "the autoencoder's encoder then leaves the device, unless the training encodes other images",
    )
    vae_precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the autoencoder"
    )
    reward: str | dict[str, float] = Field(
        "",
        description='a reward as load() takes it, "module:function", a server\'s address, or {name = weight}',
    )
    scoring: ScoringConfig = Field(ScoringConfig(), description="how rewards are computed and retried")
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(), description="what is drawn and scored before, during and after training"
    )

    @model_validator(mode="after")
    def _quantised_under_lora(self):
        if self.quantize and self.lora is None:
            raise ValueError("quantize=true without lora: weights in 4 bits cannot learn; add lora.rank=...")
        return self

    @model_validator(mode="after")
    def _whole_weights_in_4_bits(self):
        if self.quantize and self.sharding != "none":
            raise ValueError(
                f"quantize=true with sharding={self.sharding!r}: weights in 4 bits have scales of their own, "
                "which torch cannot shard; such a network mostly fits one card: leave sharding out"
            )
        return self

    @property
    def evaluation_column(self) -> str | None:
        """The column of the prompts in `evaluation.prompts`; None for a file of lines, which has none."""
        return None if has_lines(self.evaluation.prompts) else self.prompt_column

    def dynamics(self, denoiser: Denoiser) -> Dynamics:
        """The sampling grid of training, with `steps` steps, deterministic."""
        return denoiser.dynamics(self.steps)

    def make(self, job: ObjectiveContext) -> Any:
        """The objective. Raises InputError for settings that do not fit the loaded model."""
        raise NotImplementedError
