"""Scores inpainting results in originals/, masks/, prompts/ and results/MODEL/: CSV files, a summary, a page.

    python -m benchmarks.scoring.inpainting FOLDER -m CLIP -m 'inside(CLIP)' -m boundary --out scores
    python -m benchmarks.scoring.inpainting FOLDER --draw base=MODEL --draw tuned=OTHER    paints them first

BrushBench's and EditBench's images are laid out like this. --lpips adds LPIPS outside the mask, which
downloads weights.
"""

import argparse
from pathlib import Path

from imagereward.images.reading import to_pil
from imagereward.inpainting.layout import RESULTS, read_layout
from imagereward.inpainting.results import evaluate_results, write_results
from imagereward.table import table
from imagereward.tuning.data.requests import Request
from imagereward.tuning.evaluation.evaluate import sample_images
from imagereward.tuning.families.guidance import default_guidance
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy

BATCH = 16

SCORERS = ("ImageReward-v1.0", "inside(ImageReward-v1.0)", "CLIP", "inside(CLIP)", "boundary", "preservation")


def draw(folder: Path, name: str, model: str, steps: int) -> None:
    """Paint every row of the folder with a pipeline, to results/NAME/."""
    rows = read_layout(folder)
    denoiser = open_denoiser(model)
    own = default_guidance(denoiser.pipeline, denoiser.network)
    policy = Policy(denoiser, denoiser.dynamics(steps), own)
    asked = [Request(row.prompt, row.image, row.mask) for row in rows]
    images = sample_images(policy, asked, 1, 0, BATCH, None)[:, 0]
    out = folder / RESULTS / name
    out.mkdir(parents=True, exist_ok=True)
    for row, image in zip(rows, images, strict=True):
        to_pil(image).save(out / f"{row.name}.png")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-m", "--model", action="append", help=f"a scorer; repeatable. Default: {SCORERS}")
    parser.add_argument("--out", type=Path, default=Path("inpainting-scores"), help="directory to write")
    parser.add_argument("--draw", action="append", default=[], help="NAME=MODEL: paint results/NAME first")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of --draw")
    parser.add_argument("--lpips", action="store_true", help="LPIPS outside the mask, too")
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    options = parser.parse_args()
    for given in options.draw:
        name, _, model = given.partition("=")
        draw(options.folder, name, model, options.steps)
    measures = ("mse", "psnr", "lpips") if options.lpips else ("mse", "psnr")
    results = evaluate_results(
        options.folder, options.model or SCORERS, measures=measures, device=options.device
    )
    print(table(results.summary()))
    faults = [record for record in results.records if record["error"]]
    for record in faults[:10]:
        print(f"{record['model']}, {record['name']}: {record['error']}")
    print(f"{len(faults)} of {len(results.records)} images have no score; written: ", end="")
    print(*write_results(results, options.out.expanduser()), sep=", ")


if __name__ == "__main__":
    main()
