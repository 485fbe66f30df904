"""Benchmark of objectives on the tiny flow model: ten minutes of one core each, with three seeds.

    python -m benchmarks.training.finetune_flow WORKDIR  what is missing of all runs; then the table
    python -m benchmarks.training.finetune_flow WORKDIR --only NFT --run 2   one run alone, or the rest of it
    python -m benchmarks.training.finetune_flow --table                  the table of the runs that are there
    python -m benchmarks.training.finetune_flow --draw                   only draws the picture again

A finished run has a record of its own, results/finetune-flow/METHOD-RUN.json, so runs may be made one by
one, on equal machines; the table is made of the records. Most methods maximise ImageReward-tiny's score;
"JPEG" the smallness of files; "DPO on pairs" learns from drawn pairs without a reward; the reward of
"scrambled" gets another prompt than the generator. Images of test-split prompts, at fixed seeds, are judged
by ImageReward-tiny, by `shapes.measure`, which no reward has seen, and by their size as JPEG. Intervals are
over prompts, of differences averaged over the runs; each run's own gain is listed too. Minutes are CPU time
of training with its evaluations.
"""

import argparse
import itertools
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
    TRAINED,
    best_of,
    gains,
    judged,
    prompts_of,
    scrambled,
    seconds_of,
    timed,
)
from imagereward.table import table
from imagereward.tuning.evaluation.comparison import paired_interval
from imagereward.tuning.recipe import read_recipe

MODEL = TINY_FLOW
PICTURE = DOCS / "finetune-flow.png"
JPEG = "imagereward.rewards.jpeg:jpeg_compressibility"
NAMES = {REWARD: "reward", FAITHFULNESS: "faithfulness", JPEG: "jpeg"}
RECIPES = {
    "ReFL": "tiny/refl_flow",
    "GRPO": "tiny/grpo",
    "GRPO-Fast": "tiny/grpo_fast",
    "NFT": "tiny/nft",
    "AWM": "tiny/awm",
    "online DPO": "tiny/dpo_online",
    "RAFT": "tiny/sft_online",
    "DPO on pairs": "tiny/dpo",
    "NFT, scrambled": "tiny/nft",
    "online DPO, scrambled": "tiny/dpo_online",
    "GRPO, JPEG": "tiny/grpo_jpeg",
}
RUNS = (1, 2, 3)
RECORD = "finetune-flow"


def train(method: str, run: int, work: Path, model: Path, **changes) -> Path:
    """One run, or the rest of it; its output directory."""
    recipe = RECIPES[method]
    values = read_recipe(recipe)
    settings = {"reward": values.get("reward", REWARD), "recipe": recipe, "seed": run, **changes}
    if "prompts" not in values:  # learns from pairs; the reward only watches
        settings["prompts"] = None
    if "scrambled" in method:
        settings["reward"] = scrambled(prompts_of("train", TRAINED))
    return timed(slug(method, run), work, str(model), **settings)


def slug(method: str, run: int) -> str:
    """The name of a run in file names."""
    return f"{method}-{run}".lower().replace(", ", "-").replace(" ", "-")


def measure(method: str, run: int, work: Path, model: Path) -> None:
    """Train one run, or the rest of it, judge its images, and write its record."""
    held_out = prompts_of("test", HELD_OUT)
    output = train(method, run, work, model)
    found = judged(model, output, held_out, dict.fromkeys(NAMES, 1.0))
    rewards = {
        name: [values.tolist() for values in (found.before[name], found.after[name])] for name in NAMES
    }
    result = {
        "method": method,
        "run": run,
        "minutes": seconds_of(output) / 60,
        "rewards": rewards,
        "curve": curve(output),
        "environment": record.environment(torch.device("cpu")),
    }
    print(record.write(f"{RECORD}/{slug(method, run)}", result), flush=True)


def record_of(method: str, run: int) -> dict | None:
    """The record of a finished run; None if there is none."""
    path = record.RESULTS / f"{RECORD}/{slug(method, run)}.json"
    return json.loads(path.read_text()) if path.is_file() else None


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


