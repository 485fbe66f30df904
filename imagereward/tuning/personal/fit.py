"""fit: one training of a Learner with transformers' Trainer, with its held-out losses and scores by epoch."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import accelerate  # noqa: F401 - Trainer asks for it only once it is made: too late to say which extra has it
import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from imagereward.errors import CheckpointError, InputError, NonFiniteScoreError
from imagereward.tuning.personal.config import LearningConfig
from imagereward.tuning.personal.data import ChoiceData, collate_comparisons, collate_values
from imagereward.tuning.personal.learner import Learner
from imagereward.tuning.trainer.run_directory import STATE_FILE, write_atomically
from imagereward.tuning.transformers_arguments import transformers_arguments

CURVE_FILE = "held_out.json"  # the curve of a training that can be resumed, beside its checkpoints


class Curve(NamedTuple):
    """Held-out losses after 0, 1, ... epochs, and the scores [E][B][K] of the held-out images then."""

    losses: list[float]
    scores: list[list[list[float]]]

    def at(self, epoch: int) -> list[list[float]]:
        """The scores after an epoch; after the last one, if the training stopped earlier."""
        return self.scores[min(epoch, len(self.scores) - 1)]


class Fold(TrainerCallback):
    """Keeps what evaluations find, and stops a training `patience` evaluations after its lowest loss.

    file    where the curve is kept; None: nowhere
    resume  a checkpoint to go on from, whose evaluations and earlier ones are read from `file`; None: none

    Raises CheckpointError for a curve that cannot be read or lacks the checkpoint's epoch.
    """

    def __init__(
        self,
        learner: Learner,
        valid: ChoiceData,
        patience: int,
        file: Path | None = None,
        resume: str | None = None,
    ):
        self.learner, self.valid, self.patience, self.file = learner, valid, patience, file
        self.curve = Curve([], []) if file is None or resume is None else _curve_until(file, Path(resume))
        self._batch = collator(learner)([valid[index] for index in range(len(valid))])

    def metrics(self, prediction: Any) -> dict[str, float]:
        """{held_out_loss}, over all held-out choices, not a mean of batches."""
        scores = torch.as_tensor(np.asarray(prediction.predictions)).double()
        scores = scores[: len(self.valid)]
        targets = {
            name: value.double() if value.is_floating_point() else value
            for name, value in self._batch.items()
            if isinstance(value, torch.Tensor) and name != "places"
        }
        loss = float(self.learner.loss_of(scores, **targets))
        if not math.isfinite(loss):
            raise NonFiniteScoreError(f"the held-out loss is {loss}: try a lower learning_rate")
        self.curve.losses.append(loss)
        rows = scores if scores.ndim == 2 else scores[:, None]
        counts = [len(places) for places in self.valid.places]
        self.curve.scores.append([row[:count].tolist() for row, count in zip(rows, counts, strict=True)])
        return {"held_out_loss": loss}

    @property
    def epochs(self) -> int:
        """Epochs after which there was an evaluation."""
        return len(self.curve.losses) - 1

    @property
    def over(self) -> bool:
        """Whether the loss has not fallen for long enough."""
        return self.epochs - int(np.argmin(self.curve.losses)) >= self.patience

    def on_evaluate(self, args, state, control, **kwargs):
        """Keeps the curve, before the epoch's checkpoint is written; stops a training that is over."""
        if self.file is not None and state.is_world_process_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(self.curve))
        if self.over:
            control.should_training_stop = True


class Ticks(TrainerCallback):
    """Moves a bar on to the epoch that a training has reached, also a resumed one."""

    def __init__(self, bar: tqdm):
        self.bar, self.start = bar, bar.n

    def on_epoch_end(self, args, state, control, **kwargs):
        """An epoch is over."""
        self.bar.update(self.start + round(state.epoch) - self.bar.n)


def _curve_until(file: Path, checkpoint: Path) -> Curve:
    """The curve of a file, up to the epoch of a checkpoint."""
    try:
        epochs = round(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["epoch"])
        found = Curve(*json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint} cannot be resumed, because {file} cannot be read: {error}; delete the checkpoints "
            "to train from the start"
        ) from error
    if min(len(found.losses), len(found.scores)) <= epochs:
        raise CheckpointError(
            f"{checkpoint} is of epoch {epochs}, after which {file} has no evaluation; delete the "
            "checkpoints to train from the start"
        )
    return Curve(found.losses[: epochs + 1], found.scores[: epochs + 1])


