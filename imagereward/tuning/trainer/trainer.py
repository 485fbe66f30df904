"""Trainer: the training loop of generators; sets the learning rate, clips, averages, saves, resumes."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from imagereward.errors import (
    CheckpointError,
    InputError,
    NonFiniteLossError,
    NonFiniteScoreError,
)
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.distributed import add_share, all_reduce_sums, gather_objects
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.policy.average import move_average
from imagereward.tuning.policy.policy import Learner
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import trainable_parameters
from imagereward.tuning.sharding import is_sharded, whole, whole_weights
from imagereward.tuning.trainer.accelerate_setup import wrapped
from imagereward.tuning.trainer.checkpoint import (
    CheckpointContents,
    TrainingState,
    latest_state,
    load_checkpoint,
    state_to_resume,
)
from imagereward.tuning.trainer.checkpoint_writer import CheckpointWriter
from imagereward.tuning.trainer.optimizer import learning_rate_at, make_optimizer
from imagereward.tuning.trainer.progress import Pace, headline, tell
from imagereward.tuning.trainer.run_directory import write_atomically
from imagereward.tuning.trainer_config import TrainerConfig

log = logging.getLogger(__name__)


HISTORY_FILE = "history.json"
Evaluate = Callable[["Trainer", int], str | None]


class Trainer:
    """The training loop: gradients, clipping, optimizer, averaged weights, logging, checkpoints, resuming."""

    def __init__(
        self,
        learner: Learner,
        objective: Objective,
        config: TrainerConfig,
        output: Path,
        accelerator,
        write_more: Callable[[Path, Mapping[str, torch.Tensor]], None] | None = None,
    ):
        """A loop over the updates of `config`, resumed from a checkpoint in `output` if the config says so.

        learner    the network to train, with snapshots of its weights
        write_more writes more files into every checkpoint; see `CheckpointWriter`

        Raises InputError for a network without trainable weights, ImageRewardError for several processes that
        accelerate does not join.
        """
        self.learner, self.objective, self.config, self.output = learner, objective, config, output
        self.accelerator: Accelerator = accelerator
        self.history: list[dict[str, Any]] = []
        self.bare = learner.module
        parameters = list(trainable_parameters(self.bare).values())
        if not parameters:
            raise InputError("the network has no trainable weights: expected at least one")
        self.sharded = is_sharded(self.bare)
        optimizer = make_optimizer(config, parameters)
        learner.module, self.optimizer = wrapped(accelerator, self.bare, optimizer, self.sharded)
        self.writer = CheckpointWriter(
            output,
            config.keep_checkpoints,
            accelerator.process_index,
            accelerator.num_processes,
            config.save_in_background and self.sharded,
            write_more,
        )
        for name in objective.snapshots:
            learner.snapshots.setdefault(name, Snapshot(self.bare))
        self.steps = 0  # steps of the optimizer since the start of training

    def run(self, evaluate: Evaluate | None = None) -> str:
        """Train until all updates are done or `evaluate` asks to stop; returns the reason for the end.

        evaluate  a function of (this trainer, updates done), called before the first update, every
                  `evaluate_every` updates, and after the last. It returns a reason to stop, or None. An error
                  of it leaves a checkpoint of the update, if one is due; a resumed run evaluates first
        """
        try:
            return self._run(evaluate)
        except BaseException:
            self.writer.settle()
            raise

    def _run(self, evaluate: Evaluate | None) -> str:
        config, (start, why, missed) = self.config, self._resume()
        pace = Pace(start, config.updates, config.evaluate_every if evaluate else 0)
        if evaluate and (start == 0 or missed):
            why = self._evaluate(evaluate, start, pace, saved=missed)
        bar = tqdm(
            range(start, config.updates),
            initial=start,
            total=config.updates,
            desc="training",
            unit="update",
            disable=not self.accelerator.is_main_process,
        )
        for update in bar:
            if why:
                break
            with self._naming(update + 1):
                metrics = self._update(update)
            self.log(update + 1, metrics)
            bar.set_postfix(headline(metrics))
            done, last = update + 1, update + 1 == config.updates
            if self.accelerator.is_main_process and (estimate := pace.after(done)):
                tell(estimate)
            saved = last or done % config.save_every == 0
            due = evaluate is not None and (last or done % config.evaluate_every == 0)
            if saved:
                self._save(done, to_evaluate=due)
            if evaluate and due:
                why = self._evaluate(evaluate, done, pace, saved)
        bar.close()
        self.writer.finish()
        self._write_history()
        self.accelerator.wait_for_everyone()
        # end_training() would also end the group of processes, which the result is yet gathered with.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return why or f"all {config.updates} updates are done"

    def _evaluate(self, evaluate: Evaluate, done: int, pace: Pace, saved: bool) -> str:
        """Evaluate after `done` updates; returns the reason to stop, or "".

        saved  whether the checkpoint of this update is written; its state then gets what the evaluation found
        """
        before = dict(self.learner.snapshots)
        with self._naming(done), pace.evaluating():
            why = evaluate(self, done) or ""
        # With a new snapshot the weights in the checkpoint are old too: a resumed run evaluates again.
        if saved and self.learner.snapshots == before:
            self.writer.amend(self._state(done, why))
            self._write_history()
        elif why and done:
            self._save(done, why)
        return why

    def learned(self) -> dict[str, torch.Tensor]:
        """The trainable weights, unsharded, on the CPU; all processes must call this, the first gets them."""
        return whole_weights(self.learner.module)

    def settle(self) -> None:
        """Copy the averaged weights, if the config keeps an average, into the network."""
        if (average := self.learner.snapshots.get("ema")) is not None:
            average.copy_to(self.bare)

    @contextlib.contextmanager
    def _naming(self, update: int) -> Iterator[None]:
        """A context that adds the update and the last checkpoint to a NonFiniteScoreError."""
        try:
            yield
        except NonFiniteScoreError as error:
            raise self._not_finite(update, str(error), []) from error

    def _update(self, update: int) -> dict[str, float]:
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(update, config)
        # For dropout; all other random numbers are drawn by sample number.
        torch.manual_seed((config.seed * 1_000_003 + update * 1009 + accelerator.process_index) % 2**63)
        self.learner.module.train()
        sums = {"loss": torch.zeros(2, device=accelerator.device)}
        rank, ranks = accelerator.process_index, accelerator.num_processes
        plan = UpdatePlan(update, config.batch_size, config.micro_batch, rank, ranks, equal=self.sharded)
        for step in self.objective.minibatches(self.learner, plan):
            if not step:
                raise InputError(
                    f"process {rank} of {ranks} has nothing to do in update {update + 1}: batch_size="
                    f"{config.batch_size}, micro_batch={config.micro_batch}; expected batch_size / "
                    f"micro_batch of at least {ranks}"
                )
            last = len(step) - 1
            loss = sum(self._backward(update, each, place == last, sums) for place, each in enumerate(step))
            learns = list(trainable_parameters(self.learner.module).values())
            norm = whole(accelerator.clip_grad_norm_(learns, config.max_gradient_norm))
            if not torch.isfinite(norm) and not self._scale_can_fall():
                prompts = [prompt for minibatch in step for prompt in self.objective.prompts_in(minibatch)]
                raise self._not_finite(update + 1, f"its gradient is {norm.item()}", prompts)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if config.ema_unit == "steps":
                self._average(self.steps)
            self.steps += 1
            if torch.isfinite(norm):
                add_share(sums, "gradient_norm", norm, 1 / ranks)
            add_share(sums, "loss", loss * ranks, 1 / ranks)  # a sum over minibatches; metrics are means
        if config.ema_unit == "updates":
            self._average(update)
        total = all_reduce_sums(sums, ranks, accelerator.device)
        means = {name: value / share for name, (value, share) in total.items() if share}
        metrics = self.objective.end_update(self.learner, update)
        return means | metrics | {"learning_rate": learning_rate_at(update, config)}

    def _scale_can_fall(self) -> bool:
        """Whether float16's loss scale can fall; then a gradient that is not finite skips the step only."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def _backward(self, update: int, minibatch, last: bool, sums: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run a minibatch's backward pass; returns share * loss. The `last` exchanges gradients."""
        accelerator, module = self.accelerator, self.learner.module
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            try:
                loss, metrics = self.objective.loss(self.learner, minibatch)
            except NonFiniteScoreError as error:
                prompts = self.objective.prompts_in(minibatch)
                raise self._not_finite(update + 1, str(error), prompts) from error
            if not torch.isfinite(loss):
                prompts = self.objective.prompts_in(minibatch)
                raise self._not_finite(update + 1, f"its loss is {loss.item()}", prompts)
            # Processes' gradients are averaged, and shares add up to 1 over all of them.
            accelerator.backward(loss * (minibatch.share * accelerator.num_processes))
        for name, value in metrics.items():
            add_share(sums, name, value, minibatch.share)
        return loss.detach() * minibatch.share

    def _average(self, number: int) -> None:
        config, snapshots = self.config, self.learner.snapshots
        move_average(snapshots, self.bare, config.ema, config.ema_every, number)

    def _resume(self) -> tuple[int, str, bool]:
        """(updates already done, reason not to go on or "", whether their evaluation is missing).

        Restores the last checkpoint. A stopped run stays stopped, unless the number of updates has changed.
        """
        path = state_to_resume(self.output, self.config.updates) if self.config.resume else None
        name = "the start" if path is None else path.name
        # Before shards are read, in which processes would wait for each other.
        if len(names := set(gather_objects(name, self.accelerator.num_processes))) > 1:
            raise CheckpointError(
                f"processes would go on from {' and '.join(sorted(names))}: {self.output} is not the same "
                "directory for all of them"
            )
        if path is None:
            return 0, "", False
        optimizer, snapshots = self.optimizer.optimizer, self.learner.snapshots
        state, of_objective = load_checkpoint(
            path, self.learner.module, optimizer, snapshots, lambda: Snapshot(self.bare)
        )
        if of_objective:
            self.objective.load_state_dict(of_objective)
        self.history, self.steps = state.history, state.steps
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        config, done = self.config, state.update
        # An update that has become the last one may lie between two evaluations.
        due = done == config.updates != state.updates and done % config.evaluate_every > 0
        return done, state.ended if state.updates == config.updates else "", state.to_evaluate or due

    def _save(self, update: int, ended: str = "", to_evaluate: bool = False) -> None:
        state = self._state(update, ended, to_evaluate)
        contents = CheckpointContents(state, self.learner.snapshots, self.objective.state_dict())
        self.writer.save(
            update, self.learner.module, self.optimizer.optimizer, contents, sharded=self.sharded
        )
        self._write_history()
        self.accelerator.wait_for_everyone()

    def _state(self, update: int, ended: str, to_evaluate: bool = False) -> TrainingState:
        scaler = self.accelerator.scaler and self.accelerator.scaler.state_dict()
        return TrainingState(
            update, self.config.updates, ended, self.history, scaler, self.steps, to_evaluate
        )

    def _write_history(self) -> None:
        if self.accelerator.is_main_process:
            write_atomically(self.output / HISTORY_FILE, json.dumps(self.history, indent=1) + "\n")

    def log(self, update: int, values: dict[str, float]) -> None:
        """Add numbers by name to the history and the trackers, after `update` updates."""
        self.history.append({"update": update, **values})
        self.accelerator.log(values, step=update)

    def _not_finite(self, update: int, what: str, prompts: Sequence[str]) -> NonFiniteLossError:
        self.writer.settle()
        seen = f", with the prompts {list(dict.fromkeys(prompts))}" if prompts else ""
        return NonFiniteLossError(
            f"update {update}: {what}{seen}; the last good checkpoint is "
            f'{latest_state(self.output) or "none"}. Try a lower learning_rate or precision="float32"'
        )
