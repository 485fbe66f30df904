"""Training an image generator: from a config to a tuned pipeline, whatever the family and the objective."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from imagereward.errors import InputError
from imagereward.tuning.adapt import Base, LoRA, let_learn
from imagereward.tuning.config import Config, build
from imagereward.tuning.denoisers import Denoiser, open_denoiser
from imagereward.tuning.evaluate import Evaluation, EvaluationConfig
from imagereward.tuning.latent_images import LatentImages, open_pairs
from imagereward.tuning.loop import Loop, LoopConfig, make_accelerator
from imagereward.tuning.memory import keep_freed_memory
from imagereward.tuning.objectives.refl import Gradient, ReFL
from imagereward.tuning.objectives.sft import SFT
from imagereward.tuning.objectives.weighted import Weighted
from imagereward.tuning.policy import Policy
from imagereward.tuning.prompts import read_prompts
from imagereward.tuning.result import save_result
from imagereward.tuning.rewards import Rewards, open_rewards
from imagereward.tuning.runs import check_output, claim

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PairsConfig(Config):
    """(prompt, image) pairs to predict noise on. `data` is a JSON list of {text, image}, or "shapes"."""

    data: str
    pairs: int = Field(10_000, ge=1, description="how many of Shapes")
    things: int = Field(4, ge=1, description="most things in a scene of Shapes")
    cache: bool = Field(False, description="encode all images once, and keep their latents in the output")
    most_bad: float = Field(0.01, ge=0, le=1, description="share of images that may be missing or damaged")
    min_snr: float | None = Field(None, gt=0, description="gamma of min-SNR weights; 5 is usual")
    drop: float = Field(0.0, ge=0, le=1, description="share of samples that lose their prompt")


class Pretraining(PairsConfig):
    """The pretraining loss beside the reward."""

    weight: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1, description="samples an update")


class GeneratorConfig(LoopConfig):
    """What every objective needs. `model` is a diffusers pipeline: a directory or a hub id."""

    objective: str
    model: str
    output: str
    resolution: int | None = Field(None, ge=1, description="of the images; default: the model's own")
    steps: int = Field(40, ge=1, description="sampling steps")
    guidance: float = Field(1.0, ge=0, description="classifier-free; 1 is none")
    lora: LoRA | None = None
    checkpointing: bool = Field(True, description="recompute activations of network, decoder and scorers")
    vae_precision: Literal["float32", "bfloat16"] = "float32"
    reward: str | dict[str, float] = Field("", description="what to load, or several with weights")
    evaluation: EvaluationConfig = EvaluationConfig()


class ReFLConfig(GeneratorConfig):
    """Fine-tuning by the gradient of a reward; the defaults are the published ones for SD 1.x."""

    objective: Literal["refl"] = "refl"
    prompts: str
    gradient: Gradient = Gradient()
    target: float | None = Field(2.0, description="rewards above it are not pushed")
    scale: float = Field(1e-3, gt=0, description="of the reward's loss")
    stay: float = Field(0.0, ge=0, description="weight of the distance to the base model's predictions")
    pretraining: Pretraining | None = None


class SFTConfig(GeneratorConfig):
    """Learning to predict noise on (prompt, image) pairs."""

    objective: Literal["sft"] = "sft"
    pairs: PairsConfig


class Job(NamedTuple):
    """A config with what in it was opened: what an objective is built from."""

    config: Any
    denoiser: Denoiser
    rewards: Rewards | None
    prompts: list[str]
    output: Path


def _refl(job: Job):
    config = job.config
    if job.rewards is None:
        raise InputError('reward="": ReFL needs one, such as reward="ImageReward-v1.0"')
    config.gradient.check(config.steps)
    job.rewards.check_differentiable(job.denoiser.resolution)
    refl = ReFL(
        job.prompts,
        job.rewards,
        config.gradient,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        target=config.target,
        scale=config.scale,
        stay=config.stay,
        seed=config.seed,
    )
    if config.pretraining is None:
        return refl
    part = config.pretraining
    return Weighted({"refl": (1.0, refl), "pretraining": (part.weight, _sft_on(part, part.batch_size, job))})


def _sft(job: Job):
    return _sft_on(job.config.pairs, job.config.batch_size, job)


def _sft_on(part: PairsConfig, batch_size: int, job: Job) -> SFT:
    denoiser, config = job.denoiser, job.config
    pairs = open_pairs(
        part.data, denoiser.resolution, part.most_bad, count=part.pairs, seed=config.seed, things=part.things
    )
    data = LatentImages(pairs, denoiser.latents, job.output if part.cache else None)
    return SFT(
        data,
        batch_size=batch_size,
        micro_batch=config.micro_batch,
        min_snr=part.min_snr,
        drop=part.drop,
        seed=config.seed,
    )


# A recipe's objective -> its config, and what builds it.
OBJECTIVES: dict[str, tuple[type[GeneratorConfig], Callable[[Job], Any]]] = {
    "refl": (ReFLConfig, _refl),
    "sft": (SFTConfig, _sft),
}


def train_generator(
    config: GeneratorConfig, model: Any = None, reward: Any = None, prompts: Sequence[str] | None = None
) -> Any:
    """Train as the config says; the tuned diffusers pipeline is saved in `output`, and returned.

    `model` (a pipeline), `reward` (a scorer or a function) and `prompts` (a list) stand in for what the
    config names. `output` then holds the pipeline, or with LoRA its weights, a model card, `run.json`,
    `history.json`, `samples/` and the last checkpoints. Raises InputError for what cannot be trained,
    NonFiniteLossError when a loss is no number, CheckpointError when a checkpoint cannot be written.
    """
    values = config.model_dump(exclude={"resume"})
    output = check_output(config.output, values, config.resume)
    named = prompts if prompts is not None else getattr(config, "prompts", None)
    texts = read_prompts(named) if named is not None else []
    watched = read_prompts(config.evaluation.prompts) if config.evaluation.prompts else texts
    accelerator = make_accelerator(config, output)
    device = accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    wanted = reward if reward is not None else config.reward
    rewards = open_rewards(wanted, device) if wanted else None
    held_out = open_rewards(config.evaluation.held_out, device) if config.evaluation.held_out else None
    denoiser = _open(config, model, device)
    base = Base(denoiser) if getattr(config, "stay", 0) else None
    if config.checkpointing:
        recompute(denoiser, rewards)
    _, make = OBJECTIVES[config.objective]
    objective = make(Job(config, denoiser, rewards, texts, output))
    if accelerator.is_main_process:
        claim(output, values)  # now that everything is in order: a mistake corrected finds it free
    accelerator.wait_for_everyone()
    policy = Policy(denoiser, denoiser.dynamics(config.steps), config.guidance, base)
    loop = Loop(policy, objective, config, output, accelerator)
    ended = loop.run(_watch(config, policy, watched or objective.data.texts, rewards, held_out, output))
    log.info("%s: %s", output, ended)
    with loop.with_average():
        learned = loop.learned()
        if accelerator.is_main_process:
            save_result(denoiser, learned, output, values, loop.history, ended)
    accelerator.wait_for_everyone()
    return denoiser.pipeline


def recompute(denoiser: Denoiser, rewards: Rewards | None) -> None:
    """Recompute the activations of network, decoder and scorers in the backward pass: slower, far smaller."""
    denoiser.network.enable_gradient_checkpointing()
    denoiser.latents.recompute()
    for scorer in rewards.scorers if rewards else ():
        scorer.set_grad_checkpointing()


def _open(config: GeneratorConfig, model: Any, device: torch.device) -> Denoiser:
    """The denoiser on the device: what learns in float32, the frozen rest in the precision asked for."""
    dtype = torch.float32 if config.lora is None else DTYPES[config.precision]
    denoiser = open_denoiser(model if model is not None else config.model, config.resolution, dtype)
    denoiser.network.to(device, dtype)
    for frozen in denoiser.frozen:
        frozen.to(device, DTYPES[config.precision])
    denoiser.latents.vae.to(dtype=DTYPES[config.vae_precision])
    let_learn(denoiser, config.lora)
    return denoiser


def _watch(config, policy: Policy, prompts, rewards, held_out, output: Path) -> Evaluation:
    """The evaluation, with its own number of steps and the policy's network."""
    chosen, steps = config.evaluation, config.evaluation.steps
    watched = policy
    if steps and steps != policy.dynamics.steps:
        watched = Policy(policy.denoiser, policy.denoiser.dynamics(steps), policy.guidance)
    return Evaluation(watched, prompts[: chosen.count], rewards, held_out, chosen, output, config.seed)


def tune_generator(values: dict[str, Any], source: str, **objects: Any) -> Any:
    """`train_generator` of a recipe's values; `source` names them in messages."""
    kind, _ = OBJECTIVES[values["objective"]]
    return train_generator(build(kind, values, source), **objects)
