"""train_generator: trains an image generator of any family, by any objective, from a config to a pipeline."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel

from imagereward.precision import DTYPES, Exact, cast, unrounded
from imagereward.rewards.opening import shown_name
from imagereward.tuning.config import build
from imagereward.tuning.data.prompts import read_prompts, read_rows
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.evaluation.evaluate import Evaluation
from imagereward.tuning.export import loading_lines, save_lora, save_result
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.latent_cache import cache_pictures, encoder_aside
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.families.text_cache import cache_text
from imagereward.tuning.objectives import config_class
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.policy.policy import BASE, Hybrid, Policy
from imagereward.tuning.policy.quantization import quantize_to_4bit
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import set_trainable
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.trainer.accelerate_setup import (
    accelerating,
    join,
    make_accelerator,
    shard_network,
    start_trackers,
)
from imagereward.tuning.trainer.checkpoint import latest_state
from imagereward.tuning.trainer.liveness import watched
from imagereward.tuning.trainer.memory import keep_freed_memory
from imagereward.tuning.trainer.plan import generator_plan, outcome
from imagereward.tuning.trainer.progress import tell
from imagereward.tuning.trainer.run_directory import check_run_directory, create_run_directory
from imagereward.tuning.trainer.trainer import Trainer
from imagereward.tuning.trainer_config import SHARDING_KEYS


@accelerating()
def train_generator(
    config: GeneratorConfig, model: Any = None, reward: Any = None, prompts: Sequence[Row] | None = None
) -> Any:
    """Train an image generator; the tuned diffusers pipeline is saved in `config.output`, and returned.

    model    a diffusers pipeline instead of the one that the config names
    reward   a scorer or a function instead of the config's reward
    prompts  rows instead of the config's file of prompts

    `output` then holds the pipeline, or with LoRA the adapters' weights, a model card, `run.json` (the
    config), `history.json` (logged numbers), `samples/` (grids of images) and the last checkpoints. The user
    name and the password of a reward server's address are in `run.json` and nowhere else. Raises InputError
    for settings or data that cannot be trained, NonFiniteLossError for a loss or a gradient that is not
    finite, RewardError for a reward that fails for all images, CheckpointError for a checkpoint that cannot
    be written or read, ProcessLostError in all other processes if one of several ends too early.

    Of several processes only the first's returned pipeline has the unrounded weights of its frozen parts.
    With sharding it alone has the full weights, all on the CPU, and with LoRA none has: load the result from
    `output`.
    """
    output = Path(config.output).expanduser()
    rank, ranks = join(offload=config.offload)
    with watched(rank, ranks, lambda: latest_state(output)):
        return _train(config, model, reward, prompts)


class _Prepared(NamedTuple):
    """A training that is ready to run.

    exact  unrounded values of frozen weights, for the saved result; none in processes that do not write it
    """

    denoiser: Denoiser
    loop: Trainer
    evaluation: Evaluation
    exact: Exact


def _train(config: GeneratorConfig, model: Any, reward: Any, prompts: Sequence[Row] | None) -> Any:
    values = config.model_dump(exclude={"resume"})
    # At a constant learning rate a run is the beginning of a run with more updates, and may be continued.
    may_differ = (*SHARDING_KEYS, *(("updates",) if config.schedule == "constant" else ()))
    output = check_run_directory(config.output, values, config.resume, may_differ)
    named = prompts if prompts is not None else getattr(config, "prompts", None)
    # Finds mistakes before gigabytes of weights are loaded.
    if named is not None:
        read_prompts(named, config.prompt_column, config.encoding)
    if config.evaluation.prompts:
        read_prompts(config.evaluation.prompts, config.evaluation_column, config.encoding)
    accelerator = make_accelerator(config, output, config.sharding != "none")
    denoiser, loop, evaluation, exact = _prepare(config, model, reward, named, output, accelerator)
    shown = _shown(config)
    if accelerator.is_main_process:
        # Only now that everything is in order, so that a corrected mistake finds the directory free.
        create_run_directory(output, values)
        plan = generator_plan(shown, denoiser, loop.objective.prompts, len(evaluation.rows), accelerator)
        tell(plan)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, shown)
    loop.objective.prepare()
    aside = _spares_encoder(config, denoiser, loop.objective)
    with encoder_aside(denoiser.autoencoder.vae) if aside else nullcontext():
        ended = loop.run(evaluation)
    denoiser.network.eval()
    loop.settle()
    learned = loop.learned()
    if accelerator.is_main_process:
        with unrounded(exact):
            described = shown.model_dump(exclude={"resume"})
            save_result(denoiser, learned, output, described, loop.history, ended)
        tell(outcome(loop.history, output, ended, loading_lines(denoiser.pipeline, output, values)))
    accelerator.wait_for_everyone()
    if config.lora is None:  # the network is float32; the frozen parts get their unrounded weights back
        accelerator.unwrap_model(denoiser.network, keep_fp32_wrapper=False)
        if config.sharding != "none":  # as the whole network; the optimizer is still on the device
            for frozen in denoiser.frozen:
                frozen.to("cpu")
        for value, before in exact:
            value.data = before.to(value.device)
    return denoiser.pipeline


def _shown(config: GeneratorConfig) -> GeneratorConfig:
    """The config for logs, trackers and the card: without users and passwords of reward servers."""

    def names(reward: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(reward, str):
            return shown_name(reward)
        return {shown_name(name): weight for name, weight in reward.items()}

    evaluation = config.evaluation.model_copy(update={"held_out": names(config.evaluation.held_out)})
    return config.model_copy(update={"reward": names(config.reward), "evaluation": evaluation})


def _prepare(
    config: GeneratorConfig, model: Any, reward: Any, prompts: Any, output: Path, accelerator: Accelerator
) -> _Prepared:
    """Load the rewards, the model and the data, fill the caches, and put the trainer around them."""
    device = accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    wanted = reward if reward is not None else config.reward
    rewards = open_rewards(wanted, device) if wanted else None
    held_out = open_rewards(config.evaluation.held_out, device) if config.evaluation.held_out else None
    denoiser, exact = _open(config, model, device)
    if config.lora is not None or not accelerator.is_main_process:
        exact = []  # nothing frozen is written
    shard_network(config, denoiser.network, denoiser.blocks, accelerator)
    inputs, encoding, other = denoiser.inputs, config.encoding, config.evaluation.prompts
    images = (denoiser.resolution, denoiser.autoencoder.shape)
    rows = read_rows(prompts, inputs, config.prompt_column, encoding, *images) if prompts is not None else []
    evaluated = rows
    if other:
        # Rows of another size are checked by the evaluation before the training, which draws them all.
        same = config.evaluation.resolution is None or config.latent_cache
        column = config.evaluation_column
        evaluated = read_rows(other, inputs, column, encoding, *(images if same else ()))
    if config.checkpointing:
        recompute(denoiser, rewards)
    cache_pictures(denoiser, [*rows, *evaluated], Path(config.latent_cache) if config.latent_cache else None)
    objective = config.make(ObjectiveContext(denoiser, rewards, rows, output))
    evaluated = list((evaluated or objective.rows)[: config.evaluation.count])
    directory = Path(config.text_cache) if config.text_cache else None
    cache_text(denoiser, [*objective.prompts, *prompts_of(evaluated)], directory, [*rows, *evaluated])
    policy = Policy(denoiser, config.dynamics(denoiser), config.guidance)
    # With LoRA every checkpoint also holds adapters for diffusers' load_lora_weights.
    write_more = None if config.lora is None else lambda path, weights: save_lora(denoiser, weights, path)
    loop = Trainer(policy, objective, config, output, accelerator, write_more)
    evaluation = _evaluation(config, policy, evaluated, rewards, held_out, output)
    return _Prepared(denoiser, loop, evaluation, exact)


def _spares_encoder(config: GeneratorConfig, denoiser: Denoiser, objective: Objective) -> bool:
    """Whether all pictures are in the latent cache, so that nothing encodes any during the training."""
    elsewhere = bool(denoiser.inputs) and config.evaluation.resolution is not None
    return bool(config.latent_cache) and not objective.encodes_images and not elsewhere


def recompute(denoiser: Denoiser, rewards: Rewards | None) -> None:
    """Let the backward pass recompute activations of network, decoder and scorers: slower, less memory."""
    denoiser.network.enable_gradient_checkpointing()
    denoiser.autoencoder.recompute()
    for scorer in rewards.scorers if rewards else ():
        scorer.set_grad_checkpointing()


def _open(config: GeneratorConfig, model: Any, device: torch.device) -> tuple[Denoiser, Exact]:
    """(the denoiser on the device, unrounded values of its frozen weights, for the saved result).

    Trainable weights are float32. Frozen weights are in the config's precision, or its vae_precision.
    """
    dtype = torch.float32 if config.lora is None else DTYPES[config.precision]
    source = model if model is not None else config.model
    denoiser = open_denoiser(source, config.resolution, dtype, config.family)
    vae = denoiser.autoencoder.vae
    # A pipeline that was tuned before computes in that training's precision.
    extract_model_from_parallel(denoiser.network, keep_fp32_wrapper=False)
    cast(denoiser.network, dtype)
    if config.quantize:
        quantize_to_4bit(denoiser.network, device)
    if config.sharding == "none":  # else a block at a time is moved, when it is sharded
        denoiser.network.to(device)
    exact = cast_frozen(config, denoiser)
    for frozen in denoiser.frozen:
        if frozen is not vae:
            # With a text cache, text encoders are moved to the device only while they encode.
            frozen.to("cpu" if config.text_cache else device)
    vae.to(device)
    set_trainable(denoiser, config.lora, config.seed)
    return denoiser, exact


def cast_frozen(config: GeneratorConfig, denoiser: Denoiser) -> Exact:
    """Put the autoencoder and the text encoders into the config's precisions; returns unrounded values."""
    vae = denoiser.autoencoder.vae
    exact = cast(vae, DTYPES[config.vae_precision])
    for frozen in denoiser.frozen:
        if frozen is not vae:
            exact += cast(frozen, DTYPES[config.precision])
    return exact


def _evaluation(
    config: GeneratorConfig, policy: Policy, rows: list[Row], rewards: Any, held_out: Any, output: Path
) -> Evaluation:
    """The evaluation of the policy's network with its guidance, on the pipeline's own sampling grid."""
    chosen, denoiser = config.evaluation, policy.denoiser
    if chosen.resolution is not None:  # the same modules, for images of another size
        denoiser = open_denoiser(denoiser.pipeline, chosen.resolution, family=config.family)
        denoiser.module, denoiser.text = policy.module, policy.denoiser.text
    evaluated = Policy(denoiser, denoiser.dynamics(chosen.steps or config.steps), policy.guidance)
    if chosen.tuned_share < 1:
        policy.snapshots.setdefault(BASE, Snapshot(denoiser.network))
        evaluated.hybrid = Hybrid(chosen.tuned_share, lambda: policy.using(BASE))
    return Evaluation(evaluated, rows, rewards, held_out, chosen, output, config.seed, config.scoring)


def tune_generator(values: dict[str, Any], source: str, **objects: Any) -> Any:
    """`train_generator` with a recipe's values; `source` names the recipe in error messages."""
    config = build(config_class(values["objective"]), values, source)
    return train_generator(config, **objects)
