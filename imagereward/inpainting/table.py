"""Scores a table of painted images with masks by rewards of a region, row by row: score-table with masks."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from imagereward.errors import ImageRewardError, InputError
from imagereward.inpainting.measures import open_painted, open_scorers, scores_of
from imagereward.records import Record, find_column, open_table, prompt_error, read_all
from imagereward.records.arrow import arrow
from imagereward.writing import check_free, replacing, write_text

SUFFIXES = (".csv", ".jsonl", ".parquet")
# Keys of a record, by role; the image is the painted one, the original what it was made from.
KEYS = {
    "image": ("image", "image_path", "result"),
    "mask": ("mask", "mask_path"),
    "original": ("original", "original_path"),
}
_READS_MASKS = re.compile(r"\s*(inside|mask_share|rest_share)\(|boundary$|preservation$|.*/calculate_reward#")


class MaskedSummary(NamedTuple):
    """Rows of the table, and how many of them have an error instead of scores."""

    rows: int
    failed: int
    out: Path

    def __str__(self) -> str:
        return f"{self.out}: {self.rows} rows, {self.failed} of them with errors"


def reads_masks(name: str) -> bool:
    """Whether a scorer's name is of a reward of a region, which needs rows with masks."""
    return _READS_MASKS.match(name) is not None


def score_masked_table(
    input: str | os.PathLike,
    out: str | os.PathLike,
    scorers: Sequence[str],
    *,
    device: str | None = None,
    encoding: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> MaskedSummary:
    """Score every row of a table with a prompt, an image, a mask and, for some rewards, an original.

    input     .jsonl, .json, .csv, .tsv or .parquet with the keys prompt, image (the painted one), mask, and
              original; paths are relative to its folder
    out       .csv, .jsonl or .parquet with row, prompt, image, mask, score:NAME for each scorer, and error
    scorers   names as `open_reward` takes them: boundary, inside(CLIP), CLIP ...

    A row that cannot be scored has the reason in `error` and no scores, never 0. The table is written at the
    end. Raises InputError for another suffix and for a table without rows; OutputError if `out` exists.
    """
    out, source = check_free(out, overwrite), Path(input).expanduser()
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    records = list(read_all(open_table(source, encoding=encoding)))
    if not records:
        raise InputError(f"{source} has no rows")
    opened = open_scorers(scorers, device)
    found: list[dict[str, Any]] = []
    bar = tqdm(records, "scoring", unit="row", disable=not progress)
    for number, (where, record, folder) in enumerate(bar):
        row: dict[str, Any] = {"row": number, "prompt": None, "image": None, "mask": None}
        row |= {f"score:{name}": None for name in opened} | {"error": None}
        try:
            prompt, image, mask, original = _pictures(record, where, folder)
            row |= {"prompt": prompt, "image": str(image), "mask": str(mask)}
            painted = open_painted(prompt, image, original, mask, where)
            scores = scores_of(painted, opened)
            row |= {
                f"score:{name}": value if math.isfinite(value) else None for name, value in scores.items()
            }
            if bad := [name for name, value in scores.items() if not math.isfinite(value)]:
                row["error"] = f"not finite: the score of {', '.join(bad)}"
        except ImageRewardError as error:
            row["error"] = f"{type(error).__name__}: {error}"
        found.append(row)
    _write(out, found)
    return MaskedSummary(len(found), sum(row["error"] is not None for row in found), out)


def _pictures(record: Record, where: str, folder: Path) -> tuple[str, Path, Path, Path | None]:
    """(prompt, image, mask, original or None) of a record; InputError naming what is missing."""
    if isinstance(record, str):
        raise InputError(f"{where}: {record}")
    prompt = record.get(find_column(record, "prompt", where) or "")
    if error := prompt_error(prompt):
        raise InputError(f"{where} has no prompt: {error}")
    paths: dict[str, Path] = {}
    for role, keys in KEYS.items():
        value = record.get(find_column(record, role, where, keys) or "")
        if value and not isinstance(value, str):
            raise InputError(f"{where}: {role} is a {type(value).__name__}; expected a path")
        if not value and role != "original":
            raise InputError(f"{where} has no {role}: expected a path in {' or '.join(keys)}")
        if value:
            paths[role] = folder / value
    return str(prompt), paths["image"], paths["mask"], paths.get("original")


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    if out.suffix.lower() == ".jsonl":
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif out.suffix.lower() == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(out, text.getvalue())
    else:
        pa = arrow()
        types = {"row": pa.int64()} | {name: pa.float64() for name in rows[0] if name.startswith("score:")}
        schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
        with replacing(out) as temporary:
            pa.parquet.write_table(pa.Table.from_pylist(rows, schema), temporary)
