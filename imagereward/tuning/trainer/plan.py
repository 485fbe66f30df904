"""generator_plan and outcome: the texts that a training prints before it starts and after it ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagereward.tuning.export import CARD_FILE, evaluated
from imagereward.tuning.objectives.config import GeneratorConfig
from imagereward.tuning.policy.quantization import Linear4bit
from imagereward.tuning.policy.trainable import trainable_parameters
from imagereward.tuning.trainer.progress import facts
from imagereward.tuning.trainer_config import TrainerConfig


def generator_plan(
    config: GeneratorConfig, denoiser, prompts: Sequence[str], watched: int, accelerator
) -> str:
    """The plan of a generator's training as lines: model, data, parameters, reward, updates, output.

    prompts  the training prompts; of pairs and preferences, the prompt of each
    watched  number of prompts for evaluation
    """
    source, kind = getattr(config, "prompts", None), "prompts"
    for name in () if source else ("pairs", "preferences"):
        if (part := getattr(config, name, None)) is not None:
            source, kind = part.data, "pairs"
    seen = config.evaluation
    rewards = config.reward if isinstance(config.reward, str) else ", ".join(config.reward)
    values = {
        "model": f"{config.model}, {denoiser.resolution} pixels",
        "data": f"{source or ''}: {len(prompts)} {kind}",
        "learns": learns(denoiser.network, config),
        "reward": rewards or "none",
        "updates": updates(config, accelerator.num_processes),
        "computes": f"in {config.precision} on {accelerator.device}",
        "evaluates": f"before, every {config.evaluate_every} updates and after: {min(seen.count, watched)} "
        f"prompts, {seen.seeds} images each",
        "output": config.output,
    }
    return facts(f"{config.objective}:", values)


def learns(network, config: GeneratorConfig) -> str:
    """The trainable parameters in words, with their number."""
    count = sum(value.numel() for value in trainable_parameters(network).values())
    packed = [each for each in network.modules() if isinstance(each, Linear4bit)]  # two weights in a byte
    hidden = sum(each.in_features * each.out_features - each.weight.numel() for each in packed)
    whole = hidden + sum(value.numel() for value in network.parameters())
    name = type(network).__name__
    if config.lora is None:
        return f"all of {name}, {count:,} parameters"
    return f"LoRA of rank {config.lora.rank} in {name}, {count:,} parameters beside {whole - count:,}"


def updates(config: TrainerConfig, processes: int) -> str:
    """The number of updates, and of samples in an update, in words."""
    several = f" in each of {processes} processes" if processes > 1 else ""
    return (
        f"{config.updates} of {config.batch_size} samples, {min(config.micro_batch, config.batch_size)} at "
        f"once{several}"
    )


def part_plan(
    config: TrainerConfig, module, data: str, count: int, output: str, device: str, processes: int = 1
) -> str:
    """The plan, as `generator_plan`, for training an autoencoder or a text encoder; `count` pairs."""
    found = sum(value.numel() for value in trainable_parameters(module).values())
    values = {
        "data": f"{data}: {count} pairs of an image and a prompt",
        "learns": f"{found:,} parameters",
        "updates": updates(config, processes),
        "computes": f"in {config.precision} on {device}",
        "output": output,
    }
    return facts("training:", values)


def outcome(history: Sequence[Mapping[str, Any]], output: Path, ended: str, lines: Sequence[str]) -> str:
    """The outcome as lines: evaluations before and after, the result's directory, and Python to load it.

    ended  why the training ended
    lines  the Python that loads the result
    """
    update, rows = evaluated(history)
    text = [f"{ended}"]
    if rows:
        width = max(len(name) for name, *_ in rows)
        text.append(f"  {'':{width}}  {'before':>10}  {f'update {update}':>10}")
        text += [f"  {name:{width}}  {before:>10.4f}  {after:>10.4f}" for name, before, after in rows]
    samples = " and samples/ with pictures" if (output / "samples").is_dir() else ""
    text += [f"the result is in {output}, with {CARD_FILE}{samples}; to load it:"]
    return "\n".join([*text, *(f"    {line}" for line in lines)])
