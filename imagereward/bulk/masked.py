"""Scores a table of painted images with masks by rewards of a region, row by row: score-table with masks."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imagereward.bulk.inputs.changes import InputWatch
from imagereward.bulk.inputs.own_files import refuse_output_in_input
from imagereward.bulk.inputs.rows import as_text, name_in_output
from imagereward.bulk.output import ROW_GROUP, BulkSummary, Output
from imagereward.bulk.scoring import SCORE
from imagereward.bulk.versions import versions
from imagereward.checkpoints.assembling import resolve_device
from imagereward.checkpoints.hub import sha256_of
from imagereward.config import whole_number
from imagereward.errors import ImageRewardError, InputError, RemoteError, listing
from imagereward.images.encoded import decoding_limits
from imagereward.inpainting.measures import open_painted, open_scorers, said, scores_of
from imagereward.records import Record, find_column, open_table, prompt_error, read_all
from imagereward.records.arrow import arrow
from imagereward.scoring.api import PairScorer
from imagereward.scoring.scorer import Scorer

# Keys of a record, by role; the image is the painted one, the original what it was made from.
KEYS = {
    "image": ("image", "image_path", "result"),
    "mask": ("mask", "mask_path"),
    "original": ("original", "original_path"),
}
MOST_SILENT = 5  # consecutive rows without a server's score, after which a run stops
_READS_MASKS = re.compile(r"\s*(inside|mask_share|rest_share)\(|boundary$|preservation$|.*/calculate_reward#")


@dataclass(frozen=True)
class _Asked:
    """How rows are read: a prompt for all, columns by role where the caller names them, columns to copy, and
    folders of the pictures (None: of the table) and of the output."""

    prompt: str | None
    columns: dict[str, str]
    keep: tuple[str, ...]
    images: Path | None
    out: Path

    def cell(self, record: dict[str, Any], role: str, where: str) -> Any:
        """The record's value of a role, such as "mask"; None if the record has no column of that role."""
        name = self.columns.get(role) or find_column(record, role, where, KEYS.get(role))
        return None if name is None else record.get(name)


def reads_masks(name: str) -> bool:
    """Whether a scorer's name is of a reward of a region, which needs rows with masks."""
    return _READS_MASKS.match(name) is not None


