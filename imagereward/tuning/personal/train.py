"""personalise: teaches a scorer one taste from choices, as an adapter, and says whether it learned any."""

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from imagereward.adapters.base import Adapter
from imagereward.adapters.positions import clamped_rows
from imagereward.checkpoints.loading import load
from imagereward.config import AdapterConfig
from imagereward.errors import InputError, PositionsClampedWarning
from imagereward.precision import on_cpu
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.config import build
from imagereward.tuning.distributed import (
    check_first_gpu,
    is_first_process,
    of_first_process,
    wait_for_everyone,
)
from imagereward.tuning.personal.card import CARD_FILE, card
from imagereward.tuning.personal.choices import Choices, read_choices
from imagereward.tuning.personal.config import LearningConfig, PersonalConfig
from imagereward.tuning.personal.data import ChoiceData
from imagereward.tuning.personal.fit import CURVE_FILE, Curve, fit
from imagereward.tuning.personal.folds import best_epoch, groups_of, held_out, nested_epochs, split
from imagereward.tuning.personal.learner import Learned, Learner, ready
from imagereward.tuning.personal.summary import Summary, measured
from imagereward.tuning.trainer.accelerate_setup import accelerating, join_processes
from imagereward.tuning.trainer.progress import tell
from imagereward.tuning.trainer.run_directory import (
    check_run_directory,
    create_run_directory,
    latest_checkpoint,
    write_atomically,
)

SUMMARY_FILE = "summary.json"
FOLDS = "folds"


class Personalised(NamedTuple):
    """The adapter, which is on the scorer, and what came of its training."""

    adapter: Adapter
    summary: Summary


def adapter_config(config: LearningConfig, name: str) -> AdapterConfig:
    """The adapter that a config describes."""
    keys = ("kind", "modules", "rank", "positions", "shared", "activation", "bias", "dropout", "alpha")
    return AdapterConfig(name=name, **{key: getattr(config, key) for key in keys})


@accelerating()
def personalise_scorer(
    scorer: Scorer,
    choices: Choices,
    config: LearningConfig,
    name: str,
    *,
    folds: int = 5,
    share: float = 0.2,
    directory: Path | None = None,
    resume: bool = False,
) -> Personalised:
    """Put a new adapter on the scorer, and teach it the choices.

    folds      parts of a cross-validation: each is held out once, then all choices are learned, for as many
               epochs as were best. 0: a `share` of the prompts is held out, and the best epoch is taken
    directory  for the parts' results and checkpoints; None: nothing is kept

    If the training fails, the adapter is taken off again. Raises InputError for choices that say nothing, for
    a config that does not suit the scorer, and for a scorer on another GPU than the first.
    """
    began = time.monotonic()
    check_first_gpu(scorer.device)
    join_processes()
    choices = decided(choices, config)
    groups = groups_of(choices.items)
    with on_cpu():
        adapter = scorer.adapters.add(
            scorer, adapter_config(config, name), scorer.token_streams(), seed=config.seed
        )
    clamped = _clamped(scorer, choices, config)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            # Trainer's files are the first process's, where the others read them.
            where = Path(of_first_process(temporary)) if directory is None else directory
            keep = directory is not None
            found = train_and_measure(
                scorer, adapter, choices, groups, config, folds, share, where, keep=keep, resume=resume
            )
            wait_for_everyone()  # before any files are removed
    except BaseException:
        scorer.adapters.remove(scorer, name)
        raise
    adapter.train(False)
    adapter.let_learn(False)
    scorer.config = replace(scorer.config, adapters=scorer.adapters.configs)
    summary = replace(found, clamped=clamped, seconds=time.monotonic() - began)
    return Personalised(adapter, summary)


def decided(choices: Choices, config: LearningConfig) -> Choices:
    """The choices that prefer an image. Raises InputError for a loss that is not for their kind."""
    if choices.compares:
        return replace(choices, items=tuple(item for item in choices.items if item.decided))
    if config.loss == "dpo":
        raise InputError(f"loss='dpo' is for rankings and pairs; {choices.source} holds {choices.kind}")
    return choices


def train_and_measure(
    scorer: Scorer,
    learned: Learned,
    choices: Choices,
    groups: Sequence[int],
    config: LearningConfig,
    folds: int,
    share: float,
    directory: Path,
    *,
    keep: bool = False,
    resume: bool = False,
    encode_once: bool = True,
) -> Summary:
    """Train `learned`, an adapter or other weights of the scorer, in place; measure it on held-out choices.

    keep    whether results of folds, and checkpoints, are written to `directory`
    resume  whether to go on from those that are there
    encode_once  False: the image encoder's own weights are among what learns
    """
    learner, data, scores = ready(scorer, learned, choices, config, encode_once)
    learned.let_learn()
    initial = {name: value.detach().clone() for name, value in learned.weights().items()}
    checkpoint = latest_checkpoint(directory) if resume else None
    if not folds:
        out = held_out(groups, share, config.seed)
        kept = sorted(set(range(len(data))) - set(out))
        curve = fit(learner, data.only(kept), config, directory, data.only(out), save=True, resume=checkpoint)
        parts, curves, epochs = [out], [curve], best_epoch([curve.losses])
        how = f"{len(out)} choices held out, and not learned from"
    else:
        parts = split(groups, folds, config.seed)
        curves = [
            _fold(learner, data, part, config, directory / FOLDS / f"{index}", initial, keep)
            for index, part in enumerate(tqdm(parts, "held-out parts", leave=False, delay=1))
        ]
        epochs = best_epoch([curve.losses for curve in curves])
        learned.load_weights(initial)
        fit(learner, data, config, directory, epochs=epochs, save=keep, resume=checkpoint)
        how = f"cross-validation in {len(parts)} parts"
    held = [index for part in parts for index in part]
    chosen = nested_epochs([curve.losses for curve in curves])
    adapted = [row for curve, epoch in zip(curves, chosen, strict=True) for row in curve.at(epoch)]
    measures = measured(
        choices.kind,
        [choices.items[index] for index in held],
        [groups[index] for index in held],
        [scores[index] for index in held],
        adapted,
    )
    parameters = sum(value.numel() for value in learned.learned())
    return Summary(
        kind=choices.kind, choices=len(data), how=how, epochs=epochs, parameters=parameters, **measures
    )


