"""Texts about a reward model's training: the plan before it, the outcome after it, and the model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagereward.tuning.data.image_pairs import ImagePairs, ShapesPairs
from imagereward.tuning.policy.trainable import trainable_parameters
from imagereward.tuning.reward_model.config import RewardModelConfig
from imagereward.tuning.reward_model.data import RankedImages
from imagereward.tuning.trainer.progress import facts
from imagereward.version import __version__

CARD_FILE = "README.md"
# Measures over the pairs of validation images: key in the history -> name in the card.
MEASURED = {"eval_accuracy": "agreement with the rankings, share of pairs", "eval_pair_loss": "loss"}


def plan(
    config: RewardModelConfig,
    scorer,
    train: RankedImages,
    valid: RankedImages,
    pairs: ShapesPairs | ImagePairs | None,
    updates: int,
    device: str,
) -> str:
    """The plan as lines: start, data, parameters, warm-up, updates, output.

    scorer       its parameters are frozen already as in training
    train, valid, pairs  rankings to learn from and to validate, and the warm-up's pairs
    updates      updates of the stage that learns from rankings
    """
    count = sum(value.numel() for value in trainable_parameters(scorer).values())
    whole = sum(value.numel() for value in scorer.parameters())
    values = {
        "start": _start(config),
        "data": f"{config.data}: {len(train)} prompts with {_pairs(train)} pairs of images to learn from, "
        f"{len(valid)} with {_pairs(valid)} to validate",
        "learns": f"{count:,} of {whole:,} parameters",
    }
    if config.warmup and pairs is not None:
        stage = config.warmup
        length = f"{stage.updates} updates" if stage.updates > 0 else f"{stage.epochs:g} epochs"
        values["warm-up"] = f"{length} of {stage.batch_size} of {len(pairs)} pairs of an image and a prompt"
    values |= {
        "updates": f"{updates} of {config.batch_size} prompts, {config.micro_batch} at once",
        "computes": f"in {config.precision} on {device}",
        "output": config.output,
    }
    return facts(f"{config.objective}:", values)


def outcome(history: Sequence[Mapping[str, Any]], output: Path) -> str:
    """The outcome as lines: agreement before and after, the scorer's directory, and Python to load it."""
    lines = []
    if found := before_and_after(history):
        step, (before, after) = found
        share, less = after["eval_accuracy"], before["eval_accuracy"]
        lines = [
            f"of {after['eval_pairs']} validation pairs {share:.1%} are ranked as in the data, at first "
            f"{less:.1%} (best checkpoint: update {step})"
        ]
    lines.append(f"the result is in {output}, with {CARD_FILE}; to load it:")
    return "\n".join([*lines, *(f"    {line}" for line in loading_lines(output))])


def loading_lines(output: Path) -> list[str]:
    """Lines of Python that load the scorer in `output` and score an image."""
    return [
        "import imagereward as RM",
        "",
        f"model = RM.load({str(output)!r})",
        'print(model.score("a red circle", "image.png"))',
    ]


def card(
    config: RewardModelConfig, scorer, history: Sequence[Mapping[str, Any]], output: Path, data: str
) -> str:
    """The model card in Markdown: start, data, measured agreement, config, and Python to load the scorer.

    data  the amount of data in words; see `amount`
    """
    lines = [
        "---",
        "library_name: imagereward",
        "tags: [reward-model, text-to-image, imagereward]",
        "---",
        "",
        f"# {scorer.name}",
        "",
        f"A reward model for images and their prompts, trained with imagereward {__version__} from "
        f"rankings: {data}. It began as {_start(config)}. To load it:",
        "",
        "```python",
        *loading_lines(output),
        "```",
        "",
    ]
    if found := before_and_after(history):
        step, (before, after) = found
        rows = [f"| {name} | {before[key]:.4f} | {after[key]:.4f} |" for key, name in MEASURED.items()]
        lines += [
            f"Measured over the {after['eval_pairs']} pairs of unequal rank in `valid.json`, by which the "
            f"best checkpoint, of update {step}, was chosen:",
            "",
            "| | before | after |",
            "|---|---|---|",
            *rows,
            "",
        ]
    mean, std = scorer.config.mean, scorer.config.std
    if config.calibrate:
        lines += [
            f"{mean:.4g} is subtracted from scores, and they are divided by {std:.4g}, so that those of the "
            "validation images have mean 0 and standard deviation 1.",
            "",
        ]
    values = json.dumps(config.model_dump(exclude={"resume"}), indent=1)
    return "\n".join([*lines, "## Config", "", "```json", values, "```", ""])


def amount(train: RankedImages, valid: RankedImages, source: str) -> str:
    """The numbers of prompts and pairs of images in the data `source`, in words."""
    return f"`{source}`, {len(train)} prompts with {_pairs(train)} pairs of images, {len(valid)} to validate"


def before_and_after(history: Sequence[Mapping[str, Any]]):
    """(update of the checkpoint with the lowest loss, (first validation, that validation)); or None."""
    found = [entry for entry in history if "eval_pair_loss" in entry]
    if not found:
        return None
    # Trainer chooses among checkpoints; the validation before the first update has none.
    best = min([entry for entry in found if entry["step"]] or found, key=lambda each: each["eval_pair_loss"])
    return best["step"], (found[0], best)


def _start(config: RewardModelConfig) -> str:
    return "random weights" if config.architecture is not None else config.start


def _pairs(data: RankedImages) -> int:
    return sum(
        first != second
        for record in data.prompts
        for index, first in enumerate(record.ranking)
        for second in record.ranking[:index]
    )
