"""train_reward_model: trains a reward model from rankings, with transformers' Trainer."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - Trainer asks for it only once it is made: too late to say which extra has it
import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from imagereward.agreement.rankings import ranking_file
from imagereward.checkpoints.state_dicts import read_state_dict
from imagereward.config import ScorerConfig
from imagereward.errors import ImageRewardError, NonFiniteLossError
from imagereward.images.preprocess import Preprocess
from imagereward.main_guard import GUARD_HINT
from imagereward.models.blip import BLIPShape
from imagereward.models.imagereward import ImageReward
from imagereward.precision import DTYPES
from imagereward.scoring.saving import WEIGHTS_FILE
from imagereward.tuning.config import build
from imagereward.tuning.data.image_pairs import ImagePairs, ShapesPairs, collate_pairs
from imagereward.tuning.distributed import check_first_gpu, is_first_process
from imagereward.tuning.reward_model.arguments import training_arguments
from imagereward.tuning.reward_model.callbacks import (
    OwnRandomNumbers,
    StopDeadHead,
    TellsPace,
    WriteScorerConfig,
)
from imagereward.tuning.reward_model.card import CARD_FILE, amount, card, outcome, plan
from imagereward.tuning.reward_model.config import RewardModelConfig, WarmupConfig
from imagereward.tuning.reward_model.data import RankedImages, RankingsWithPairs, collate_rankings
from imagereward.tuning.reward_model.image_text import ImageText
from imagereward.tuning.reward_model.init import freeze, from_nothing, set_checkpointing, start_from
from imagereward.tuning.reward_model.preference import NO_IMAGE, Preference, preference_loss, ranked_pairs
from imagereward.tuning.reward_model.sharded import ShardedPreference, ShardedTrainer
from imagereward.tuning.trainer.accelerate_setup import accelerating, join
from imagereward.tuning.trainer.liveness import watched
from imagereward.tuning.trainer.memory import keep_freed_memory
from imagereward.tuning.trainer.progress import tell
from imagereward.tuning.trainer.run_directory import (
    STATE_FILE,
    check_run_directory,
    checkpoints,
    create_run_directory,
    latest_checkpoint,
    write_atomically,
)

log = logging.getLogger(__name__)

HISTORY_FILE = "history.json"
WARMUP = "warmup"  # folder of the warm-up's own checkpoints and result


@accelerating()
def train_reward_model(config: RewardModelConfig) -> ImageReward:
    """Train a reward model; the scorer of the best validation is saved in `config.output`, and returned.

    `output` then holds the scorer for `imagereward.load`, a model card, `run.json` (the config),
    `history.json` (losses, accuracies and learning rates by update), `skipped.json` (unusable images) and the
    last checkpoints. Raises InputError for bad data or config, for a `device` that is another GPU than the
    first, and for an output directory that holds another run; DeadHeadError when the head learns nothing;
    NonFiniteScoreError for scores that are not finite; ProcessLostError in all other processes if one of
    several ends too early.
    """
    check_first_gpu(config.device)
    output = Path(config.output).expanduser()
    rank, ranks = join(config.device == "cpu")
    with watched(rank, ranks, lambda: _written_last(output)):
        return _train(config)


def _written_last(output: Path) -> Path | None:
    """The last complete checkpoint, of the rankings or else of the warm-up; None if there is none."""
    found = [each for folder in (output / WARMUP, output) for each in checkpoints(folder)]
    return next((each for each in reversed(found) if (each / STATE_FILE).is_file()), None)


def _train(config: RewardModelConfig) -> ImageReward:
    values = config.model_dump(exclude={"resume"})
    output = check_run_directory(config.output, values, config.resume, ["sharding"])
    # What cannot be run is refused before anything is loaded.
    arguments = training_arguments(config, config, output)
    if config.warmup:
        training_arguments(config, config.warmup, output)
    scorer = _starting_scorer(config)
    if scorer.device.type == "cpu":
        keep_freed_memory()
    train, valid = (
        RankedImages(
            ranking_file(config.data, split), scorer.preprocess, config.max_bad_share, config.encoding
        )
        for split in ("train", "valid")
    )
    pairs = _warm_up_pairs(config, scorer.preprocess)
    if is_first_process():
        # Only now that everything is in order, so that a corrected mistake finds the directory free.
        create_run_directory(output, values)
        skipped = {**train.skipped, **valid.skipped, **getattr(pairs, "skipped", {})}
        (output / "skipped.json").write_text(json.dumps(skipped, indent=1) + "\n")
        tell(_plan(config, scorer, train, valid, pairs, arguments))
    rehearsal = None
    learned: RankedImages | RankingsWithPairs = train
    if config.warmup:
        assert pairs is not None
        warm = _warm_up(scorer, config, config.warmup, pairs, output / WARMUP)
        if config.warmup.rehearsal:
            rehearsal, learned = warm, RankingsWithPairs(train, pairs, config.warmup.rehearsal)
            warm.requires_grad_(False)
    freeze(scorer, config.fix_rate)
    set_checkpointing(scorer, config.checkpointing)
    checkpoint = latest_checkpoint(output) if config.resume else None
    sharded = config.sharding != "none" and arguments.world_size > 1  # one process has nothing to divide
    kind = ShardedPreference if sharded else Preference
    trainer = _by_rankings(kind(scorer, rehearsal), config, learned, valid, output, not checkpoint)
    with _told_about_workers(config):
        trainer.train(resume_from_checkpoint=checkpoint)
    predicting = trainer
    if isinstance(trainer, ShardedTrainer):
        scorer = trainer.unsharded()
        predicting = Trainer(Preference(scorer), trainer.args, collate_rankings, eval_dataset=valid)
    scorer.to(DTYPES[config.save_dtype]).float()  # first rounded, then calibrated as rounded
    if config.calibrate:
        _calibrate(scorer, predicting.predict(valid))
    scorer.name = config.name or output.name
    if trainer.is_world_process_zero():
        scorer.to(DTYPES[config.save_dtype]).save_pretrained(output)
        told = trainer.state.log_history
        text = card(config, scorer, told, output, amount(train, valid, config.data))
        write_atomically(output / CARD_FILE, text)
        _write_history(trainer, output)
        tell(outcome(told, output))
    return scorer.float().eval().requires_grad_(False)


def _plan(config: RewardModelConfig, scorer, train, valid, pairs, arguments: TrainingArguments) -> str:
    freeze(scorer, config.fix_rate)  # so that trainable parameters can be counted; a warm-up unfreezes all
    whole = math.ceil(arguments.num_train_epochs * math.ceil(len(train) / config.batch_size))
    updates = arguments.max_steps if arguments.max_steps > 0 else whole
    return plan(config, scorer, train, valid, pairs, updates, str(arguments.device))


@contextmanager
def _told_about_workers(config: RewardModelConfig) -> Iterator[None]:
    """A context that turns the end of a data loader's worker into an ImageRewardError with likely causes."""
    try:
        yield
    except RuntimeError as error:
        if config.workers and "DataLoader worker" in str(error):
            raise ImageRewardError(
                f"workers={config.workers}: a process that decodes images ended: {error}. {GUARD_HINT} "
                "Otherwise look whether memory or shared memory (/dev/shm) is short; workers=0 needs neither"
            ) from error
        raise


