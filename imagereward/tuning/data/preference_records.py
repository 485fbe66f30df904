"""Reads preferences from tables: records of {prompt, chosen, rejected}, Pick-a-Pic's columns, rankings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from imagereward.agreement.rankings import RankedPrompt, read_rankings
from imagereward.errors import InputError, listing
from imagereward.records import Table, find_column, open_table, read_all
from imagereward.records.columns import folded
from imagereward.records.layouts import ListColumns, layout_of
from imagereward.tuning.data.pictures import (
    Picture,
    check_held,
    picture_in,
    prompt_column,
    row_in,
    with_pictures,
)
from imagereward.tuning.data.requests import Row

PairsOf = Literal["all", "extremes"]
EXPECTED = (
    "expected records of {prompt, chosen, rejected}, Pick-a-Pic's {jpg_0, jpg_1, label_0, caption}, or "
    "rankings of {id, prompt, generations, ranking}"
)
UNLABELLED = ("false", "0")  # values of `has_label`, in lower case
RANKED = {"generations", "ranking", "rank", "ranks", "human_preference"}  # columns of rankings alone


class Preference(NamedTuple):
    """A preference between two images of one prompt.

    where     the record's name in messages: its file and number
    row       the prompt, with the pictures that the model is shown
    chosen    the better image
    rejected  the worse image
    """

    where: str
    row: Row
    chosen: Picture
    rejected: Picture


@dataclass
class Preferences:
    """What a table holds.

    found       the preferences, in order
    ties        pairs of images of which neither is better
    unlabelled  records whose images nobody compared (Pick-a-Pic's `has_label` is false)
    """

    found: list[Preference] = field(default_factory=list)
    ties: int = 0
    unlabelled: int = 0


def read_preferences(
    path: Path,
    inputs: Sequence[str],
    pairs_of: PairsOf = "all",
    encoding: str | None = None,
    column: str | None = None,
) -> Preferences:
    """The preferences of a table in one file; no picture is decoded.

    path      .json, .jsonl, .ndjson, .csv, .tsv or .parquet; its columns decide the layout:
              {prompt, chosen, rejected}; {jpg_0, jpg_1, label_0, caption}, where label_0 is 1 for the first
              image, 0 for the second and .5 for a tie; or rankings as `read_rankings` takes them
    inputs    the pictures that the model takes, of "image" and "mask": further columns of every record
    pairs_of  for rankings: "all" pairs of unequal rank, or only the "extremes": best against worst
    encoding  of text files; default: by the byte order mark, else UTF-8
    column    of the prompts; default: by the usual names. Rankings have their prompts in "prompt"

    Pictures are paths relative to the table's folder or, in Parquet, bytes. Raises InputError, naming file
    and record, for a record without a prompt, an image or a picture of `inputs`, for a label of another
    value, for a table without columns of images or without `column`, and for another `column` of rankings.
    """
    check_held(path)
    table = open_table(path, encoding=encoding, split=False)
    columns = {folded(name) for name in table.columns()}
    if columns >= {"chosen", "rejected"}:
        return _named(table, inputs, prompt_column(table, column))
    if columns >= {"jpg_0", "jpg_1", "label_0"}:
        return _labelled(table, inputs, prompt_column(table, column))
    if columns & RANKED:
        if column is not None and folded(column) != "prompt":
            raise InputError(
                f"{path} has rankings, whose prompts are in the column 'prompt'; leave out {column!r}"
            )
        return _ranked(table, path, inputs, pairs_of, encoding)
    if columns >= {"image_0_url", "image_1_url"}:
        raise InputError(f"{path} names images by address; this library fetches none: {EXPECTED}")
    raise InputError(
        f"{path} has no images to compare: its columns are {listing(sorted(columns))}; {EXPECTED}"
    )


def _records(table: Table) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """Every record of a table, as `read_all`; InputError for one that cannot be read."""
    for where, record, folder in read_all(table):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        yield where, record, folder


def _image(record: dict[str, Any], name: str, where: str, folder: Path) -> Picture:
    image = picture_in(record, name, where, folder)
    if image is None:
        raise InputError(f"{where} has no image {name}; {EXPECTED}")
    return image


def _named(table: Table, inputs: Sequence[str], column: str | None) -> Preferences:
    preferences = Preferences()
    for where, record, folder in _records(table):
        row = row_in(record, column, inputs, where, folder)
        images = (_image(record, name, where, folder) for name in ("chosen", "rejected"))
        preferences.found.append(Preference(where, row, *images))
    return preferences


def _labelled(table: Table, inputs: Sequence[str], column: str | None) -> Preferences:
    preferences = Preferences()
    for where, record, folder in _records(table):
        compared = _cell(record, "has_label", where)
        if compared is not None and str(compared).strip().lower() in UNLABELLED:
            preferences.unlabelled += 1
            continue
        label = _label(_cell(record, "label_0", where), where)
        if label == 0.5:
            preferences.ties += 1
            continue
        row = row_in(record, column, inputs, where, folder)
        first, second = (_image(record, name, where, folder) for name in ("jpg_0", "jpg_1"))
        images = (first, second) if label == 1 else (second, first)
        preferences.found.append(Preference(where, row, *images))
    return preferences


def _cell(record: dict[str, Any], name: str, where: str) -> Any:
    return record.get(find_column(record, name, where, (name,)) or "")


def _label(value: Any, where: str) -> float:
    try:
        label = float(value)
    except (TypeError, ValueError):
        label = -1.0
    if label not in (0, 0.5, 1):
        raise InputError(
            f"{where}: label_0 is {value!r}; expected 1 (jpg_0 is better), 0 (jpg_1 is better) or 0.5 (a tie)"
        )
    return label


def _ranked(
    table: Table, path: Path, inputs: Sequence[str], pairs_of: PairsOf, encoding: str | None
) -> Preferences:
    preferences = Preferences()
    ranked = read_rankings(path, encoding=encoding, allow_ties=True)
    for record, (where, row) in zip(ranked, _ranked_rows(table, path, ranked, inputs)):
        better_first = sorted(range(len(record.ranking)), key=record.ranking.__getitem__)
        pairs = list(combinations(better_first, 2))
        for best, worst in pairs if pairs_of == "all" else [(better_first[0], better_first[-1])]:
            if record.ranking[best] == record.ranking[worst]:
                preferences.ties += 1
            else:
                images = record.generations[best], record.generations[worst]
                preferences.found.append(Preference(where, row, *images))
    return preferences


def _ranked_rows(
    table: Table, path: Path, ranked: Sequence[RankedPrompt], inputs: Sequence[str]
) -> Iterator[tuple[str, Row]]:
    """(the record's name in messages, its row) of every ranked prompt."""
    if not inputs:
        yield from ((f"{path} (id {each.id!r})", each.prompt) for each in ranked)
        return
    if not isinstance(layout_of(table.readers[0].columns(), str(path)), ListColumns):
        raise InputError(
            f"{path} has a record for each image: this model takes {', '.join(('prompt', *inputs))}, which "
            "belong to a prompt; use records of {id, prompt, generations, ranking} with these keys"
        )
    for each, (where, record, folder) in zip(ranked, _records(table)):
        yield where, with_pictures(each.prompt, record, inputs, where, folder)