def tabulate(model: Path) -> None:
    """The table and the results file of all methods of which every run has a record.

    A method without records keeps its row of the last table, which then says where it was measured.
    """
    held_out, rows, curves = prompts_of("test", HELD_OUT), [], {}
    last = json.loads((record.RESULTS / f"{RECORD}.json").read_text())
    before: dict[str, np.ndarray] = {}
    for method in RECIPES:
        records = [found for run in RUNS if (found := record_of(method, run))]
        if not records and method in last["curves"]:
            kept = next(each for each in last["rows"] if each["method"] == method)
            rows.append({"environment": last["environment"], **kept})
            curves[method] = last["curves"][method]
            continue
        if len(records) < len(RUNS):
            print(f"{method}: {len(records)} of {len(RUNS)} runs have a record; left out")
            continue
        after = [{name: np.array(found["rewards"][name][1]) for name in NAMES} for found in records]
        before = {name: np.array(records[0]["rewards"][name][0]) for name in NAMES}
        curves[method] = [found["curve"] for found in records]
        minutes = max(found["minutes"] for found in records)
        rows.append(row(method, before, after, minutes, curves[method][0][-1]["images"]))
    rows.insert(0, row("base", before, [before], None, None))
    rows.append(row(f"best of {CANDIDATES}", before, [best_of(CANDIDATES, held_out, model)], None, None))
    shown = [
        {key: value for key, value in each.items() if isinstance(value, str | int | float)} for each in rows
    ]
    print(table([{"images": "", "minutes": "", **each} for each in shown]))
    result = {"prompts": HELD_OUT, "seeds": SEEDS, "runs": len(RUNS), "rows": rows, "curves": curves}
    print(record.write(RECORD, {**result, "environment": record.environment(torch.device("cpu"))}))


def mean_of(runs: list[list[dict]]) -> list[dict]:
    """The mean of the runs' curves, point by point."""
    return [{name: float(np.mean([each[name] for each in at])) for name in at[0]} for at in zip(*runs)]


def draw() -> None:
    """What was pushed up and faithfulness, against images and minutes, as docs/finetune-flow.png.

    Thick lines are means of the runs, thin ones the runs. Those of a scrambled reward are broken, in the
    colour of the method.
    """
    result = json.loads((record.RESULTS / "finetune-flow.json").read_text())
    figure, axes = panels(3, 2, (9, 9.6))
    methods = list(dict.fromkeys(method.removesuffix(", scrambled") for method in result["curves"]))
    colours = {name: f"C{methods.index(name.removesuffix(', scrambled'))}" for name in result["curves"]}
    best, note = result["rows"][-1], f"best of {CANDIDATES}, that many images for one"
    for line, name in zip(axes, NAMES.values(), strict=True):
        for axis, over in zip(line, ("images", "minutes"), strict=True):
            for method, runs in result["curves"].items():
                pushed = "jpeg" if "JPEG" in method else "reward"
                if name not in (pushed, "faithfulness"):
                    continue
                logged = "faithfulness" if name == "faithfulness" else "reward"
                style = {"color": colours[method], "ls": "--" if "scrambled" in method else "-"}
                for points in runs:
                    gains(axis, points, over, logged, lw=0.5, alpha=0.3, **style)
                gains(axis, mean_of(runs), over, logged, lw=1.8, label=method, **style)
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
    parser.add_argument("--table", action="store_true", help="only make the table of the records")
    parser.add_argument("--draw", action="store_true", help="only draw the picture")
    record.add_option(parser)
    options = parser.parse_args()
    if not (options.draw or options.table) and options.work is None:
        parser.error("which directory to work in?")
    if options.draw:
        draw()
        return
    record.refuse_changes(options.allow_changes)
    if options.only:
        measure(options.only, options.run, options.work, options.model)
        return
    if not options.table:
        for method, run in itertools.product(RECIPES, RUNS):
            if record_of(method, run) is None:
                measure(method, run, options.work, options.model)
    tabulate(options.model)
    draw()


if __name__ == "__main__":
    main()
