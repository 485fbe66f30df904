"""Benchmark of personal adapters: three tastes in Shapes, from 24, 48 and 96 rankings of 4 images.

    python -m benchmarks.training.personal                  what is missing of all; results/personal.json
    python -m benchmarks.training.personal --seeds 1 --rankings 48 --methods loreft lora base
    python -m benchmarks.training.personal --reference       a model trained on 5,000 rankings of each taste
    python -m benchmarks.training.personal --draw            only draws the picture again

Every cell is written as soon as it is measured, and measured once. Agreement is with the taste's utility
without noise, on prompts of the test split; `silent` is that of pairs on which the taste has no opinion.
"""

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.memory import peak, reset_peak, resident
from benchmarks.lib.paths import DOCS, RESULTS
from benchmarks.lib.tastes import TASTES, Asked, agreement, asked, rankings
from benchmarks.pages.plots import panels, save
from imagereward.adapters.files import save_adapter
from imagereward.agreement.intervals import mean_interval
from imagereward.config import ADAPTER_KINDS
from imagereward.scoring.scorer import Scorer
from imagereward.table import table
from imagereward.tuning.personal.choice import Choices
from imagereward.tuning.personal.choices import read_choices
from imagereward.tuning.personal.config import LearningConfig
from imagereward.tuning.personal.folds import groups_of
from imagereward.tuning.personal.train import personalise_scorer
from imagereward.tuning.personal.validation import train_and_measure

BASE = "ImageReward-tiny"
RANKINGS, SEEDS, HELD_OUT, FOLDS = (24, 48, 96), 5, 150, 5
REFERENCE = 5000
# Methods that train weights of the scorer itself -> (prefix of their names, learning rate).
OWN = {"head": ("mlp.", 1e-3), "full": ("", 1e-4)}
BASE_METHOD = "base"
METHODS = (BASE_METHOD, *OWN, *ADAPTER_KINDS)
INTERVENTIONS = tuple(kind for kind in ADAPTER_KINDS if kind != "lora")
SHORT = 48  # rankings of the short table
PICTURE = DOCS / "personal.png"
NAME = "personal"


class OwnWeights:
    """Weights of the scorer under a prefix, as what learns."""

    def __init__(self, scorer: Scorer, prefix: str):
        self._parameters = {
            name: value for name, value in scorer.named_parameters() if name.startswith(prefix)
        }

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.data for name, value in self._parameters.items()}

    def load_weights(self, weights) -> None:
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(weights[name])

    def learned(self) -> list[nn.Parameter]:
        return list(self._parameters.values())

    def let_learn(self, learn: bool = True) -> None:
        for value in self._parameters.values():
            value.requires_grad_(learn)

    def train(self, mode: bool = True) -> None:
        """Nothing of it has a training mode: the scorer stays in eval mode."""


def loaded() -> Scorer:
    """The base, with weights of its own: `load` maps them from the file."""
    scorer = RM.load(BASE, "cpu")
    for value in scorer.parameters():
        value.data = value.data.clone()
    return scorer


def scores_of(scorer: Scorer, cases: list[Asked]) -> list[list[float]]:
    """The scores of all candidates."""
    return [scorer.score(case.prompt, [each.image for each in case.candidates]) for case in cases]