def score_masked_table(
    input: str | os.PathLike,
    out: str | os.PathLike,
    scorers: Sequence[str],
    *,
    prompt: str | None = None,
    prompt_column: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    keep: Sequence[str] = (),
    images: str | os.PathLike | None = None,
    encoding: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    part_rows: int = 256,
    overwrite: bool = False,
    progress: bool = True,
    download_root: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> BulkSummary:
    """Score every row of a table with a prompt, an image, a mask and, for some rewards, an original.

    input     .jsonl, .json, .csv, .tsv or .parquet with the keys prompt, image (the painted one), mask, and
              original; paths are relative to its folder, or to `images`
    out       .csv, .jsonl or .parquet with row, id, prompt, image, mask, the columns of `keep`, score:NAME
              for each scorer, and error
    scorers   names as `open_reward` takes them: boundary, inside(CLIP), CLIP ...

    The other arguments are those of `score_table`, and so are finished parts, which a run goes on behind.

    A row that cannot be scored has the reason in `error` and no scores, never 0; a scorer that gives a row no
    score leaves those of the others. Raises what `score_table` raises, and RemoteError if servers give no
    score for 5 consecutive rows: these rows are left to the next run.
    """
    output, source = Output(out, overwrite), open_table(Path(input).expanduser(), encoding=encoding)
    refuse_output_in_input(output.out, source.files())
    part_rows = whole_number("part_rows", part_rows, 1, ROW_GROUP)
    watch = InputWatch(source)
    records = list(read_all(source))
    if not records:
        raise InputError(f"{source.name} has no rows")
    named = {"prompt": prompt_column, "image": image_column, "id": id_column}
    columns = {role: name for role, name in named.items() if name is not None}
    images = None if images is None else Path(images).expanduser()
    asked = _Asked(prompt, columns, tuple(keep), images, Path(os.path.realpath(output.out.parent)))
    _check_columns(asked, records, source.name)
    options = {"dtype": dtype, "download_root": download_root, "local_files_only": local_files_only}
    opened = open_scorers(scorers, device, **options)
    schema = _schema(asked.keep, list(opened))
    decides = {
        "input": [sha256_of(path) for path in source.files()],
        "rows": len(records),
        "encoding": encoding,
        "prompt": prompt,
        "columns": columns,
        "keep": asked.keep,
        "images": None if images is None else os.fspath(images),
        "device": resolve_device(device).type,
        "dtype": dtype,
        "part_rows": part_rows,
        **decoding_limits(),
    }
    starts = range(0, len(records), part_rows)
    with output.locked():
        done = output.begin(decides | _described(opened))
        run = _Run(asked, opened, output, part_rows)
        before = sum(min(part_rows, len(records) - starts[index]) for index in done)
        with tqdm(total=len(records), initial=before, unit="row", disable=not progress) as bar:
            for index, start in enumerate(starts):
                if index not in done:
                    found = run.part(start, records[start : start + part_rows], bar)
                    watch.check(always=True)
                    output.write(index, arrow().Table.from_pylist(found, schema))
        return output.finish(len(records), len(starts), {})


class _Run:
    """Scores rows, and counts those for which a server gave no score."""

    def __init__(self, asked: _Asked, scorers: Mapping[str, PairScorer], output: Output, part_rows: int):
        self.asked, self.scorers, self.output, self.part_rows = asked, scorers, output, part_rows
        self.silent: list[int] = []

    def part(
        self, first: int, records: Sequence[tuple[str, Record, Path]], bar: tqdm
    ) -> list[dict[str, Any]]:
        """The cells of rows in order, the first of which has the number `first`; moves the bar on by each."""
        rows = []
        for number, record in enumerate(records, first):
            rows.append(self.row(number, *record))
            bar.update()
        return rows

    def row(self, number: int, where: str, record: Record, folder: Path) -> dict[str, Any]:
        """The row's cells; RemoteError at the last of `MOST_SILENT` rows without a server's score."""
        row: dict[str, Any] = {"row": number, "error": None}
        try:
            if isinstance(record, str):
                raise InputError(f"{where}: {record}")
            row |= {name: as_text(record.get(name)) for name in self.asked.keep}
            row["id"] = as_text(self.asked.cell(record, "id", where))
            prompt, paths = _read(self.asked, record, where, folder)
            row["prompt"] = as_text(prompt)
            row |= {role: name_in_output(str(paths[role]), self.asked.out) for role in ("image", "mask")}
            painted = open_painted(prompt, paths["image"], paths.get("original"), paths["mask"], where)
            scores, causes = scores_of(painted, self.scorers)
        except ImageRewardError as error:
            row["error"] = as_text(f"{type(error).__name__}: {error}")
            return row
        row |= {SCORE + name: None if name in causes else value for name, value in scores.items()}
        row["error"] = as_text(said(causes)) or None
        self._count(number, [error for error in causes.values() if isinstance(error, RemoteError)])
        return row

    def _count(self, number: int, failures: Sequence[RemoteError]) -> None:
        self.silent = [*self.silent, number] if failures else []
        if len(self.silent) < MOST_SILENT:
            return
        for index in range(self.silent[0] // self.part_rows, number // self.part_rows):
            self.output.discard(index)  # its last rows have errors of the server alone
        raise RemoteError(
            f"no score for the rows {listing(self.silent)}, the last: {failures[0]}. Parts that were "
            f"finished before are kept in {self.output.directory}; the same command goes on from there"
        )


def _read(asked: _Asked, record: dict[str, Any], where: str, folder: Path) -> tuple[str, dict[str, Path]]:
    """(prompt, {role: path of its picture}) of a record; InputError naming what is missing."""
    prompt = asked.cell(record, "prompt", where) if asked.prompt is None else asked.prompt
    if error := prompt_error(prompt):
        raise InputError(f"{where} has no prompt: {error}")
    paths: dict[str, Path] = {}
    for role, keys in KEYS.items():
        value = asked.cell(record, role, where)
        if value and (not isinstance(value, str) or "\0" in value):
            fault = "holds a NUL character" if isinstance(value, str) else f"is a {type(value).__name__}"
            raise InputError(f"{where}: {role} {fault}; expected a path")
        if not value and role != "original":
            raise InputError(f"{where} has no {role}: expected a path in {' or '.join(keys)}")
        if value:
            paths[role] = (asked.images or folder) / value
    return str(prompt), paths


def _check_columns(asked: _Asked, records: Sequence[tuple[str, Record, Path]], name: str) -> None:
    if asked.prompt is not None and "prompt" in asked.columns:
        raise InputError("given both a prompt for all rows and a column of prompts: expected one of them")
    present = {column for _, record, _ in records if isinstance(record, dict) for column in record}
    for column in (*asked.columns.values(), *asked.keep):
        if column not in present:
            raise InputError(f"{name} has no column {column!r}; it has {listing(sorted(present), 40)}")


def _schema(keep: Sequence[str], scorers: Sequence[str]) -> Any:
    """The Arrow schema of the output. InputError if two columns would have the same name."""
    pa = arrow()
    fields = [("row", pa.int64())] + [(name, pa.string()) for name in ("id", "prompt", "image", "mask")]
    own = {name for name, _ in fields} | {"error"}
    if taken := [name for name in keep if name in own or name.startswith(SCORE) or keep.count(name) > 1]:
        raise InputError(f"the column {taken[0]!r} cannot be kept: the output has one of that name")
    fields += [(name, pa.string()) for name in keep] + [(SCORE + name, pa.float64()) for name in scorers]
    return pa.schema([*fields, ("error", pa.string())])


def _described(scorers: Mapping[str, PairScorer]) -> dict[str, Any]:
    """The scorers' part of the fingerprint: names, configs, SHA-256 of files, versions of libraries."""
    found: dict[str, Any] = {"models": list(scorers)}
    for name, scorer in scorers.items():
        found[f"weights of {name}"] = [sha256_of(path) for path in scorer.files.values()]
        while isinstance(inner := getattr(scorer, "scorer", None), PairScorer):
            scorer = inner
        if isinstance(scorer, Scorer):
            found[f"config of {name}"] = scorer.config.to_dict()
    return found | {f"version of {library}": number for library, number in versions().items()}
