"""Reproduces ImageReward-tiny: draws its data, trains it by its recipe, measures it, and plots the curve.

    python -m benchmarks.toy_models.imagereward_tiny WORKDIR [key=value …]
                                            all of it; resume=true goes on with it
    python -m benchmarks.toy_models.imagereward_tiny WORKDIR --adopt  and put the result into the package
    python -m benchmarks.toy_models.imagereward_tiny --draw  only the picture, from the results file

Writes results/tiny.json and docs/tiny.png. The same arguments on the same machine give the same weights.
"""

import argparse
import json
import shutil
from pathlib import Path

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.paths import DOCS
from benchmarks.pages.plots import panels, save
from benchmarks.shapes.scorer_accuracy import SEED, accuracy
from imagereward.checkpoints.registry import ASSETS
from imagereward.shapes import write
from imagereward.table import table
from imagereward.tuning import run_recipe

RECIPE = "tiny/preference"
PROMPTS, DATA_SEED = 10_000, 1
HELD_OUT_PROMPTS = 3000
STAGES = {"warmup": "warmup/history.json", "ranking": "history.json"}
PICTURE = DOCS / "tiny.png"


def run(work: Path, overrides: list[str], adopt: bool) -> None:
    """Draw the data, train, measure and write the results file."""
    data, output = work / "shapes", work / "ImageReward-tiny"
    if not data.exists():
        write(data, PROMPTS, DATA_SEED)
    run_recipe(RECIPE, [f"data={data}", f"output={output}", *overrides])
    scorer = RM.load(output)
    plain, shuffled = accuracy(scorer, HELD_OUT_PROMPTS)
    rows = [
        {"pairs": kind, "accuracy": plain[kind][0], "shuffled": shuffled[kind][0], "count": plain[kind][1]}
        for kind in plain
    ]
    print(table(rows))
    result = {
        "recipe": RECIPE,
        "overrides": overrides,
        "data": {"prompts": PROMPTS, "seed": DATA_SEED},
        "held_out": {"prompts": HELD_OUT_PROMPTS, "seed": SEED},
        "seconds": {stage: seconds(output / where) for stage, where in STAGES.items()},
        "parameters": sum(parameter.numel() for parameter in scorer.parameters()),
        "megabytes": (output / "model.safetensors").stat().st_size / 1e6,
        "rows": rows,
        "history": {stage: history(output / where) for stage, where in STAGES.items()},
        "environment": record.environment(scorer.device),
    }
    print(record.write("tiny", result))
    if adopt:
        for name in ("model.safetensors", "config.json"):
            shutil.copy(output / name, ASSETS / "ImageReward-tiny" / name)


def seconds(path: Path) -> float:
    """Seconds of a training stage, from the trainer's log."""
    return next(entry["train_runtime"] for entry in json.loads(path.read_text()) if "train_runtime" in entry)


def history(path: Path) -> list[dict]:
    """The trainer's log without times, which differ between runs of the same training."""
    kept = ("step", "loss", "eval_pair_loss", "eval_accuracy", "eval_spread", "learning_rate")
    log = json.loads(path.read_text())
    return [row for entry in log if len(row := {key: entry[key] for key in kept if key in entry}) > 1]


def draw() -> None:
    """The curve and the bars, as docs/tiny.png."""
    result = json.loads((record.RESULTS / "tiny.json").read_text())
    figure, (warm, ranking, bars) = panels(1, 3, (12, 3.8), width_ratios=(1, 1, 1.3))
    log = [entry for entry in result["history"]["warmup"] if "loss" in entry]
    warm.plot([entry["step"] for entry in log], [entry["loss"] for entry in log], color="#4c6ef5")
    warm.set(title="warm-up: images and prompts", xlabel="updates", ylabel="training loss")
    log = [entry for entry in result["history"]["ranking"] if "eval_accuracy" in entry]
    steps = [entry["step"] for entry in log]
    ranking.plot(steps, [100 * entry["eval_accuracy"] for entry in log], color="#2b8a3e", marker=".")
    ranking.set(title="rankings", xlabel="updates", ylabel="validation pairs right, %")
    other = ranking.twinx()
    other.plot(steps, [entry["eval_pair_loss"] for entry in log], color="#adb5bd", marker=".")
    other.set_ylabel("validation loss (grey)")
    rows = [row for row in result["rows"] if ": noise" not in row["pairs"] and not row["pairs"][-1].isdigit()]
    places = range(len(rows))
    bars.barh(places, [100 * row["accuracy"] for row in rows], height=0.7, color="#74c0fc")
    bars.plot([100 * row["shuffled"] for row in rows], places, "|", color="#e03131", ms=12, mew=2)
    bars.axvline(50, color="#adb5bd", lw=1, ls=":")
    bars.set_yticks(places, [row["pairs"] for row in rows])
    for place, row in zip(places, rows):
        bars.text(2, place, f"{100 * row['accuracy']:.1f} %", va="center", fontsize=8)
    bars.set(title="held-out pairs right, % (red: shuffled)", xlim=(0, 100))
    bars.invert_yaxis()
    save(figure, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="a directory for data and checkpoints")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--adopt", action="store_true", help="put the weights into the package")
    parser.add_argument("--draw", action="store_true", help="only draw the picture")
    record.add_option(parser)
    options = parser.parse_args()
    if not options.draw:
        if options.work is None:
            parser.error("which directory to work in?")
        record.refuse_changes(options.allow_changes)
        run(options.work, options.overrides, options.adopt)
    draw()


if __name__ == "__main__":
    main()