def _fold(
    learner: Learner,
    data: ChoiceData,
    part: list[int],
    config: LearningConfig,
    directory: Path,
    initial: Mapping[str, Any],
    keep: bool,
) -> Curve:
    """Train on all but `part`, measure on it; the result is read from the directory if it is there."""
    file = directory.with_suffix(".json")
    if keep and file.is_file():
        return Curve(*json.loads(file.read_text(encoding="utf-8")))
    learner.learned.load_weights(initial)
    rest = sorted(set(range(len(data))) - set(part))
    curve = fit(learner, data.only(rest), config, directory, data.only(part))
    if keep and is_first_process():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(curve))
    return curve


def _clamped(scorer: Scorer, choices: Choices, config: LearningConfig) -> int:
    """How many prompts have fewer tokens than the positions ask for; PositionsClampedWarning if any has."""
    if config.kind == "lora":
        return 0
    prompts = list(dict.fromkeys(choice.prompt for choice in choices.items))
    count = clamped_rows(config.positions, scorer.stream_lengths(prompts))
    if count:
        warnings.warn(
            f"positions={config.positions!r}: {count} of {len(prompts)} prompts of {choices.source} have "
            "fewer tokens; of these, the first and the last ones get at most half each",
            PositionsClampedWarning,
            stacklevel=2,
        )
    return count


@accelerating()
def tune_personal(values: dict[str, Any], source: str) -> Adapter:
    """Train an adapter as a recipe's values say, and write it to its output directory; returns it."""
    config = build(PersonalConfig, values, source)
    check_first_gpu(config.device)
    described = config.model_dump(exclude={"resume"})
    output = check_run_directory(config.output, described, config.resume)
    choices = read_choices(config.data, config.images, config.encoding)
    join_processes()
    scorer = load(config.scorer, config.device)
    name = config.name or output.resolve().name
    adapter_config(config, name)  # a wrong name is refused before anything is written
    if is_first_process():
        create_run_directory(output, described)
        tell(_plan(config, scorer, choices))
    adapter, summary = personalise_scorer(
        scorer,
        choices,
        config,
        name,
        folds=config.folds,
        share=config.held_out,
        directory=output,
        resume=config.resume,
    )
    if is_first_process():
        save_result(adapter, summary, output)
        tell(f"{summary}\nthe adapter is in {output}; to use it:\n    " + loading_line(adapter, output))
    return adapter


def _plan(config: PersonalConfig, scorer: Scorer, choices: Choices) -> str:
    parts = f"{config.folds} parts, each held out once" if config.folds else f"{config.held_out:.0%} held out"
    return (
        f"{scorer.name} learns {len(choices.items)} {choices.kind} of {config.data} by {config.kind} of rank "
        f"{config.rank}; {parts}"
    )


def loading_line(adapter: Adapter, output: Path) -> str:
    """A line of Python that loads the scorer with the adapter."""
    return f"RM.load({adapter.described().base!r}, adapter={str(output)!r})"


def save_result(adapter: Adapter, summary: Summary, output: Path) -> Summary:
    """Write the adapter, its card and summary.json; remove checkpoints, which are of no more use."""
    adapter.save_pretrained(output)
    size = sum((output / name).stat().st_size for name in ("config.json", "adapter.safetensors"))
    summary = replace(summary, bytes=size)
    write_atomically(output / CARD_FILE, card(adapter, summary, loading_line(adapter, output)))
    write_atomically(output / SUMMARY_FILE, json.dumps(summary.to_dict(), indent=1) + "\n")
    for leftover in [*output.glob("checkpoint-*"), output / FOLDS]:
        shutil.rmtree(leftover, ignore_errors=True)
    (output / CURVE_FILE).unlink(missing_ok=True)
    return summary


def personalise_and_save(
    scorer: Scorer,
    choices: Choices,
    config: LearningConfig,
    name: str,
    output: str | os.PathLike | None,
    *,
    folds: int,
    share: float,
) -> Personalised:
    """`personalise_scorer`, whose adapter is then saved in `output`, a new directory, if there is one."""
    target = None if output is None else check_run_directory(os.fspath(output), {}, False)
    result = personalise_scorer(scorer, choices, config, name, folds=folds, share=share)
    if target is not None and is_first_process():
        target.mkdir(parents=True, exist_ok=True)
        result = result._replace(summary=save_result(result.adapter, result.summary, target))
    return result
