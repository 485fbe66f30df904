"""Benchmark of fine-tuning methods on the tiny Stable Diffusion and Shapes.

    python -m benchmarks.training.finetune WORKDIR              runs what is missing of all, then the table
    python -m benchmarks.training.finetune WORKDIR --only ReFL  one run alone, or the rest of it
    python -m benchmarks.training.finetune --draw               only draws the picture again

Every method maximises ImageReward-tiny's score on prompts of the train split. Images of prompts of the test
split, with fixed seeds, are judged by that reward and by `shapes.measure`, which no method was trained on.
"scrambled" is ReFL whose reward gets another prompt than the generator, so that only quality can improve.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.paths import DOCS, TINY_SD
from benchmarks.pages.plots import panels, save
from imagereward import shapes
from imagereward.table import table
from imagereward.tuning import tune
from imagereward.tuning.evaluation.compare import compare
from imagereward.tuning.evaluation.comparison import paired_interval
from imagereward.tuning.evaluation.comparison_page import page
from imagereward.tuning.evaluation.evaluate import sample_images as draw_images
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rewards.weighted import open_rewards

MODEL = TINY_SD
PICTURE = DOCS / "finetune.png"
GRID = DOCS / "finetune-grid.png"
REWARD = "ImageReward-tiny"
FAITHFULNESS = "imagereward.shapes.rewards:faithfulness"
JUDGE = {REWARD: 1.0, FAITHFULNESS: 1.0}
NAMES = {FAITHFULNESS: "faithfulness", REWARD: "reward"}
STEPS, SEEDS, HELD_OUT, TRAINED, THINGS, CANDIDATES = 20, 2, 128, 4000, 2, 8
METHODS = {
    "ReFL": {},
    "DRaFT-1": {"gradient": {"mode": "last", "count": 1}},
    "AlignProp": {"gradient": {"mode": "suffix"}},
    "ReFL, scrambled": {},
}


def prompts_of(split: str, count: int) -> list[str]:
    """Prompts of Shapes, for at most two things."""
    return [shapes.prompt(i, 7, split, most_things=THINGS) for i in range(count)]


def scrambled(prompts: list[str], name: str = REWARD):
    """The reward of a trained prompt's image for another prompt; of other prompts' as it is."""
    scorer = RM.load(name)
    order = np.random.default_rng(0).permutation(len(prompts))
    other = {prompts[a]: prompts[b] for a, b in zip(order, np.roll(order, 1), strict=True)}

    def reward(pixels, asked):
        return scorer.reward(pixels, [other.get(prompt, prompt) for prompt in asked])

    return reward


def train(method: str, work: Path) -> Path:
    """One method's run, or the rest of it; its output directory."""
    prompts = prompts_of("train", TRAINED)
    reward = scrambled(prompts) if "scrambled" in method else REWARD
    return timed(method, work, str(MODEL), reward=reward, recipe="tiny/refl", **METHODS[method])


def timed(name: str, work: Path, model: str, **settings) -> Path:
    """Tune on prompts of the train split, or go on with it; its CPU time in all is kept beside it."""
    output = work / name.lower().replace(", ", "-")
    if (output / "model_index.json").is_file():
        return output
    work.mkdir(parents=True, exist_ok=True)
    held_out = work / "held-out.txt"
    held_out.write_text("\n".join(prompts_of("test", HELD_OUT)) + "\n")
    evaluation = {"prompts": str(held_out), "held_out": FAITHFULNESS, "patience": 0}
    with timing(output):
        tune(
            model,
            output=output,
            resume=(output / "run.json").is_file(),
            **{"prompts": prompts_of("train", TRAINED), "evaluation": evaluation, **settings},
        )
    return output


@contextmanager
def timing(output: Path) -> Iterator[None]:
    """Adds the CPU seconds of its block to those of the run, see `seconds_of`; also of one that fails."""
    before, began = seconds_of(output), time.process_time()
    try:
        yield
    finally:  # interrupted runs cost time, too
        output.with_suffix(".seconds").write_text(f"{before + time.process_time() - began}\n")


def seconds_of(output: Path) -> float:
    """CPU seconds that the run took so far: its time on one core that it has for itself."""
    seconds = output.with_suffix(".seconds")
    return float(seconds.read_text()) if seconds.is_file() else 0.0


def judged(base: Path, tuned: Path, prompts: list[str], judge: dict[str, float] = JUDGE):
    """The comparison of two pipelines on the held-out prompts."""
    return compare(
        str(base), str(tuned), prompts, judge, seeds=SEEDS, steps=STEPS, guidance=1.0, batch_size=64
    )


