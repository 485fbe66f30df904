"""Benchmark of tuning the tiny inpainting model by rewards of the mask's region, on scenes of Shapes.

    python -m benchmarks.training.inpainting WORKDIR  what is missing of all runs; then the table
    python -m benchmarks.training.inpainting WORKDIR --only ReFL --run 2  one run alone, or the rest of it
    python -m benchmarks.training.inpainting --table                      the table of the runs that are there
    python -m benchmarks.training.inpainting WORKDIR --sheet FILE         images before and after training

A finished run has a record of its own, results/inpainting/METHOD-RUN.json, so runs may be made one by one, on
equal machines; the table is made of the records. Rows of the train split are trained on. A run that raises
its reward while `measure_inpainting` falls on rows of the valid split is stopped, as the recipes say. Rows of
the test split are painted before and after, from the same noise, and judged by the scorer inside the mask
("region"), by the boundary, by `measure_inpainting` inside the mask, which no method is trained on
("inside"), and by how far the image moved outside it ("outside"). "floor" is how far the autoencoder's
reconstruction of an original moves. Intervals are over rows, of differences averaged over the runs; each
run's own gain is listed too. Minutes are CPU time of training with its evaluations.
"""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib import record
from benchmarks.lib.paths import TINY_INPAINT
from benchmarks.toy_models.tiny_inpaint import painted, request_of, sheet
from benchmarks.training.finetune import seconds_of, timing
from benchmarks.training.finetune_flow import slug
from imagereward.images.image_size import ImageSize
from imagereward.images.row_pictures import image_at, mask_at
from imagereward.inpainting.writing import write_data
from imagereward.rewards.region import outside_distance
from imagereward.shapes.inpainting import inpainting_row
from imagereward.table import table
from imagereward.tuning import read_recipe, tune
from imagereward.tuning.data.requests import Request
from imagereward.tuning.evaluation.compare import compare
from imagereward.tuning.evaluation.comparison import paired_interval
from imagereward.tuning.evaluation.comparison_page import page
from imagereward.tuning.families.registry import open_denoiser

METHODS = {
    "ReFL": "tiny/inpaint_refl",
    "GRPO": "tiny/inpaint_grpo",
    "online DPO": "tiny/inpaint_dpo_online",
}
RUNS = (1, 2, 3)
RECORD = "inpainting"
REGION = "inside(ImageReward-tiny, 48)"
PAINTED = "imagereward.shapes.rewards:painted"
# Judge -> its name in records and tables.
NAMES = {REGION: "region", "boundary": "boundary", PAINTED: "inside", "preservation": "preservation"}
TRAINED, HELD_OUT, WATCHED, DRAWN, STEPS, SEED = 400, 64, 16, 2, 20, 7


def rows_of(split: str, count: int) -> list[Request]:
    """Rows whose prompts ask for another thing than the mask hides."""
    return [request_of(inpainting_row(i, SEED, split, change=True)) for i in range(count)]


def train(method: str, run: int, work: Path, model: Path, **changes: Any) -> Path:
    """One run, or the rest of it; its output directory. `changes` are values of the recipe's keys."""
    output = work / slug(method, run)
    if (output / "model_index.json").is_file():
        return output
    watched = work / "held-out"
    if not (watched / "rows.jsonl").is_file():
        write_data(watched, "shapes", count=WATCHED, seed=SEED, split="valid", overwrite=True, progress=False)
    recipe = METHODS[method]
    evaluation = read_recipe(recipe)["evaluation"] | {"prompts": str(watched), "held_out": PAINTED}
    with timing(output):
        tune(
            str(model),
            rows_of("train", TRAINED),
            reward=read_recipe(recipe)["reward"],
            output=output,
            recipe=recipe,
            resume=(output / "run.json").is_file(),
            **{"seed": run, "evaluation": evaluation, **changes},
        )
    return output


def measure(method: str, run: int, work: Path, model: Path, **changes: Any) -> None:
    """Train one run, or the rest of it, judge its images, and write its record."""
    output = train(method, run, work, model, **changes)
    judge, rows = dict.fromkeys(NAMES, 1.0), rows_of("test", HELD_OUT)
    found = compare(
        str(model), str(output), rows, judge, seeds=DRAWN, steps=STEPS, guidance=1.0, batch_size=32
    )
    output.with_suffix(".html").write_text(page(found, ("before", f"{method}, run {run}")))
    result = {
        "method": method,
        "run": run,
        "minutes": seconds_of(output) / 60,
        "floor": floor(model, HELD_OUT).tolist(),
        "rewards": {
            short: [values.tolist() for values in (found.before[name], found.after[name])]
            for name, short in NAMES.items()
        },
        "curve": curve(output),
        "environment": record.environment(torch.device("cpu")),
    }
    print(record.write(f"{RECORD}/{slug(method, run)}", result), flush=True)


