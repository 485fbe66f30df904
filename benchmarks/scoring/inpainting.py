"""Scores inpainting results in originals/, masks/, prompts/ and results/MODEL/: CSV files, a summary, a page.

    python -m benchmarks.scoring.inpainting FOLDER -m CLIP -m 'inside(CLIP)' -m boundary --out scores

BrushBench's and EditBench's images are laid out like this. --lpips adds LPIPS outside the mask, which
downloads weights.
"""

import argparse
from pathlib import Path

from imagereward.inpainting.results import evaluate_results, write_results
from imagereward.table import table

SCORERS = ("ImageReward-v1.0", "inside(ImageReward-v1.0)", "CLIP", "inside(CLIP)", "boundary", "preservation")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-m", "--model", action="append", help=f"a scorer; repeatable. Default: {SCORERS}")
    parser.add_argument("--out", type=Path, default=Path("inpainting-scores"), help="directory to write")
    parser.add_argument("--lpips", action="store_true", help="LPIPS outside the mask, too")
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    options = parser.parse_args()
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
