"""Agreement of scorers with human rankings: the columns of ImageReward's Table 3 (arXiv:2304.05977).

    python -m benchmarks.scoring.preference test.json --images DIRECTORY [--model NAME --model …]

The file is a table of rankings in a layout of ImageRewardDB or HPDv2 (imagereward/agreement/rankings.py). On
ImageRewardDB's test.json the published pair accuracy of ImageReward-v1.0 is 65.14 %. The published recall and
filter are from another test set, which its authors no longer have: compare these columns with the row of
chance instead.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

import imagereward as RM
from benchmarks.lib import record
from imagereward.agreement.metrics import Agreement, filter_by_chance, recall_by_chance, summarise
from imagereward.agreement.rankings import RankedPrompt, read_rankings
from imagereward.errors import ImageNotFound, ImageRewardError, InputError, listing
from imagereward.scoring.scorer import Scorer
from imagereward.table import table

PUBLISHED_ACCURACY = {"CLIP": 0.5482, "Aesthetic": 0.5735, "BLIP": 0.5776, "ImageReward-v1.0": 0.6514}
KS = (1, 2, 4)
# Figures that go to the results file and not into the table.
NOT_SHOWN = ("prompt_accuracy", "spearman", "kendall", "tied_prompts", "pairs", "ties", "model_ties")


def without_missing(
    prompts: Sequence[RankedPrompt], allow_missing: bool
) -> tuple[list[RankedPrompt], list[Path]]:
    """(prompts of the images that are there, paths of those that are not); a lone image is no ranking.

    Raises ImageNotFound, unless missing images are allowed, and InputError if nothing is left.
    """
    paths = [path for each in prompts for path in each.generations]
    missing = [path for path in paths if not path.is_file()]
    if missing and not allow_missing:
        raise ImageNotFound(
            f"{len(missing)} of {len(paths)} images are missing: {listing(missing)}; "
            "--images says where they are, --allow-missing goes on without them"
        )
    absent, kept = set(missing), []
    for each in prompts:
        there = [place for place, path in enumerate(each.generations) if path not in absent]
        if len(there) > 1:
            kept.append(
                replace(
                    each,
                    generations=tuple(each.generations[place] for place in there),
                    ranking=tuple(each.ranking[place] for place in there),
                )
            )
    if not kept:
        raise InputError(f"no prompt has two images on disk; missing: {listing(missing)}")
    return kept, missing


def scores_of(scorer: Scorer, prompts: Sequence[RankedPrompt], batch_size: int | None) -> list[list[float]]:
    """A list of scores for each prompt, in the order of its images; a progress bar counts images."""
    pairs = [(each.prompt, path) for each in prompts for path in each.generations]
    scores = iter(scorer.score_pairs(*zip(*pairs), batch_size=batch_size))
    return [list(islice(scores, len(each.generations))) for each in prompts]


def columns(agreement: Agreement) -> dict[str, float]:
    """The published table's columns, and the accuracy's 95 % interval, as shares in [0, 1]."""
    low, high = agreement.accuracy_interval or (math.nan, math.nan)
    return {
        "pair accuracy": agreement.pair_accuracy,
        "low": low,
        "high": high,
        **{f"recall@{k}": value for k, value in agreement.recall.items()},
        **{f"filter@{k}": value for k, value in agreement.filter.items()},
    }


def by_chance(rankings: Sequence[Sequence[float]]) -> dict[str, float]:
    """Expectation of these columns for random scores."""
    return {
        "pair accuracy": 0.5,
        **{f"recall@{k}": recall_by_chance(rankings, k) for k in KS},
        **{f"filter@{k}": filter_by_chance(rankings, k) for k in KS},
    }


def evaluate(name: str, prompts: Sequence[RankedPrompt], arguments) -> dict:
    """The row of one model in the results file."""
    scorer = RM.load(name, arguments.device, arguments.download_root, dtype=arguments.dtype)
    agreement = summarise(
        scores_of(scorer, prompts, arguments.batch_size),
        [each.ranking for each in prompts],
        ids=[each.id for each in prompts],
        ks=KS,
    )
    row = {
        "model": name,
        **columns(agreement),
        "published accuracy": PUBLISHED_ACCURACY.get(name, math.nan),
        **{key: getattr(agreement, key) for key in NOT_SHOWN},
    }
    # JSON has no NaN.
    return {key: None if value != value else value for key, value in row.items()}


def run(arguments) -> None:
    """Check every image, score with every model, print the table, write the file."""
    prompts, missing = without_missing(
        read_rankings(arguments.rankings, arguments.images, arguments.encoding, allow_ties=True),
        arguments.allow_missing,
    )
    if missing:
        print(f"{len(missing)} images are missing and left out: {listing(missing)}", file=sys.stderr)
    rows = [evaluate(name, prompts, arguments) for name in arguments.model or ["ImageReward-v1.0"]]
    chance = {"model": "(chance)", **by_chance([each.ranking for each in prompts])}
    shown = [key for key in rows[0] if key not in NOT_SHOWN]
    cells = [{key: row.get(key) for key in shown} for row in [*rows, chance]]
    print(table([{key: "" if value is None else value for key, value in row.items()} for row in cells]))
    images = sum(len(each.generations) for each in prompts)
    print(
        f"{len(prompts)} prompts, {images} images, {rows[0]['pairs']} pairs, {rows[0]['ties']} ties skipped"
    )
    if arguments.out:
        result = {
            "environment": record.environment(torch.device(arguments.device)),
            "rankings": arguments.rankings.name,
            "prompts": len(prompts),
            "images": images,
            "missing": len(missing),
            "models": rows,
            "chance": chance,
        }
        # An absolute path replaces the directory that `write` would put the file in.
        print(record.write(str(arguments.out.absolute()).removesuffix(".json"), result))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "rankings", type=Path, help="rankings as in ImageRewardDB or HPDv2: .json, .jsonl, .csv, .parquet"
    )
    parser.add_argument("--images", type=Path, help="folder of the image paths; default: the table's")
    parser.add_argument("--encoding", help="of a table of text; default: as marked, or else UTF-8")
    parser.add_argument("--model", action="append", help="name, file, directory or hub id; repeatable")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--download-root", type=Path)
    parser.add_argument("--allow-missing", action="store_true", help="leave missing images out")
    parser.add_argument("--out", type=Path, help="write results to this JSON file as well")
    record.add_option(parser)
    arguments = parser.parse_args(argv)
    if arguments.out:
        record.refuse_changes(arguments.allow_changes)
    try:
        run(arguments)
    except ImageRewardError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
