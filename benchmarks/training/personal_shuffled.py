"""How often a personal adapter is called better than the base though there was nothing to learn.

    python -m benchmarks.training.personal_shuffled [--runs 100] [--first 0]

Rankings of Shapes' images in random order, 24 of 4 images, learned by LoReFT on ImageReward-tiny. Writes
results/personal-shuffled.json after every run, and goes on with those that are there.
"""

import argparse

import numpy as np
import torch

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.tastes import rankings
from imagereward.tuning.personal.choices import read_choices
from imagereward.tuning.personal.config import LearningConfig
from imagereward.tuning.personal.train import personalise_scorer

BASE, COUNT, NAME = "ImageReward-tiny", 24, "personal-shuffled"


def verdict(seed: int) -> dict:
    """One run: {seed, better, gain}."""
    rng = np.random.default_rng([seed, 31])
    records = [
        {**each, "ranking": (rng.permutation(len(each["images"])) + 1).tolist()}
        for each in rankings("red", COUNT, 1000 + seed)
    ]
    scorer = RM.load(BASE, "cpu")
    _, summary = personalise_scorer(scorer, read_choices(records), LearningConfig(seed=seed), "mine")
    return {"seed": seed, "better": summary.better, "gain": summary.gain[0]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="first seed; others may take those before it")
    record.add_option(parser)
    options = parser.parse_args()
    record.refuse_changes(options.allow_changes)
    device = torch.device("cpu")
    result = record.so_far(NAME, device) or {"base": BASE, "rankings": COUNT, "runs": []}
    have = {each["seed"] for each in result["runs"]}
    for seed in range(options.first, options.runs):
        if seed in have:
            continue
        result["runs"].append(verdict(seed))
        result["environment"] = record.environment(device)
        record.write(NAME, result)
        better = sum(each["better"] for each in result["runs"])
        print(f"{better} of {len(result['runs'])} shuffled runs are called better than the base", flush=True)


if __name__ == "__main__":
    main()
