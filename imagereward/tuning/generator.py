"""Training an image generator: from a config to a tuned pipeline, whatever the family and the objective."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel

from imagereward.precision import DTYPES, Exact, cast, unrounded
from imagereward.tuning.accelerator import accelerating, make_accelerator, start_trackers
from imagereward.tuning.adapt import Base, let_learn
from imagereward.tuning.config import build
from imagereward.tuning.denoisers import Denoiser, open_denoiser
from imagereward.tuning.embeddings import keep_embeddings
from imagereward.tuning.evaluate import Evaluation
from imagereward.tuning.job import GeneratorConfig, Job
from imagereward.tuning.loop import Loop
from imagereward.tuning.memory import keep_freed_memory
from imagereward.tuning.objectives import config_class
from imagereward.tuning.plan import generator_plan, outcome
from imagereward.tuning.policy import Policy
from imagereward.tuning.prompts import read_prompts, read_rows
from imagereward.tuning.quantise import in_four_bits
from imagereward.tuning.result import loading_lines, save_lora, save_result
from imagereward.tuning.rewards import Rewards, open_rewards
from imagereward.tuning.rows import Row, prompts_of
from imagereward.tuning.runs import check_output, claim
from imagereward.tuning.telling import tell


@accelerating()
def train_generator(
    config: GeneratorConfig, model: Any = None, reward: Any = None, prompts: Sequence[Row] | None = None
) -> Any:
    """Train as the config says; the tuned diffusers pipeline is saved in `output`, and returned.

    `model` (a pipeline), `reward` (a scorer or a function) and `prompts` (a list) stand in for what the
    config names. `output` then holds the pipeline, or with LoRA its weights, a model card, `run.json`,
    `history.json`, `samples/` and the last checkpoints. Raises InputError for what cannot be trained,
    NonFiniteLossError when a loss is no number, CheckpointError when a checkpoint cannot be written.
    """
    values = config.model_dump(exclude={"resume"})
    # At a constant rate a run of so many updates is the beginning of a longer one.
    free = ("updates",) if config.schedule == "constant" else ()
    output = check_output(config.output, values, config.resume, free)
    named = prompts if prompts is not None else getattr(config, "prompts", None)
    form = (config.prompt_column, config.encoding)
    for source in (named, config.evaluation.prompts or None):
        if source is not None:
            read_prompts(source, *form)  # a mistake is found before gigabytes are read
    accelerator = make_accelerator(config, output)
    device = accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    wanted = reward if reward is not None else config.reward
    rewards = open_rewards(wanted, device) if wanted else None
    held_out = open_rewards(config.evaluation.held_out, device) if config.evaluation.held_out else None
    denoiser, exact = _open(config, model, device)
    rows = read_rows(named, denoiser.inputs, *form) if named is not None else []
    watched = rows
    if config.evaluation.prompts:
        watched = read_rows(config.evaluation.prompts, denoiser.inputs, *form)
    base = Base(denoiser, DTYPES[config.precision]) if config.anchored else None
    if config.checkpointing:
        recompute(denoiser, rewards)
    objective = config.make(Job(denoiser, rewards, rows, output))
    watched = watched or objective.texts
    if config.embeddings:
        keep_embeddings(denoiser, [*objective.texts, *prompts_of(watched)], Path(config.embeddings))
    policy = Policy(denoiser, config.dynamics(denoiser), config.guidance, base)
    # A checkpoint of adapters is one that load_lora_weights reads.
    also = None if config.lora is None else lambda path, weights: save_lora(denoiser, weights, path)
    loop = Loop(policy, objective, config, output, accelerator, also)
    if accelerator.is_main_process:
        claim(output, values)  # now that everything is in order: a mistake corrected finds it free
        tell(generator_plan(config, denoiser, objective.texts, len(watched), accelerator))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config)
    ended = loop.run(_watch(config, policy, watched, rewards, held_out, output))
    loop.settle()
    learned = loop.learned()
    if accelerator.is_main_process:
        with unrounded(exact):
            save_result(denoiser, learned, output, values, loop.history, ended)
        tell(outcome(loop.history, output, ended, loading_lines(denoiser.pipeline, output, values)))
    accelerator.wait_for_everyone()
    if config.lora is None:  # the network is in float32, and so is the rest of what is returned
        accelerator.unwrap_model(denoiser.network, keep_fp32_wrapper=False)
        for value, before in exact:
            value.data = before.to(value.device)
    return denoiser.pipeline


def recompute(denoiser: Denoiser, rewards: Rewards | None) -> None:
    """Recompute the activations of network, decoder and scorers in the backward pass: slower, far smaller."""
    denoiser.network.enable_gradient_checkpointing()
    denoiser.latents.recompute()
    for scorer in rewards.scorers if rewards else ():
        scorer.set_grad_checkpointing()


def _open(config: GeneratorConfig, model: Any, device: torch.device) -> tuple[Denoiser, Exact]:
    """The denoiser on the device: what learns in float32, the frozen rest in the precision asked for.

    With it, what that rounded of the frozen rest, which the result must have as it was.
    """
    dtype = torch.float32 if config.lora is None else DTYPES[config.precision]
    source = model if model is not None else config.model
    denoiser = open_denoiser(source, config.resolution, dtype, config.family)
    vae = denoiser.latents.vae
    # A pipeline that was tuned before computes in that training's precision.
    extract_model_from_parallel(denoiser.network, keep_fp32_wrapper=False)
    cast(denoiser.network, dtype)
    if config.quantise:
        in_four_bits(denoiser.network, device)
    denoiser.network.to(device)
    exact = cast(vae, DTYPES[config.vae_precision])
    for frozen in denoiser.frozen:
        if frozen is not vae:
            exact += cast(frozen, DTYPES[config.precision])
            # With kept embeddings, text encoders come to the device when they are needed there.
            frozen.to("cpu" if config.embeddings else device)
    vae.to(device)
    let_learn(denoiser, config.lora, config.seed)
    return denoiser, exact


def _watch(config, policy: Policy, rows, rewards, held_out, output: Path) -> Evaluation:
    """The evaluation: the policy's network and guidance, on the pipeline's own grid."""
    chosen, denoiser = config.evaluation, policy.denoiser
    dynamics = denoiser.dynamics(chosen.steps or config.steps)
    watched = Policy(denoiser, dynamics, policy.guidance)
    rows = rows[: chosen.count]
    return Evaluation(watched, rows, rewards, held_out, chosen, output, config.seed, config.scoring)


def tune_generator(values: dict[str, Any], source: str, **objects: Any) -> Any:
    """`train_generator` of a recipe's values; `source` names them in messages."""
    config = build(config_class(values["objective"]), values, source)
    return train_generator(config, **objects)
