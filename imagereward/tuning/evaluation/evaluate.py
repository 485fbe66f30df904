"""Evaluation: draws fixed prompts and seeds during training; rewards, held-out reward, diversity, grid."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from imagereward.scoring.scorer import Scorer
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.distributed import gather_objects
from imagereward.tuning.evaluation.image_grid import make_grid
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.policy.policy import CURRENT, Policy
from imagereward.tuning.rewards.scoring import RewardPool, ScoringConfig, concatenated, require_scores
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.rollouts.advantages import weighted_sum
from imagereward.tuning.trainer_config import EvaluationConfig

SAMPLES = "samples"  # folder of the grids in the run's directory


def sample_images(
    policy: Policy,
    rows: Sequence[Row],
    seeds: int,
    seed: int,
    batch_size: int,
    accelerator: Accelerator | None,
    title: str = "drawing",
) -> torch.Tensor:
    """Images [M, seeds, 3, H, W] in [0, 1] on the CPU, for M rows.

    seeds        images for each row
    seed         decides the noise: that of a row's k-th image depends on `seed`, the row's index and k alone
    batch_size   images that a process draws at once; a batch may span several rows
    accelerator  divides the images between processes, all of which must call this and get all images; None:
                 this process draws all
    title        title of the progress bar
    """
    count, shape = len(rows) * seeds, policy.denoiser.autoencoder.shape
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    drawn, rounds = [], range(0, count, ranks * batch_size)
    for at in tqdm(rounds, title, unit="batch", disable=rank > 0, leave=accelerator is None):
        share = min(batch_size, -(-(count - at) // ranks))
        numbers = range(at + rank * share, at + (rank + 1) * share)
        batch = [divmod(min(number, count - 1), seeds) for number in numbers]
        noise = torch.cat([noise_for_samples([k], shape, seed, f"image of {place}") for place, k in batch])
        # One row at a time: encoding a row's pictures needs as much memory as decoding an image.
        encoded = {place: policy.denoiser.encode([rows[place]]) for place in {place for place, _ in batch}}
        condition = Condition.cat([encoded[place] for place, _ in batch])
        images = policy.sample(condition, noise.to(policy.device))
        drawn.append((accelerator.gather(images) if accelerator else images).cpu())
    return torch.cat(drawn)[:count].unflatten(0, (len(rows), seeds))


def diversity(images_M_K_3_H_W: torch.Tensor, scorer: Scorer | None, batch_size: int = 8) -> float:
    """Mean of 1 - cos(f_j, f_k) over all pairs j < k of a prompt's K images, and over the M prompts.

    images_M_K_3_H_W  in [0, 1], K at least 2
    scorer            gives the features f of an image, averaged over tokens; None: f is 1 + the image at 16
                      x 16 pixels
    batch_size        images that the scorer encodes at once
    """
    prompts, seeds = images_M_K_3_H_W.shape[:2]
    flat = images_M_K_3_H_W.flatten(0, 1)
    with torch.no_grad():
        if scorer is None:
            features = torch.nn.functional.adaptive_avg_pool2d(flat, 16).flatten(1) + 1  # never near 0
        else:
            features = torch.cat([_features(images, scorer) for images in flat.split(batch_size)])
    features = torch.nn.functional.normalize(features, dim=-1).unflatten(0, (prompts, seeds))
    similar = features @ features.transpose(1, 2)
    among = similar.sum((1, 2)) - similar.diagonal(dim1=1, dim2=2).sum(1)
    return float((1 - among / (seeds * (seeds - 1))).mean())


def _features(images_B_3_H_W: torch.Tensor, scorer: Scorer) -> torch.Tensor:
    images = images_B_3_H_W.to(scorer.device)
    found = scorer.encode_pixels([each.from_pixels(images) for each in scorer.processors])
    return scorer.image_vectors(found)


def overoptimized(reward: Sequence[float], held_out: Sequence[float], patience: int) -> bool:
    """Whether in each of the last `patience` evaluations the reward rose and the held-out reward fell.

    reward, held_out  values of all evaluations so far, in order
    patience          0: never
    """
    if not patience or len(reward) <= patience:
        return False
    steps = range(len(reward) - patience, len(reward))
    return all(reward[i] > reward[i - 1] and held_out[i] < held_out[i - 1] for i in steps)


class Evaluation:
    """Evaluates a generator during training: at each call it draws the same prompts from the same noise.

    policy    the generator, with the sampling grid of evaluation
    rows      the prompts with their pictures
    rewards   the reward that is trained; None: none. Rewards of whole groups are left out: the mean win rate
              within groups is always 1/2
    held_out  a reward that is not trained, to notice overoptimization; None: none
    config    number of seeds, batch size, patience, size of the grid
    output    the run's directory; grids are written to its folder samples/
    seed      decides the noise
    scoring   how rewards are computed and retried; default: `ScoringConfig()`
    """

    def __init__(
        self,
        policy: Policy,
        rows: Sequence[Row],
        rewards: Rewards | None,
        held_out: Rewards | None,
        config: EvaluationConfig,
        output: Path,
        seed: int,
        scoring: ScoringConfig | None = None,
    ):
        self.policy, self.rows, self.config = policy, list(rows), config
        self.prompts = prompts_of(rows)
        self.rewards, self.held_out = (
            each.without_groups() if each is not None else None for each in (rewards, held_out)
        )
        self.output, self.seed = output, seed
        self.scoring = scoring or ScoringConfig()
        self.before: torch.Tensor | None = None

    def __call__(self, loop: Any, update: int) -> str | None:
        """Evaluate after `update` updates of the trainer `loop`, log the values, write the grid.

        Draws with the snapshot "ema" if there is one. Returns the reason to stop the training, or None.
        """
        accelerator, learner = loop.accelerator, loop.learner
        title = f"evaluation after update {update}" if update else "evaluation before training"
        seeds, size = self.config.seeds, self.config.batch_size
        with learner.using("ema" if "ema" in learner.snapshots else CURRENT):
            images = sample_images(self.policy, self.rows, seeds, self.seed, size, accelerator, title)
        # The first process alone scores, and sends the values to all, so that all stop together.
        measured = self.measure(images, update) if accelerator.is_main_process else {}
        values = gather_objects(measured, accelerator.num_processes)[0]
        loop.log(update, {f"evaluation/{name}": value for name, value in values.items()})
        if accelerator.is_main_process:
            self._show(images, update)
        names = ("evaluation/reward", "evaluation/held_out")
        past = [entry for entry in loop.history if all(name in entry for name in names)]
        rewards, held_out = ([entry[name] for entry in past] for name in names)
        if overoptimized(rewards, held_out, self.config.patience):
            return (
                f"stopped after update {update}: in the last {self.config.patience} evaluations the reward "
                f"rose to {rewards[-1]:.3f} while the held-out one fell to {held_out[-1]:.3f}"
            )
        return None

    def measure(self, images: torch.Tensor, update: int) -> dict[str, float]:
        """Mean rewards, failures and diversity of images [M, seeds, 3, H, W], by the names in the log."""
        seeds, values = images.shape[1], {}
        asked = [row for row in self.rows for _ in range(seeds)]
        scorers: list[Scorer] = []
        for name, reward in (("reward", self.rewards), ("held_out", self.held_out)):
            if reward is None:
                continue
            with RewardPool(reward, self.scoring) as pool:
                for start, stop in _blocks(len(asked), self.config.batch_size):
                    pool.submit(images.flatten(0, 1)[start:stop].to(self.policy.device), asked[start:stop])
                found = concatenated(pool.results())
            require_scores(found, f"the evaluation after update {update}")
            size = (images.shape[-2], images.shape[-1])
            groups = torch.zeros(len(asked), dtype=torch.long)
            # All have weight 0 if the one with another weight is a `GroupReward`: evaluations leave it out.
            trained = any(reward.weights.values())
            if trained:
                total = weighted_sum(found.rewards, reward.weights_for(asked, size), groups)
                values[name] = float(total.nanmean()) + reward.offset
            if len(reward.parts) > 1 or not trained:
                values |= {f"{name}/{part}": float(each.nanmean()) for part, each in found.rewards.items()}
            if failed := sum(int(each.isnan().sum()) for each in found.rewards.values()):
                values[f"{name}/failed"] = float(failed)
            scorers += reward.scorers
        if seeds > 1:
            last = scorers[-1] if scorers else None
            values["diversity"] = diversity(images, last, self.config.batch_size)
        return values

    def _show(self, images: torch.Tensor, update: int) -> None:
        shown, directory = images[: self.config.grid_prompts], self.output / SAMPLES
        directory.mkdir(parents=True, exist_ok=True)
        before = directory / "before.safetensors"
        if update == 0:
            _save_images(shown, before)
        elif self.before is None and before.is_file():
            self.before = _load_images(before)
        seeds = range(images.shape[1])
        rows, headings = [list(row) for row in shown], [f"update {update}" for _ in seeds]
        if self.before is not None:
            rows = [[*was, *now] for was, now in zip(self.before, rows, strict=True)]
            headings = [*("before" for _ in seeds), *headings]
        page = make_grid(rows, self.prompts[: len(rows)], headings)
        page.save(directory / f"{update:06d}.png")


def _blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _save_images(images: torch.Tensor, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"images": (images * 255).round().byte().contiguous()}, path)


def _load_images(path: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(path)["images"].float() / 255
