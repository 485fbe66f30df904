"""Benchmark of ReFL on the tiny Stable Diffusion by the tiny vision-language model, a judge of Shapes.

    python -m benchmarks.training.finetune_judge WORKDIR            runs what is missing, then the table
    python -m benchmarks.training.finetune_judge WORKDIR --only ReFL --run 2    one run, or the rest of it
    python -m benchmarks.training.finetune_judge --table            only makes the table of the records

A finished run has a record of its own, results/finetune-judge/METHOD-RUN.json. Images of test-split prompts
are drawn before and after from the same noise, and judged by the judge that was followed, by
`shapes.measure`, which no reward has seen, and by ImageReward-tiny, which was not followed. Rewards have no
gradient above the judge's mean score of true drawings. "scrambled" is ReFL whose judge gets another prompt
than the generator.
"""

import argparse
import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.paths import TINY_SD, TINY_VLM
from benchmarks.training.finetune import (
    FAITHFULNESS,
    HELD_OUT,
    REWARD,
    SEEDS,
    THINGS,
    TRAINED,
    curve,
    judged,
    prompts_of,
    scrambled,
    seconds_of,
    timed,
)
from imagereward import shapes
from imagereward.table import table
from imagereward.tuning.evaluation.comparison import paired_interval

RECORD = "finetune-judge"
METHODS = ("ReFL", "ReFL, scrambled")
RUNS = (1, 2, 3)
# Drawings whose mean score is where the reward ends.
TRUE_DRAWINGS = 256


def slug(method: str, run: int) -> str:
    """The name of a run in file names."""
    return f"{method}-{run}".lower().replace(", ", "-")


@cache
def target(judge: Path) -> float:
    """The judge's mean score of flawless drawings of prompts of the train split."""
    pairs = [shapes.pair(i, 7, "train", most_things=THINGS) for i in range(TRUE_DRAWINGS)]
    prompts, images = zip(*pairs, strict=True)
    return float(np.mean(RM.load(judge, "cpu").score_pairs(list(prompts), list(images))))


def measure(method: str, run: int, work: Path, judge: Path = TINY_VLM, **changes) -> Path:
    """Train one run, or the rest of it, judge its images, and write its record; returns the record's path."""
    prompts = prompts_of("train", TRAINED)
    reward = scrambled(prompts, str(judge)) if "scrambled" in method else str(judge)
    settings = {"recipe": "tiny/refl", "seed": run, "reward": reward, "target": target(judge), **changes}
    output = timed(slug(method, run), work, str(TINY_SD), **settings)
    names = {FAITHFULNESS: "faithfulness", str(judge): "judge", REWARD: "reward"}
    found = judged(TINY_SD, output, prompts_of("test", HELD_OUT), dict.fromkeys(names, 1.0))
    measured = {}
    for name, short in names.items():
        before, after = found.before[name], found.after[name]
        low, high = paired_interval(before.mean(1), after.mean(1))
        measured[short] = {
            "before": float(before.mean()),
            "after": float(after.mean()),
            "gained": float(after.mean() - before.mean()),
            "low": low,
            "high": high,
            "of prompts": [before.mean(1).tolist(), after.mean(1).tolist()],
        }
    result = {
        "method": method,
        "run": run,
        "prompts": HELD_OUT,
        "seeds": SEEDS,
        "target": target(judge),
        "minutes": seconds_of(output) / 60,
        "diversity": list(found.diversity),
        "measured": measured,
        "curve": curve(output),
        "environment": record.environment(torch.device("cpu")),
    }
    print(table([row(result)]), flush=True)
    return record.write(f"{RECORD}/{slug(method, run)}", result)


def row(result: dict) -> dict:
    """A line of the table, from a run's record."""
    line = {"method": result["method"], "run": result["run"]}
    for name, each in result["measured"].items():
        line[name] = each["after"]
        line[f"{name} gained"] = f"{each['gained']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"
    return {**line, "minutes": result["minutes"]}


def record_of(method: str, run: int) -> dict | None:
    """The record of a finished run; None if there is none."""
    path = record.RESULTS / f"{RECORD}/{slug(method, run)}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def tabulate() -> None:
    """The table and the results file, of all runs that have a record."""
    found = [each for at in itertools.product(METHODS, RUNS) if (each := record_of(*at))]
    if not found:
        raise SystemExit("no run has a record yet: run python -m benchmarks.training.finetune_judge WORKDIR")
    print(table([row(each) for each in found]))
    rows = [{**each, "measured": _without_prompts(each["measured"])} for each in found]
    for each in rows:
        del each["environment"], each["curve"]
    result = {"prompts": HELD_OUT, "seeds": SEEDS, "rows": rows}
    print(record.write(RECORD, {**result, "environment": record.environment(torch.device("cpu"))}))


def _without_prompts(measured: dict) -> dict:
    return {
        name: {key: value for key, value in each.items() if key != "of prompts"}
        for name, each in measured.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="a directory for runs")
    parser.add_argument("--only", choices=METHODS, help="one method")
    parser.add_argument("--run", type=int, choices=RUNS, default=1, help="with --only: which of its runs")
    parser.add_argument("--table", action="store_true", help="only make the table of the records")
    record.add_option(parser)
    options = parser.parse_args()
    if options.work is None and not options.table:
        parser.error("which directory to work in?")
    record.refuse_changes(options.allow_changes)
    if options.only:
        print(measure(options.only, options.run, options.work))
        return
    if not options.table:
        for method, run in itertools.product(METHODS, RUNS):
            if record_of(method, run) is None:
                print(measure(method, run, options.work))
    tabulate()


if __name__ == "__main__":
    main()