class Together(Trainer):
    """Trainer that gives each of several processes every batch whole, of which `Learner` takes its rows.

    Trainer's own sharding fills the last batch up with choices of the first, in which more than one process
    then learns another thing than one alone.
    """

    def get_train_dataloader(self) -> DataLoader:
        """The batches that a process alone has, in the same order."""
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        assert isinstance(self.train_dataset, ChoiceData)
        batches = DataLoader(
            self.train_dataset, self._train_batch_size, shuffle=True, collate_fn=self.data_collator
        )
        return prepare_data_loader(
            batches, self.args.device, 1, 0, put_on_device=True, use_seedable_sampler=True
        )


def collator(learner: Learner) -> Callable:
    """The function that makes batches of the learner's kind of choices."""
    return collate_comparisons if learner.kind in ("rankings", "pairs") else collate_values


def fit(
    learner: Learner,
    train: ChoiceData,
    config: LearningConfig,
    directory: Path,
    valid: ChoiceData | None = None,
    epochs: int | None = None,
    save: bool = False,
    resume: str | None = None,
    bar: tqdm | None = None,
) -> Curve:
    """Train in place, and nothing else of the scorer; returns the held-out curve, empty without `valid`.

    directory  for Trainer's files
    valid      held-out choices, measured before the training and after every epoch. With `save` the weights
               of the lowest loss are taken at the end
    epochs     default: the config's
    save       whether a checkpoint, and with `valid` the curve, is written after every epoch
    resume     a checkpoint to go on from, as if the training had not been stopped
    bar        is moved on by each epoch

    The learning rate rises over the same number of updates whatever `epochs` is, and then stays.
    """
    fold, epochs = None, epochs or config.epochs
    if valid is not None:
        fold = Fold(learner, valid, config.patience, directory / CURVE_FILE if save else None, resume)
        if resume is not None and fold.over:  # the training had ended; its best weights are loaded again
            epochs = fold.epochs
    arguments = _arguments(learner, config, directory, len(train), epochs, fold, save)
    trainer = Together(
        learner,
        arguments,
        collator(learner),
        train,
        valid,
        compute_metrics=None if fold is None else fold.metrics,
        callbacks=[*([] if fold is None else [fold]), *([] if bar is None else [Ticks(bar)])],
    )
    trainer.remove_callback(PrinterCallback)  # the summary says what is worth saying
    with learner.learning_alone():
        trainer.train(resume_from_checkpoint=resume)
    return Curve([], []) if fold is None else fold.curve


def _arguments(
    learner: Learner,
    config: LearningConfig,
    directory: Path,
    count: int,
    epochs: int,
    fold: Fold | None,
    save: bool,
) -> TrainingArguments:
    best = fold is not None and save
    values: dict[str, Any] = {
        "output_dir": str(directory),
        "num_train_epochs": epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": math.ceil(config.warmup_share * config.epochs * math.ceil(count / config.batch_size)),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_gradient_norm,
        "eval_strategy": "no" if fold is None else "epoch",
        "eval_on_start": fold is not None and not fold.curve.losses,
        "save_strategy": "epoch" if save else "no",
        "save_total_limit": 1,
        "load_best_model_at_end": best,
        "metric_for_best_model": "eval_held_out_loss" if best else None,
        "greater_is_better": False if best else None,
        "label_names": ["ranks"] if learner.kind in ("rankings", "pairs") else ["targets"],
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": config.seed,
        **config.trainer,
    }
    arguments = transformers_arguments(values, cpu=learner.scorer.device.type == "cpu")
    if config.batch_size < arguments.world_size:
        raise InputError(
            f"batch_size={config.batch_size}: expected at least {arguments.world_size}, the number of "
            "processes"
        )
    arguments.per_device_train_batch_size = config.batch_size
    arguments.per_device_eval_batch_size = config.batch_size // arguments.world_size
    return arguments