@cache
def floor(model: Path, count: int) -> np.ndarray:
    """[M]: how far the autoencoder's reconstruction of each test row's original moves outside the mask."""
    autoencoder = open_denoiser(str(model)).autoencoder
    found = []
    for row in rows_of("test", count):
        size = ImageSize(64, 64)
        image, mask = image_at(row, size, row.prompt)[None], mask_at(row, size, row.prompt)[None]
        with torch.no_grad():
            found.append(float(outside_distance(autoencoder.decode(autoencoder.encode(image)), image, mask)))
    return np.array(found)


def curve(output: Path) -> list[dict[str, float]]:
    """The trained reward and the measure inside the mask on held-out rows, by update."""
    return [
        {
            "update": entry["update"],
            "reward": entry["evaluation/reward"],
            "inside": entry["evaluation/held_out"],
        }
        for entry in json.loads((output / "history.json").read_text())
        if "evaluation/held_out" in entry
    ]


def record_of(method: str, run: int) -> dict | None:
    """The record of a finished run; None if there is none."""
    path = record.RESULTS / f"{RECORD}/{slug(method, run)}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def line(method: str, records: list[dict]) -> dict:
    """A method's row: each judge's mean over runs, its gain with an interval over rows, and each run's."""
    found: dict[str, Any] = {"method": method, "minutes": max(each["minutes"] for each in records)}
    per_row = {
        short: [np.mean([each["rewards"][short][at] for each in records], (0, 2)) for at in (0, 1)]
        for short in NAMES.values()
    }
    moved, least = [-values for values in per_row.pop("preservation")], np.array(records[0]["floor"])
    for short, (before, after) in per_row.items():
        low, high = paired_interval(before, after)
        found |= {short: float(after.mean()), f"{short} gained": float((after - before).mean())}
        found |= {f"{short} low": low, f"{short} high": high}
        found[f"{short} of runs"] = [
            float(np.mean(each["rewards"][short][1]) - np.mean(each["rewards"][short][0])) for each in records
        ]
    found |= {"outside before": float(moved[0].mean()), "outside": float(moved[1].mean())}
    # How far beyond the reconstruction's own distance; the interval of what training added is above 0 or not.
    low, high = paired_interval(moved[0], moved[1])
    return found | {"floor": float(least.mean()), "outside low": low, "outside high": high}


def tabulate() -> None:
    """The table and the results file of all methods of which every run has a record."""
    rows = []
    for method in METHODS:
        records = [found for run in RUNS if (found := record_of(method, run))]
        if len(records) < len(RUNS):
            print(f"{method}: {len(records)} of {len(RUNS)} runs have a record; left out")
            continue
        rows.append(line(method, records))
    if not rows:
        return
    print(table([{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]))
    result = {"held_out": HELD_OUT, "drawn": DRAWN, "runs": len(RUNS), "rows": rows}
    print(record.write(RECORD, {**result, "environment": record.environment(torch.device("cpu"))}))


def draw(path: Path, work: Path, model: Path, count: int = 8) -> None:
    """Draw test rows before training, and after the first run of each method that is there, as a sheet."""
    rows = rows_of("test", count)
    models = {"before": model} | {method: work / slug(method, RUNS[0]) for method in METHODS}
    there = {name: tuned for name, tuned in models.items() if (tuned / "model_index.json").is_file()}
    sheet(path, rows, [(name, painted(tuned, rows)[:, 0]) for name, tuned in there.items()])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="a directory for runs")
    parser.add_argument("--model", type=Path, default=TINY_INPAINT)
    parser.add_argument("--only", choices=METHODS, help="one method")
    parser.add_argument("--run", type=int, choices=RUNS, default=1, help="with --only: which of its runs")
    parser.add_argument("--table", action="store_true", help="only make the table of the records")
    parser.add_argument("--sheet", type=Path, help="only draw images before and after, as this picture")
    record.add_option(parser)
    options = parser.parse_args()
    if options.table:
        tabulate()
        return
    if options.work is None:
        parser.error("which directory to work in?")
    if not (options.model / "model_index.json").is_file():
        parser.error(
            f"{options.model} holds no pipeline: train it with "
            "python -m benchmarks.toy_models.tiny_inpaint WORKDIR --adopt"
        )
    if options.sheet is not None:
        draw(options.sheet, options.work, options.model)
        return
    record.refuse_changes(options.allow_changes)
    options.work.mkdir(parents=True, exist_ok=True)
    missing = [(method, run) for run in RUNS for method in METHODS if record_of(method, run) is None]
    for method, run in [(options.only, options.run)] if options.only else missing:
        measure(method, run, options.work, options.model)
    if not options.only:
        tabulate()


if __name__ == "__main__":
    main()
