"""Evaluates a generator during training: fixed prompts and seeds, held-out reward, diversity, a grid."""

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
from imagereward.tuning.settings import EvaluationConfig

SAMPLES = "samples"


def sample_images(
    policy: Policy,
    rows: Sequence[Row],
    seeds: int,
    seed: int,
    batch_size: int,
    accelerator: Accelerator | None,
    title: str = "drawing",
) -> torch.Tensor:
    """Images [M, seeds, 3, H, W] on the CPU, in batches across prompts; the autoencoder takes one at a time.

    The noise of a prompt's k-th image depends on `seed`, the prompt's place and k alone. Processes draw
    equally many of every round, and each gets all images.
    """
    count, shape = len(rows) * seeds, policy.denoiser.autoencoder.shape
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    drawn, rounds = [], range(0, count, ranks * batch_size)
    for at in tqdm(rounds, title, unit="batch", disable=rank > 0, leave=accelerator is None):
        share = min(batch_size, -(-(count - at) // ranks))
        numbers = range(at + rank * share, at + (rank + 1) * share)
        batch = [divmod(min(number, count - 1), seeds) for number in numbers]
        noise = torch.cat([noise_for_samples([k], shape, seed, f"image of {place}") for place, k in batch])
        # One by one, for rows may bring pictures, which need as much memory to encode as to decode.
        encoded = {place: policy.denoiser.encode([rows[place]]) for place in {place for place, _ in batch}}
        condition = Condition.cat([encoded[place] for place, _ in batch])
        images = policy.sample(condition, noise.to(policy.device))
        drawn.append((accelerator.gather(images) if accelerator else images).cpu())
    return torch.cat(drawn)[:count].unflatten(0, (len(rows), seeds))


def diversity(images_M_K_3_H_W: torch.Tensor, scorer: Scorer | None, batch_size: int = 8) -> float:
    """Mean distance, 1 - cosine, between the features of one prompt's images, over all pairs and prompts.

    Features are the scorer's, tokens averaged, which takes `batch_size` images at once; without a scorer the
    pixels, at 16 by 16, about their mean.
    """
    prompts, seeds = images_M_K_3_H_W.shape[:2]
    flat = images_M_K_3_H_W.flatten(0, 1)
    with torch.no_grad():
        if scorer is None:
            features = torch.nn.functional.adaptive_avg_pool2d(flat, 16).flatten(1)
            features = features - features.mean(0)
        else:
            features = torch.cat([_features(images, scorer) for images in flat.split(batch_size)])
    features = torch.nn.functional.normalize(features, dim=-1).unflatten(0, (prompts, seeds))
    similar = features @ features.transpose(1, 2)
    among = similar.sum((1, 2)) - similar.diagonal(dim1=1, dim2=2).sum(1)
    return float((1 - among / (seeds * (seeds - 1))).mean())


def _features(images_B_3_H_W: torch.Tensor, scorer: Scorer) -> torch.Tensor:
    images = images_B_3_H_W.to(scorer.device)
    found = scorer.encode_pixels([each.from_pixels(images) for each in scorer.processors])
    found = found[0] if isinstance(found, list | tuple) else found
    return found.float().flatten(1, -2).mean(1) if found.ndim > 2 else found.float()


def overoptimized(reward: Sequence[float], held_out: Sequence[float], patience: int) -> bool:
    """Whether in each of the last `patience` evaluations the reward rose and the held-out one fell."""
    if not patience or len(reward) <= patience:
        return False
    steps = range(len(reward) - patience, len(reward))
    return all(reward[i] > reward[i - 1] and held_out[i] < held_out[i - 1] for i in steps)


class Evaluation:
    """Draws the same prompts from the same noise again and again, and says what became of them."""

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
        self.rewards, self.held_out, self.output, self.seed = rewards, held_out, output, seed
        self.scoring = scoring or ScoringConfig()
        self.before: torch.Tensor | None = None

    def __call__(self, loop: Any, update: int) -> str | None:
        """Evaluate, log, write the grid; why training should stop, if it should."""
        accelerator, learner = loop.accelerator, loop.learner
        title = f"evaluation after update {update}" if update else "evaluation before training"
        seeds, size = self.config.seeds, self.config.batch_size
        with learner.using("ema" if "ema" in learner.snapshots else CURRENT):
            images = sample_images(self.policy, self.rows, seeds, self.seed, size, accelerator, title)
        # By one process, whose judgement all follow: they must stop together.
        judged = self._judge(images, update) if accelerator.is_main_process else {}
        values = gather_objects(judged, accelerator.num_processes)[0]
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

    def _judge(self, images: torch.Tensor, update: int) -> dict[str, float]:
        seeds, values = images.shape[1], {}
        asked = [row for row in self.rows for _ in range(seeds)]
        scorers: list[Scorer] = []
        for name, judge in (("reward", self.rewards), ("held_out", self.held_out)):
            if judge is None:
                continue
            with RewardPool(judge, self.scoring) as pool:
                for start, stop in _blocks(len(asked), self.config.batch_size):
                    pool.submit(images.flatten(0, 1)[start:stop].to(self.policy.device), asked[start:stop])
                found = concatenated(pool.results())
            require_scores(found, f"the evaluation after update {update}")
            each = {part: weight * found.rewards[part] for part, weight in judge.weights.items()}
            values[name] = float(torch.stack(list(each.values())).sum(0).nanmean()) + judge.offset
            if len(judge.parts) > 1:
                values |= {f"{name}/{part}": float(found.rewards[part].nanmean()) for part in each}
            if failed := sum(int(found.rewards[part].isnan().sum()) for part in each):
                values[f"{name}/failed"] = float(failed)
            scorers += judge.scorers
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
