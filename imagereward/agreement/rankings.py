"""Reads files of human rankings in the layouts of ImageRewardDB and HPDv2."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from imagereward.errors import InputError, listing
from imagereward.records import SUFFIXES, Record, Table, open_table, prompt_error, read_all
from imagereward.records.columns import folded
from imagereward.records.layouts import PREFERENCE, ListColumns, PairColumns, layout_of

GROUPED = {"prompt_id", "prompt", "image_path", "rank"}  # columns of files with a record for each image
EXPECTED = "records of {id, prompt, generations, ranking} or {prompt_id, prompt, image_path, rank}"


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt, paths of its images, and `ranking[i]`, the human rank of image i: lower is better, ties
    allowed."""

    id: str
    prompt: str
    generations: tuple[Path, ...]
    ranking: tuple[int, ...]


def read_rankings(
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    encoding: str | None = None,
    *,
    allow_ties: bool = False,
) -> list[RankedPrompt]:
    """Read ranked prompts from a table in one of these layouts; other columns are ignored.

    - `{id, prompt, generations, ranking}`: ImageRewardDB's train.json, valid.json and test.json
    - `{prompt, image_path, rank}` with lists of images and ranks: HPDv2's test.json, ranks from 0
    - `{prompt, file_path or image_path, human_preference}`: HPDv2's train.json
    - `{prompt_id, prompt, image_path, rank}`, a record for each image: ImageRewardDB on the hub

    images      folder that image paths start at; default: the file's own. The files need not exist
    encoding    of text files; default: by the byte order mark, or else UTF-8
    allow_ties  whether a prompt whose images all have the same rank is accepted

    Raises InputError, naming file, record and field, for a field that is missing or of the wrong type, for
    unequal numbers of images and ranks, and for a ranking of only ties unless `allow_ties`.
    """
    path = Path(path).expanduser()
    root = None if images is None else Path(images).expanduser()
    table = open_table(path, encoding=encoding, split=False)
    columns = {folded(name): is_list for name, is_list in table.readers[0].columns().items()}
    layout = layout_of(columns, str(path))
    if isinstance(layout, PairColumns):
        raise InputError(f"{path} is Pick-a-Pic, which holds images inside; write them to files first")
    listed = isinstance(layout, ListColumns)
    ranked = [_checked(each, allow_ties) for each in (_in_lists if listed else _grouped)(table, layout, root)]
    if not ranked:
        raise InputError(f"{path} holds no rankings; expected {EXPECTED}")
    return ranked


def ranking_file(folder: str | os.PathLike, split: str) -> Path:
    """The path of the rankings of a split, "train" or "valid", in a folder of data.

    It is SPLIT.json or a table of another kind (SPLIT.csv, SPLIT.parquet …), or else metadata-train.parquet
    or metadata-validation.parquet, the names of ImageRewardDB on the hub. Raises InputError for several
    tables of a split. Without any, returns SPLIT.json, which does not exist.
    """
    folder = Path(folder).expanduser()
    tables = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [path for path in tables if path.is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has {listing([path.name for path in found])}; expected one of them")
    hub = folder / f"metadata-{'validation' if split == 'valid' else split}.parquet"
    return found[0] if found else hub if hub.is_file() else folder / f"{split}.json"


class _Fields(NamedTuple):
    """A prompt's unchecked cells with images and ranks, and the names of record and columns for messages."""

    where: str
    id: str
    prompt: Any
    images: Any
    ranks: Any
    folder: Path
    image_name: str
    rank_name: str


def _in_lists(table: Table, layout: Any, root: Path | None) -> Iterator[_Fields]:
    """Read files with a record for each prompt."""
    needed = ["prompt", layout.image, layout.ranks or "ranking"]
    if layout.image == "generations":
        needed.append("id")
    for index, (where, found, folder) in enumerate(read_all(table)):
        record = _cells(found, where)
        if "id" in record:
            where += f" (id {record['id']!r})"
        if missing := sorted(set(needed) - record.keys()):
            raise InputError(f"{where} has no {', '.join(missing)}")
        ranks = record[layout.ranks or "ranking"]
        if layout.ranks == PREFERENCE and isinstance(ranks, list):
            named: dict[float, float] = {1: 1, 0: 2}
            ranks = [named.get(rank, rank) if isinstance(rank, (int, float)) else rank for rank in ranks]
        id = str(record.get("id", record.get("prompt_id", index)))
        images = record[layout.image]
        yield _Fields(
            where, id, record["prompt"], images, ranks, root or folder, layout.image, layout.ranks or ""
        )


def _grouped(table: Table, layout: Any, root: Path | None) -> Iterator[_Fields]:
    """Read files with a record for each image; records with the same prompt_id belong together."""
    groups: dict[str, _Fields] = {}
    for where, found, folder in read_all(table):
        record = _cells(found, where)
        if missing := sorted(GROUPED - record.keys()):
            raise InputError(f"{where} has no {', '.join(missing)}; expected {EXPECTED}")
        id, prompt, rank = str(record["prompt_id"]), record["prompt"], record["rank"]
        if layout is not None:
            folder = layout.folder(record, folder)
        group = groups.setdefault(
            id, _Fields(f"{where} (prompt_id {id!r})", id, prompt, [], [], Path(), "image_path", "rank")
        )
        if prompt != group.prompt:
            raise InputError(f"{where}: prompt_id {id!r} has another prompt here than before")
        image = record["image_path"]
        group.images.append(str((root or folder) / image) if isinstance(image, str) else image)
        group.ranks.append(int(rank) if isinstance(rank, str) and rank.isdecimal() else rank)
    yield from groups.values()


def _cells(record: Record, where: str) -> dict[str, Any]:
    """A record's cells by `folded` column name; InputError for a faulty record and ambiguous names."""
    if isinstance(record, str):
        raise InputError(f"{where}: {record}")
    cells = {folded(name): value for name, value in record.items()}
    if len(cells) < len(record):
        raise InputError(f"{where} has columns whose names differ in case alone: {listing(record, 40)}")
    return cells


def _checked(fields: _Fields, allow_ties: bool) -> RankedPrompt:
    where, images, ranks = fields.where, fields.images, fields.ranks
    if error := prompt_error(fields.prompt):
        raise InputError(f"{where}, prompt: expected a string: {error}")
    if not isinstance(images, list) or not all(type(name) is str for name in images):
        raise InputError(f"{where}, {fields.image_name}: expected a list of paths")
    if not isinstance(ranks, list) or not all(map(_is_rank, ranks)):
        raise InputError(f"{where}, {fields.rank_name}: expected a list of whole numbers from 0 on")
    if len(images) != len(ranks):
        raise InputError(
            f"{where}: {len(images)} {fields.image_name} but {len(ranks)} ranks in {fields.rank_name}"
        )
    if len(set(ranks)) < 2 and not allow_ties:
        raise InputError(
            f"{where}, {fields.rank_name}: {ranks} prefers no image to another, so training cannot use it; "
            "leave the record out"
        )
    paths = tuple(fields.folder / name for name in images)
    return RankedPrompt(fields.id, fields.prompt, paths, tuple(int(rank) for rank in ranks))


def _is_rank(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0 and value == value // 1
