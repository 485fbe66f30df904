"""train_and_measure: trains what learns on all choices, and measures it on choices that were held out."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from imagereward.errors import InputError
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.distributed import is_first_process
from imagereward.tuning.personal.choice import Choices
from imagereward.tuning.personal.config import LearningConfig
from imagereward.tuning.personal.data import ChoiceData
from imagereward.tuning.personal.fit import Curve, fit
from imagereward.tuning.personal.folds import Groups, best_epoch, held_out, nested_epochs, split
from imagereward.tuning.personal.learner import Learned, Learner, ready, scores_now
from imagereward.tuning.personal.summary import Summary, measured
from imagereward.tuning.trainer.run_directory import latest_checkpoint, write_atomically

FOLDS = "folds"


def decided(choices: Choices, config: LearningConfig) -> Choices:
    """The choices that prefer an image. Raises InputError for a loss that is not for their kind."""
    if config.loss == "dpo" and not choices.compares:
        raise InputError(f"loss='dpo' is for rankings and pairs; {choices.source} holds {choices.kind}")
    return choices.decided


def train_and_measure(
    scorer: Scorer,
    learned: Learned,
    choices: Choices,
    groups: Groups,
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
    checkpoint = latest_checkpoint(directory) if resume else None
    trainings = min(folds, len(set(groups.of))) + 1 if folds else 1
    with tqdm(
        total=trainings * config.epochs,
        desc="learning",
        unit="epoch",
        leave=False,
        delay=1,
        disable=not is_first_process(),
    ) as bar:
        if folds:
            found = _cross_validated(learner, data, groups, folds, config, directory, keep, checkpoint, bar)
        else:
            found = _held_out(learner, data, choices, groups, share, config, directory, checkpoint, bar)
    figures = measured(
        choices.kind,
        [choices.items[index] for index in found.indices],
        Groups([groups.of[index] for index in found.indices], groups.unit),
        [scores[index] for index in found.indices],
        found.adapted,
    )
    return Summary(
        **vars(replace(figures, choices=len(data))),
        how=found.how,
        epochs=found.epochs,
        parameters=sum(value.numel() for value in learned.learned()),
    )


class _HeldOut(NamedTuple):
    """What was measured on choices that were not learned from, when all is trained.

    indices  of these choices
    adapted  scores of each one's images, after training on others
    epochs   length of the last training
    how      the choices came to be held out, for the summary
    """

    indices: list[int]
    adapted: list[list[float]]
    epochs: int
    how: str


def _cross_validated(
    learner: Learner,
    data: ChoiceData,
    groups: Groups,
    folds: int,
    config: LearningConfig,
    directory: Path,
    keep: bool,
    checkpoint: str | None,
    bar: tqdm,
) -> _HeldOut:
    """Train on all but each of `folds` parts, then on all.

    Each part is scored after as many epochs as suit the other parts.
    """
    learned, parts = learner.learned, split(groups.of, folds, config.seed)
    initial = {name: value.detach().clone() for name, value in learned.weights().items()}
    curves = []
    for index, part in enumerate(parts):
        curves.append(_fold(learner, data, part, config, directory / FOLDS / f"{index}", initial, keep, bar))
        bar.total = bar.n + config.epochs * (len(parts) - index)  # a part may have ended early
    epochs = best_epoch([curve.losses for curve in curves])
    bar.total = bar.n + epochs
    learned.load_weights(initial)
    fit(learner, data, config, directory, epochs=epochs, save=keep, resume=checkpoint, bar=bar)
    chosen = nested_epochs([curve.losses for curve in curves])
    adapted = [row for curve, epoch in zip(curves, chosen, strict=True) for row in curve.at(epoch)]
    indices = [index for part in parts for index in part]
    return _HeldOut(indices, adapted, epochs, f"cross-validation in {len(parts)} parts by {groups.unit}")


def _held_out(
    learner: Learner,
    data: ChoiceData,
    choices: Choices,
    groups: Groups,
    share: float,
    config: LearningConfig,
    directory: Path,
    checkpoint: str | None,
    bar: tqdm,
) -> _HeldOut:
    """Train once, on all but a `share` of the groups: half of it selects the epoch, the rest measures."""
    selecting, measuring = held_out(groups.of, share, config.seed)
    rest = sorted(set(range(len(data))) - {*selecting, *measuring})
    valid = data.only(selecting)
    curve = fit(learner, data.only(rest), config, directory, valid, save=True, resume=checkpoint, bar=bar)
    bar.total = bar.n
    learner.train(False)
    places = [data.places[index] for index in measuring]
    adapted = scores_now(learner.scorer, choices.only(measuring), places, learner.store)
    how = (
        f"by {groups.unit}, {len(selecting)} choices held out that select the epoch, and {len(measuring)} "
        "others that measure"
    )
    return _HeldOut(measuring, adapted, best_epoch([curve.losses]), how)


def _fold(
    learner: Learner,
    data: ChoiceData,
    part: list[int],
    config: LearningConfig,
    directory: Path,
    initial: Mapping[str, Any],
    keep: bool,
    bar: tqdm,
) -> Curve:
    """Train on all but `part`, measure on it; the result is read from the directory if it is there."""
    file = directory.with_suffix(".json")
    if keep and file.is_file():
        return Curve(*json.loads(file.read_text(encoding="utf-8")))
    learner.learned.load_weights(initial)
    rest = sorted(set(range(len(data))) - set(part))
    curve = fit(learner, data.only(rest), config, directory, data.only(part), bar=bar)
    if keep and is_first_process():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(curve))
    return curve