def best_of(count: int, prompts: list[str], model: Path = MODEL) -> dict[str, np.ndarray]:
    """Reward and faithfulness [M] of the best of so many of the base's images, by the reward."""
    denoiser = open_denoiser(str(model))
    policy = Policy(denoiser, denoiser.dynamics(STEPS))
    images = draw_images(policy, prompts, count, 99, 64, None)
    judge, chosen = open_rewards(JUDGE), {name: [] for name in JUDGE}
    for prompt, candidates in zip(prompts, images, strict=True):
        with torch.no_grad():
            _, each = judge(candidates, [prompt] * count)
        best = int(each[REWARD].argmax())
        for name, values in each.items():
            chosen[name].append(float(values[best]))
    return {name: np.array(values) for name, values in chosen.items()}


def row(method: str, before: dict, after: dict, seconds: float | None, spread: float | None) -> dict:
    """A line of the table: both judges' change with its interval, in the units of each."""
    found = {"method": method}
    for name, short in NAMES.items():
        first, last = before[name], after[name]
        low, high = paired_interval(first.mean(1), last.reshape(len(last), -1).mean(1))
        found[short] = float(last.mean())
        found[f"{short} gained"] = float(last.mean() - first.mean())
        found[f"{short} low"], found[f"{short} high"] = low, high
        found[f"{short} in base deviations"] = float((last.mean() - first.mean()) / first.std())
    return {**found, "diversity": spread, "minutes": seconds and seconds / 60}


def run(work: Path) -> None:
    """All methods, the table, the results file, the picture of images."""
    held_out = prompts_of("test", HELD_OUT)
    rows, curves, before = [], {}, None
    for method in METHODS:
        output = train(method, work)
        comparison = judged(MODEL, output, held_out)
        before = comparison.before
        if not rows:
            rows.append(row("base", before, before, None, comparison.diversity[0]))
            (work / "comparison.html").write_text(page(comparison, ("base", method)))
            last = max((output / "samples").glob("*.png"))
            shutil.copy(last, GRID)
        rows.append(row(method, before, comparison.after, seconds_of(output), comparison.diversity[1]))
        curves[method] = curve(output)
        print(table([{key: value for key, value in rows[-1].items() if value is not None}]), flush=True)
    rows.append(row(f"best of {CANDIDATES}", before, best_of(CANDIDATES, held_out), None, None))
    print(table([rows[-1] | {"diversity": "", "minutes": ""}]))
    result = {
        "prompts": HELD_OUT,
        "seeds": SEEDS,
        "rows": rows,
        "curves": curves,
        "environment": record.environment(torch.device("cpu")),
    }
    print(record.write("finetune", result))


def curve(output: Path) -> list[dict]:
    """Reward and faithfulness on held-out prompts, by update."""
    history = json.loads((output / "history.json").read_text())
    return [
        {
            "update": entry["update"],
            "reward": entry.get("evaluation/reward"),
            "faithfulness": entry["evaluation/held_out"],
        }
        for entry in history
        if "evaluation/held_out" in entry
    ]


def gains(axis, points: list[dict], over: str, name: str, **style) -> None:
    """One run's line: what was gained on held-out prompts since its first evaluation."""
    kept = [point for point in points if point[name] is not None]
    ys = [point[name] - kept[0][name] for point in kept]
    axis.plot([point[over] for point in kept], ys, marker=".", **style)


def draw() -> None:
    """Reward and faithfulness against updates, as docs/finetune.png."""
    result = json.loads((record.RESULTS / "finetune.json").read_text())
    figure, axes = panels(1, 2, (9, 3.6))
    best = result["rows"][-1]
    for axis, name in zip(axes, ("reward", "faithfulness"), strict=True):
        for method, points in result["curves"].items():
            gains(axis, points, "update", name, ls="--" if "scrambled" in method else "-", label=method)
        axis.axhline(best[f"{name} gained"], color="#adb5bd", lw=1, ls=":", label=best["method"])
        axis.set(title=f"{name} gained, held-out prompts", xlabel="updates")
        axis.legend(frameon=False, fontsize=8)
    save(figure, PICTURE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="a directory for runs")
    parser.add_argument("--only", choices=METHODS, help="one method's run, without the table")
    parser.add_argument("--draw", action="store_true", help="only draw the picture")
    record.add_option(parser)
    options = parser.parse_args()
    if not options.draw and options.work is None:
        parser.error("which directory to work in?")
    if options.only and not options.draw:
        print(train(options.only, options.work))
        return
    if not options.draw:
        record.refuse_changes(options.allow_changes)
        run(options.work)
    draw()


if __name__ == "__main__":
    main()
