"""Benchmark of policy gradient against the reward's gradient on the tiny flow model, with three seeds each.

    python -m benchmarks.training.finetune_flow WORKDIR  what is missing of all runs; then the table
    python -m benchmarks.training.finetune_flow WORKDIR --only GRPO --run 2 one run alone, or the rest of it
    python -m benchmarks.training.finetune_flow --draw                      only draws the picture again

All methods but "GRPO, JPEG" maximise ImageReward-tiny's score. Images of test-split prompts, at fixed seeds,
are judged by that reward, by `shapes.measure`, which no method was trained on, and by their size as JPEG.
Intervals are over prompts, of differences averaged over the runs; each run's own gain is listed too.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib import record
from benchmarks.lib.paths import DOCS, TINY_FLOW
from benchmarks.pages.plots import panels, save
from benchmarks.training.finetune import (
    CANDIDATES,
    FAITHFULNESS,
    HELD_OUT,
    REWARD,
    SEEDS,
    best_of,
    gains,
    judged,
    prompts_of,
    seconds_of,
    timed,
)
from imagereward.table import table
from imagereward.tuning.config import read_recipe
from imagereward.tuning.evaluation.comparison import paired_interval

MODEL = TINY_FLOW
PICTURE = DOCS / "finetune-flow.png"
JPEG = "imagereward.rewards.jpeg:jpeg_compressibility"
NAMES = {REWARD: "reward", FAITHFULNESS: "faithfulness", JPEG: "jpeg"}
RECIPES = {
    "ReFL": "tiny/refl_flow",
    "GRPO": "tiny/grpo",
    "GRPO-Fast": "tiny/grpo_fast",
    "GRPO, JPEG": "tiny/grpo_jpeg",
}
RUNS = (1, 2, 3)


def train(method: str, run: int, work: Path, model: Path, **changes) -> Path:
    """One run, or the rest of it; its output directory."""
    recipe = RECIPES[method]
    settings = {"reward": read_recipe(recipe)["reward"], "recipe": recipe, "seed": run, **changes}
    return timed(f"{method}-{run}", work, str(model), **settings)


def row(method: str, before: dict, after: list[dict], minutes: float | None, images: int | None) -> dict:
    """A line of the table: every judge's mean over runs, and its change with an interval over prompts."""
    found = {"method": method, "images": images, "minutes": minutes}
    for name, short in NAMES.items():
        if name not in after[0]:
            continue
        per_prompt = np.mean([each[name].reshape(len(each[name]), -1).mean(1) for each in after], 0)
        first = before[name].mean(1)
        found[short] = float(per_prompt.mean())
        found[f"{short} gained"] = float((per_prompt - first).mean())
        found[f"{short} of runs"] = [float(each[name].mean() - first.mean()) for each in after]
        found[f"{short} low"], found[f"{short} high"] = paired_interval(first, per_prompt)
    return found


def curve(output: Path) -> list[dict]:
    """Reward and faithfulness on held-out prompts, by images drawn for training, and minutes of the run."""
    history = json.loads((output / "history.json").read_text())
    config = json.loads((output / "run.json").read_text())
    whole = seconds_of(output) / 60
    points = []
    for entry in history:
        if "evaluation/held_out" in entry:
            done = entry["update"]
            points.append(
                {
                    "images": done * config["batch_size"],
                    "minutes": whole * done / config["updates"],
                    "reward": entry["evaluation/reward"],
                    "faithfulness": entry["evaluation/held_out"],
                }
            )
    return points


def run_all(work: Path, model: Path) -> None:
    """All runs, the table, the results file."""
    held_out, judge = prompts_of("test", HELD_OUT), dict.fromkeys(NAMES, 1.0)
    rows, curves, before = [], {}, {}
    for method in RECIPES:
        outputs = [train(method, run, work, model) for run in RUNS]
        found = [judged(model, output, held_out, judge) for output in outputs]
        before = found[0].before
        if not rows:
            rows.append(row("base", before, [before], None, None))
        points = [curve(output) for output in outputs]
        after = [each.after for each in found]
        minutes = max(each[-1]["minutes"] for each in points)
        rows.append(row(method, before, after, minutes, points[0][-1]["images"]))
        curves[method] = points
        shown = {key: value for key, value in rows[-1].items() if isinstance(value, str | int | float)}
        print(table([shown]), flush=True)
    rows.append(row(f"best of {CANDIDATES}", before, [best_of(CANDIDATES, held_out, model)], None, None))
    result = {"prompts": HELD_OUT, "seeds": SEEDS, "runs": len(RUNS), "rows": rows, "curves": curves}
    print(record.write("finetune-flow", {**result, "environment": record.environment(torch.device("cpu"))}))


def draw() -> None:
    """What was pushed up and faithfulness, against images and minutes, as docs/finetune-flow.png."""
    result = json.loads((record.RESULTS / "finetune-flow.json").read_text())
    figure, axes = panels(3, 2, (9, 9.6))
    best, note = result["rows"][-1], f"best of {CANDIDATES}, that many images for one"
    for line, name in zip(axes, NAMES.values(), strict=True):
        for axis, over in zip(line, ("images", "minutes"), strict=True):
            for colour, (method, runs) in enumerate(result["curves"].items()):
                pushed = "jpeg" if "JPEG" in method else "reward"
                if name not in (pushed, "faithfulness"):
                    continue
                logged = "faithfulness" if name == "faithfulness" else "reward"
                for number, points in enumerate(runs):
                    label = None if number else method
                    gains(axis, points, over, logged, color=f"C{colour}", lw=1, label=label)
            if name in best:
                axis.axhline(best[f"{name} gained"], color="#adb5bd", lw=1, ls=":", label=note)
            axis.set(title=f"{name} gained, held-out prompts", xlabel=over)
    # The line that has all of the labels speaks for the others.
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    save(figure, PICTURE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="a directory for runs")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--only", choices=RECIPES, help="one method")
    parser.add_argument("--run", type=int, choices=RUNS, default=1, help="with --only: which of its runs")
    parser.add_argument("--draw", action="store_true", help="only draw the picture")
    record.add_option(parser)
    options = parser.parse_args()
    if not options.draw and options.work is None:
        parser.error("which directory to work in?")
    if options.only and not options.draw:
        print(train(options.only, options.run, options.work, options.model))
        return
    if not options.draw:
        record.refuse_changes(options.allow_changes)
        run_all(options.work, options.model)
    draw()


if __name__ == "__main__":
    main()