def measured(taste: str, method: str, count: int, seed: int, cases: list[Asked], folds: int = FOLDS) -> dict:
    """One cell: agreement, size, seconds and memory of a method, from `count` rankings."""
    scorer = loaded()
    cell: dict = {"taste": taste, "method": method, "rankings": count, "seed": seed}
    if method != BASE_METHOD:
        choices = read_choices(rankings(taste, count, seed))
        device = torch.device("cpu")
        before = resident(device)
        reset_peak(device)
        wall, cpu = time.monotonic(), time.process_time()
        cell |= trained(scorer, method, choices, seed, folds)
        cell |= {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
        cell["peak_mb"] = peak(device) - before
    found, silent, pairs, silent_pairs = agreement(taste, cases, scores_of(scorer, cases))
    return {**cell, "agreement": found, "silent": silent, "pairs": pairs, "silent_pairs": silent_pairs}


def trained(scorer: Scorer, method: str, choices: Choices, seed: int, folds: int) -> dict:
    """Train the scorer in place; {parameters, bytes, better}."""
    with tempfile.TemporaryDirectory() as directory:
        if method in OWN:
            prefix, rate = OWN[method]
            config = LearningConfig(learning_rate=rate, seed=seed, epochs=20 if folds else 3)
            learned = OwnWeights(scorer, prefix)
            groups = groups_of(choices.items)
            summary = train_and_measure(
                scorer,
                learned,
                choices,
                groups,
                config,
                folds,
                0.1,
                Path(directory),
                encode_once=bool(prefix),
            )
            size = sum(value.nbytes for value in learned.learned())
        else:
            config = LearningConfig(kind=method, seed=seed)
            adapter, summary = personalise_scorer(scorer, choices, config, "mine", folds=folds)
            saved = save_adapter(adapter.described(), adapter.weights(), Path(directory) / "saved")
            size = sum(path.stat().st_size for path in saved.iterdir())
    return {
        "parameters": summary.parameters,
        "bytes": size,
        "better": summary.better,
        "epochs": summary.epochs,
    }


def done() -> dict:
    """The results so far."""
    found = record.so_far(NAME, torch.device("cpu"))
    return found or {"base": BASE, "prompts": HELD_OUT, "cells": [], "reference": []}


def run(cells: list[tuple[str, str, int, int]], reference: bool) -> None:
    """Measure what is missing, and write after each cell."""
    result, cases = done(), asked(HELD_OUT, "test", 1)
    kept = "reference" if reference else "cells"
    have = {(each["taste"], each["method"], each["rankings"], each["seed"]) for each in result[kept]}
    for key in cells:
        if key in have:
            continue
        taste, method, count, seed = key
        cell = measured(taste, method, count, seed, cases, 0 if reference else FOLDS)
        result[kept].append(cell)
        result["environment"] = record.environment(torch.device("cpu"))
        record.write(NAME, result)
        shown = {name: cell[name] for name in ("taste", "method", "rankings", "seed")}
        shown |= {name: f"{cell.get(name, 0):.4g}" for name in ("agreement", "silent", "cpu_seconds")}
        print(table([shown]), flush=True)


def draw(result: dict) -> None:
    """The picture: agreement by number of rankings, a panel for each taste, a line for each method."""
    cells = result["cells"]
    tastes = [taste for taste in TASTES if any(cell["taste"] == taste for cell in cells)]
    figure, axes = panels(1, len(tastes), (3.4 * len(tastes), 3.4), sharey=True, squeeze=False)
    for axis, taste in zip(axes[0], tastes):
        for place, method in enumerate(METHODS):
            points = []
            for count in (0, *RANKINGS):
                values = [
                    cell["agreement"]
                    for cell in cells
                    if (cell["taste"], cell["method"]) == (taste, method)
                    and (cell["rankings"] == count or method == BASE_METHOD)
                ]
                if values and (count or method == BASE_METHOD):
                    points.append((count, 100 * float(np.mean(values))))
            if points:
                axis.plot(*zip(*points), marker="o", markersize=4, label=method, color=f"C{place}")
        for each in result["reference"]:
            if each["taste"] == taste:
                axis.axhline(
                    100 * each["agreement"], color="grey", linestyle=":", label=f"full, {each['rankings']:,}"
                )
        axis.set_title(taste)
        axis.set_xlabel("rankings")
    axes[0][0].set_ylabel("agreement with the taste, %")
    named = {name: line for axis in axes[0] for line, name in zip(*axis.get_legend_handles_labels())}
    axes[0][-1].legend(
        named.values(), named.keys(), fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5)
    )
    save(figure, PICTURE)


def summaries(result: dict) -> list[dict]:
    """A row for each taste, method and number of rankings: means over seeds, and agreement's interval."""
    rows = []
    for taste, method, count in product(TASTES, METHODS, (0, *RANKINGS, REFERENCE)):
        cells = [
            each
            for each in (*result["cells"], *result["reference"])
            if (each["taste"], each["method"], each["rankings"]) == (taste, method, count)
        ]
        if not cells:
            continue
        mean, low, high = mean_interval([each["agreement"] for each in cells])
        row = {"taste": taste, "method": method, "rankings": count, "seeds": len(cells), "agreement": mean}
        row |= {"low": low, "high": high, "silent": float(np.mean([each["silent"] for each in cells]))}
        for name in ("parameters", "bytes", "cpu_seconds", "peak_mb"):
            values = [each[name] for each in cells if name in each]
            row[name] = float(np.mean(values)) if values else 0.0
        rows.append(row)
    return rows


def reached(result: dict) -> list[dict]:
    """For each taste with a reference: the row of `summaries` of the best intervention from `SHORT` rankings.

    It has beside its own keys: base, reference (agreement of both), silent_base, silent_reference, and share,
    (agreement - base) / (reference - base).
    """
    rows, found = summaries(result), []
    for taste in TASTES:
        own = {(row["method"], row["rankings"]): row for row in rows if row["taste"] == taste}
        base, reference = own.get((BASE_METHOD, 0)), own.get(("full", REFERENCE))
        tried = [own[kind, SHORT] for kind in INTERVENTIONS if (kind, SHORT) in own]
        if base is None or reference is None or not tried:
            continue
        best = max(tried, key=lambda row: row["agreement"])
        gain = reference["agreement"] - base["agreement"]
        found.append(
            {
                **best,
                "base": base["agreement"],
                "reference": reference["agreement"],
                "share": (best["agreement"] - base["agreement"]) / gain,
                "silent_base": base["silent"],
                "silent_reference": reference["silent"],
            }
        )
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tastes", nargs="+", choices=TASTES, default=TASTES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rankings", nargs="+", type=int, default=RANKINGS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--draw", action="store_true")
    record.add_option(parser)
    options = parser.parse_args()
    if not options.draw:
        record.refuse_changes(options.allow_changes)
        if options.reference:
            run([(taste, "full", REFERENCE, 0) for taste in options.tastes], True)
        else:
            seeds = range(options.seeds)
            cells = [
                (taste, method, 0 if method == BASE_METHOD else count, 0 if method == BASE_METHOD else seed)
                for seed, taste, count, method in product(
                    seeds, options.tastes, options.rankings, options.methods
                )
            ]
            run(list(dict.fromkeys(cells)), False)
    draw(json.loads((RESULTS / f"{NAME}.json").read_text()))


if __name__ == "__main__":
    main()
