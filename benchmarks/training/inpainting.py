"""Benchmark of tuning the tiny inpainting model by rewards of the mask's region, on scenes of Shapes.

    python -m benchmarks.training.inpainting WORKDIR                      runs what is missing, then the table
    python -m benchmarks.training.inpainting WORKDIR --only ReFL --seed 0 one run alone, or the rest of it

Rows of the train split are trained on. Rows of the test split are drawn before and after, from the same
noise, and judged by the trained reward, by `measure_inpainting` inside the mask, which no method is trained
on, and by how far the image moved outside it. "floor" is how far the autoencoder's reconstruction of an
original moves.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib import record
from benchmarks.lib.paths import TINY_INPAINT
from benchmarks.toy_models.tiny_inpaint import request_of
from imagereward.images.image_size import ImageSize
from imagereward.images.row_pictures import image_at, mask_at
from imagereward.rewards.region import outside_distance
from imagereward.shapes.inpainting import inpainting_row
from imagereward.table import table
from imagereward.tuning import read_recipe, tune
from imagereward.tuning.data.requests import Request
from imagereward.tuning.evaluation.compare import Comparison, compare, page, paired_interval
from imagereward.tuning.families.lookup import open_denoiser

METHODS = {"ReFL": "tiny/inpaint_refl", "GRPO": "tiny/inpaint_grpo"}
REWARD = "inside(ImageReward-tiny, 32)"
PAINTED = "imagereward.shapes.rewards:painted"
JUDGE = {REWARD: 1.0, "boundary": 1.0, "preservation": 1.0, PAINTED: 1.0}
TRAINED, HELD_OUT, SEEDS, DRAWN = 400, 64, (0, 1, 2), 2


def rows_of(split: str, count: int) -> list[Request]:
    """Rows whose prompts ask for another thing than the mask hides."""
    return [request_of(inpainting_row(i, 7, split, change=True)) for i in range(count)]


def train(method: str, seed: int, work: Path) -> Path:
    """One run, or the rest of it; its output directory."""
    output = work / f"{method.lower()}-{seed}"
    if not (output / "model_index.json").is_file():
        tune(
            str(TINY_INPAINT),
            rows_of("train", TRAINED),
            reward=rewards_of(method),
            output=output,
            recipe=METHODS[method],
            seed=seed,
            resume=(output / "run.json").is_file(),
        )
    return output


def rewards_of(method: str) -> dict[str, float]:
    """The rewards of the method's recipe."""
    return dict(read_recipe(METHODS[method])["reward"])


def floor(rows: list[Request]) -> np.ndarray:
    """[M]: how far the autoencoder's reconstruction of each original is from it, outside the mask."""
    autoencoder = open_denoiser(str(TINY_INPAINT)).autoencoder
    found = []
    for row in rows:
        size = ImageSize(64, 64)
        image, mask = image_at(row, size, row.prompt)[None], mask_at(row, size, row.prompt)[None]
        with torch.no_grad():
            found.append(float(outside_distance(autoencoder.decode(autoencoder.encode(image)), image, mask)))
    return np.array(found)


def line(method: str, seeds: list[Comparison], least: np.ndarray) -> dict:
    """A method's row: changes over prompts, averaged over its seeds, with paired intervals."""
    found: dict = {"method": method, "seeds": len(seeds)}
    for name, short in ((REWARD, "region"), (PAINTED, "inside"), ("boundary", "boundary")):
        before = np.mean([each.before[name].mean(1) for each in seeds], 0)
        after = np.mean([each.after[name].mean(1) for each in seeds], 0)
        low, high = paired_interval(before, after)
        found |= {short: float(after.mean()), f"{short} gained": float((after - before).mean())}
        found |= {f"{short} low": low, f"{short} high": high}
    moved = np.mean([-each.after["preservation"].mean(1) for each in seeds], 0)
    found |= {"outside": float(moved.mean()), "floor": float(least.mean())}
    found["outside before"] = float(np.mean([-each.before["preservation"].mean() for each in seeds]))
    return found


def run(work: Path, methods: list[str], seeds: list[int]) -> list[dict]:
    """All runs and the table's rows."""
    rows = rows_of("test", HELD_OUT)
    least, lines = floor(rows), []
    for method in methods:
        compared = []
        for seed in seeds:
            tuned = train(method, seed, work)
            found = compare(
                str(TINY_INPAINT), str(tuned), rows, JUDGE, seeds=DRAWN, steps=20, guidance=1.0, batch_size=32
            )
            (work / f"{tuned.name}.html").write_text(page(found, ("before", f"{method}, seed {seed}")))
            compared.append(found)
        lines.append(line(method, compared, least))
        print(table(lines[-1:]), flush=True)
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="a directory for runs")
    parser.add_argument("--only", choices=METHODS, help="one method alone, without the results file")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="one seed alone, without the results file")
    record.add_option(parser)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    methods = [options.only] if options.only else list(METHODS)
    seeds = [options.seed] if options.seed is not None else list(SEEDS)
    if options.only or options.seed is not None:
        run(options.work, methods, seeds)
        return
    record.refuse_changes(options.allow_changes)
    lines = run(options.work, methods, seeds)
    result = {"rows": lines, "held_out": HELD_OUT, "drawn": DRAWN}
    print(record.write("inpainting", {**result, "environment": record.environment(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