def _by_rankings(
    objective: Preference,
    config: RewardModelConfig,
    learned: RankedImages | RankingsWithPairs,
    valid: RankedImages,
    output: Path,
    from_the_start: bool,
) -> Trainer:
    """The Trainer of the stage that learns from rankings; it ends with the best checkpoint's weights."""
    updates = math.ceil(len(learned) / config.batch_size)
    every = max(1, updates // config.validations)
    make: Callable[..., Trainer] = Trainer
    if isinstance(objective, ShardedPreference):
        make = partial(ShardedTrainer, mode=config.sharding, precision=config.precision)
    return make(
        objective,
        training_arguments(
            config,
            config,
            output,
            label_names=["ranks"],
            eval_strategy="steps",
            eval_steps=every,
            eval_on_start=from_the_start,
            save_steps=every,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_pair_loss",
            greater_is_better=False,
        ),
        collate_rankings,
        learned,
        valid,
        compute_metrics=_validation_metrics,
        callbacks=[
            OwnRandomNumbers(),
            StopDeadHead(config.dead_after),
            WriteScorerConfig(objective.scorer),
            TellsPace(every),
        ],
    )


def _starting_scorer(config: RewardModelConfig) -> ImageReward:
    if config.architecture is None:
        return start_from(config.start, config.head, config.device, config.seed)
    shape = config.architecture
    words = None
    if shape.vocabulary == "shapes":
        from imagereward.models.tokenizer import SPECIAL_TOKENS
        from imagereward.shapes import vocabulary

        words = [*SPECIAL_TOKENS, *vocabulary()]
    text = {"vocab_size": len(words) + 2, **shape.text} if words else shape.text
    architecture = {"vision": shape.vision, "text": text, "projection": shape.projection, "vocabulary": words}
    blip = BLIPShape.from_dict(architecture)
    preprocess = Preprocess(blip.vision.img_size, mean=shape.mean, std=shape.std)
    scorer_config = ScorerConfig("ImageReward", architecture, preprocess, shape.max_length)
    scorer = from_nothing(scorer_config, config.seed)
    assert isinstance(scorer, ImageReward)
    return scorer


def _warm_up_pairs(config: RewardModelConfig, preprocess: Preprocess) -> ShapesPairs | ImagePairs | None:
    if config.warmup is None:
        return None
    if config.warmup.data == "shapes":
        return ShapesPairs(config.warmup.pairs, config.seed, preprocess)
    return ImagePairs(config.warmup.data, preprocess, config.max_bad_share, config.encoding)


def _warm_up(
    scorer: ImageReward, config: RewardModelConfig, stage: WarmupConfig, pairs: Dataset, output: Path
) -> ImageText:
    """Train both encoders on pairs, in place; returns the loss. Resuming loads a complete warm-up."""
    scorer.requires_grad_(True)
    scorer.mlp.requires_grad_(False)  # the warm-up does not use the reward head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        objective = ImageText(scorer)
    if config.resume and (output / HISTORY_FILE).is_file():
        objective.load_state_dict(read_state_dict(output / WEIGHTS_FILE))
        return objective
    arguments = training_arguments(
        config, stage, output, save_strategy="steps", save_steps=0.1, save_total_limit=1
    )
    callbacks = [OwnRandomNumbers(), TellsPace(stage="warm-up")]
    trainer = Trainer(objective, arguments, collate_pairs, pairs, callbacks=callbacks)
    with _told_about_workers(config):
        trainer.train(resume_from_checkpoint=latest_checkpoint(output) if config.resume else None)
    if not all(bool(value.isfinite().all()) for value in objective.parameters()):
        raise NonFiniteLossError(
            "the warm-up ended with weights that are NaN or infinite: try a lower warmup.learning_rate, or "
            'precision="float32", in another output='
        )
    trainer.save_model()
    _write_history(trainer, output)
    return objective


def _write_history(trainer: Trainer, output: Path) -> None:
    """Write history.json, the last file of a stage: where it exists, the stage is complete."""
    if trainer.is_world_process_zero():
        (output / HISTORY_FILE).write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")


def _validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Over all pairs of the validation set: loss, share ranked rightly, number; and the scores' std."""
    scores, ranks = (
        torch.as_tensor(np.asarray(part)) for part in (prediction.predictions, prediction.label_ids)
    )
    scores = scores.double()
    prompt, better, worse = ranked_pairs(ranks).unbind(1)
    right = scores[prompt, better] > scores[prompt, worse]
    return {
        "pair_loss": float(preference_loss(scores, ranks)),
        "accuracy": float(right.double().mean()),
        "pairs": len(right),
        "spread": float(scores[ranks != NO_IMAGE].std()),
    }


def _calibrate(scorer: ImageReward, prediction) -> None:
    """Set the scorer's mean and std so that the predicted scores have mean 0 and standard deviation 1."""
    scores = prediction.predictions[prediction.label_ids != NO_IMAGE].astype(np.float64)
    config = scorer.config
    mean, std = config.mean + config.std * scores.mean(), config.std * scores.std()
    scorer.config = replace(config, mean=float(mean), std=float(std))


def tune_reward_model(values: dict[str, Any], source: str) -> ImageReward:
    """`train_reward_model` with a recipe's values; `source` names the recipe in error messages."""
    return train_reward_model(build(RewardModelConfig, values, source))
