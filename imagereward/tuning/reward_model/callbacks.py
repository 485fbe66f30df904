"""Callbacks of a reward model's training: stops a dead head, tells the time left, writes the config."""

import math
from pathlib import Path

import torch
from transformers import TrainerCallback

from imagereward.errors import DeadHeadError, NonFiniteScoreError
from imagereward.scoring.saving import CONFIG_FILE, config_text
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.trainer.progress import Pace, tell
from imagereward.writing import write_text

# A head is dead if its loss is within CLOSE of LOSS_OF_GUESSING, the loss of equal scores, and the standard
# deviation of its raw scores is at most GROWN times that of the first validation.
LOSS_OF_GUESSING = math.log(2)
CLOSE = 1e-3
GROWN = 1.5


class OwnRandomNumbers(TrainerCallback):
    """Seeds each of several processes by its own rank. Trainer seeds all alike: their dropout would be equal.

    The order of the data is seeded before, and a resumed run reads its random states after.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Seeds torch."""
        if args.world_size > 1:
            torch.manual_seed(args.seed + args.process_index)


class StopDeadHead(TrainerCallback):
    """Stops a training whose raw scores stay nearly equal, or are not finite.

    after  updates before which equal scores are no error

    The published initial head gives scores with a standard deviation of about 1e-9, which then grows. So the
    check compares the standard deviation with that of the first validation, instead of with a fixed value.
    """

    def __init__(self, after: int):
        self.after = after

    def on_evaluate(self, args, state, control, **kwargs):
        """Raises DeadHeadError or NonFiniteScoreError, which ends the training."""
        metrics = kwargs["metrics"]
        if not math.isfinite(metrics["eval_pair_loss"]):
            raise NonFiniteScoreError(
                f"after {state.global_step} updates the validation loss is {metrics['eval_pair_loss']}; the "
                f"best checkpoint before is {state.best_model_checkpoint}. Try a lower learning_rate, or "
                'precision="float32"'
            )
        first = next((entry["eval_spread"] for entry in state.log_history if "eval_spread" in entry), None)
        if first is None or state.global_step < self.after:
            return
        flat = metrics["eval_spread"] <= GROWN * first
        if flat and abs(metrics["eval_pair_loss"] - LOSS_OF_GUESSING) < CLOSE:
            raise DeadHeadError(
                f"the head is dead: after {state.global_step} updates the raw scores' spread is "
                f"{metrics['eval_spread']:.3g}, at the start it was {first:.3g}, and the loss is that of "
                f'guessing, {metrics["eval_pair_loss"]:.5f}. Try head="ordinary" or a higher learning_rate'
            )


class TellsPace(TrainerCallback):
    """Tells after the first updates how long the stage will take.

    evaluate_every  updates from one validation to the next; 0: none
    stage           name of the stage in the message; default: no name
    """

    def __init__(self, evaluate_every: int = 0, stage: str = ""):
        self.every, self.stage = evaluate_every, stage
        self.pace: Pace | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self.pace = Pace(state.global_step, state.max_steps, self.every)

    def on_evaluate(self, args, state, control, **kwargs):
        """Counts a validation's time apart from that of updates."""
        if self.pace is not None:
            self.pace.evaluated(kwargs["metrics"]["eval_runtime"])

    def on_step_end(self, args, state, control, **kwargs):
        """Tells the estimate, once, in the first process."""
        if self.pace is None or not state.is_world_process_zero:
            return
        if estimate := self.pace.after(state.global_step):
            tell(f"{self.stage}: {estimate}" if self.stage else estimate)


class WriteScorerConfig(TrainerCallback):
    """Writes the scorer's config into every checkpoint, so that `imagereward.load` can read it."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer

    def on_save(self, args, state, control, **kwargs):
        """Adds the config to the checkpoint that was just written."""
        if state.is_world_process_zero:
            directory = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_text(directory / CONFIG_FILE, config_text(self.scorer))
