"""Choices: what a person said about images, read from a table or from records in Python.

One kind a file: rankings of several images, pairs of a chosen and a rejected one, ratings, or labels good and
bad of single images.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from imagereward.agreement.rankings import read_rankings
from imagereward.errors import ImageRewardError, InputError, did_you_mean
from imagereward.images.reading import check_image, identity
from imagereward.records import open_table, prompt_error, read_all
from imagereward.records.columns import folded

Kind = Literal["rankings", "pairs", "ratings", "labels"]
# Column that tells the kind -> the kind.
TELLING: dict[str, Kind] = {"chosen": "pairs", "rating": "ratings", "good": "labels"}
LISTS = ("images", "generations")
EXPECTED = (
    "expected {prompt, images, ranking}, {prompt, chosen, rejected}, {prompt, image, rating} or "
    "{prompt, image, good}"
)


@dataclass(frozen=True)
class Choice:
    """What was said about the images of one record.

    where    file and record, for messages
    prompt   the prompt
    images   K images: paths, or whatever scorers take
    ranks    K ranks, lower is better, ties allowed; empty for ratings and labels
    value    the rating, or 1 for good and 0 for bad; NaN for rankings and pairs
    margin   by how much the better image's score should be higher, at least 0
    subset   name of a part of the data that is measured alone; "": none
    """

    where: str
    prompt: str
    images: tuple[Any, ...]
    ranks: tuple[int, ...] = ()
    value: float = math.nan
    margin: float = 0.0
    subset: str = ""

    @property
    def decided(self) -> list[tuple[int, int]]:
        """(better, worse) indices of all pairs of images with unequal ranks."""
        found = combinations(range(len(self.ranks)), 2)
        ordered = ((i, j) if self.ranks[i] < self.ranks[j] else (j, i) for i, j in found)
        return [(i, j) for i, j in ordered if self.ranks[i] < self.ranks[j]]


@dataclass(frozen=True)
class Choices:
    """Choices of one kind, and the name of where they are from."""

    kind: Kind
    items: tuple[Choice, ...]
    source: str

    @property
    def compares(self) -> bool:
        """Whether images of a prompt are compared, instead of being judged alone."""
        return self.kind in ("rankings", "pairs")

    def only(self, indices: Iterable[int]) -> "Choices":
        """The choices with these indices."""
        return Choices(self.kind, tuple(self.items[index] for index in indices), self.source)


def read_choices(
    data: str | os.PathLike | Sequence[Mapping[str, Any]],
    images: str | os.PathLike | None = None,
    encoding: str | None = None,
) -> Choices:
    """Choices of a table (.jsonl, .json, .csv, .tsv, .parquet) or of a list of records.

    images    folder that relative paths start at; default: the table's own
    encoding  of text files; default: by the byte order mark, else UTF-8

    The headers of all images are read; rankings of only ties are kept as such. Raises InputError, naming
    file, record and field, for what is missing or of the wrong type, for an image that is missing or damaged,
    for records of several kinds, and if no choice is left that says anything: all are ties, or each is
    contradicted by another.
    """
    if isinstance(data, str | os.PathLike):
        items, kind = _from_table(Path(data).expanduser(), images, encoding)
        source = os.fspath(data)
    else:
        source = "choices"
        records = [(f"choices[{index}]", record, Path(images or "")) for index, record in enumerate(data)]
        if not records:
            raise InputError(f"choices: the list is empty; {EXPECTED}")
        kind = _kind_of(records[0][1], records[0][0])
        items = [_choice(where, record, folder, kind) for where, record, folder in records]
    choices = Choices(kind, tuple(items), source)
    _check_images(choices)
    _check_says_anything(choices)
    return choices


def _from_table(path: Path, images, encoding) -> tuple[list[Choice], Kind]:
    table = open_table(path, encoding=encoding, split=False)
    columns = [folded(name) for name in table.columns()]
    known = {*TELLING, *LISTS, "ranking", "prompt", "image", "rejected"}
    if not {*TELLING} & {*columns} and not ("images" in columns and "ranking" in columns):
        if not {"ranking", "rank", "ranks", "human_preference"} & {*columns}:
            hints = [did_you_mean(name, known) for name in columns if name not in known]
            hint = " ".join(filter(None, hints))
            raise InputError(f"{path} has the columns {', '.join(columns)}: {hint or EXPECTED}")
        return _from_rankings(path, images, encoding), "rankings"
    root = None if images is None else Path(images).expanduser()
    kind: Kind | None = None
    items = []
    for where, record, folder in read_all(table):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        record = {folded(name): value for name, value in record.items() if value is not None}
        kind = kind or _kind_of(record, where)
        items.append(_choice(where, record, root or folder, kind))
    if kind is None:
        raise InputError(f"{path} holds no choices; {EXPECTED}")
    return items, kind


def _from_rankings(path: Path, images, encoding) -> list[Choice]:
    """Rankings in the published layouts, by the reader that reward models' training uses."""
    return [
        Choice(f"{path}, record {index} (id {each.id!r})", each.prompt, tuple(each.generations), each.ranking)
        for index, each in enumerate(read_rankings(path, images, encoding, allow_ties=True))
    ]


def _kind_of(record: Any, where: str) -> Kind:
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: found {type(record).__name__}; {EXPECTED}")
    for column, kind in TELLING.items():
        if column in record:
            return kind
    if any(name in record for name in LISTS):
        return "rankings"
    raise InputError(f"{where} has the fields {', '.join(map(str, record)) or 'none'}: {EXPECTED}")


def _choice(where: str, record: Mapping[str, Any], folder: Path, kind: Kind) -> Choice:
    if (other := _kind_of(record, where)) != kind:
        raise InputError(
            f"{where} is one of {other}, and the records before it are {kind}; expected one kind"
        )
    if error := prompt_error(record.get("prompt")):
        raise InputError(f"{where}, prompt: {error}")
    common = {
        "where": where,
        "prompt": record["prompt"],
        "subset": str(record.get("subset") or ""),
        "margin": _number(where, "margin", record.get("margin", 0.0), 0.0),
    }
    if kind == "rankings":
        name = next(name for name in LISTS if name in record)
        found, ranks = record[name], record.get("ranking")
        if not isinstance(found, list | tuple) or len(found) < 2:
            raise InputError(f"{where}, {name}: expected a list of at least two images")
        if not isinstance(ranks, list | tuple) or not all(_is_rank(rank) for rank in ranks):
            raise InputError(f"{where}, ranking: expected a list of whole numbers from 0 on")
        if len(ranks) != len(found):
            raise InputError(f"{where}: {len(found)} {name} but {len(ranks)} ranks in ranking")
        return Choice(
            images=tuple(_at(folder, each) for each in found), ranks=tuple(int(r) for r in ranks), **common
        )
    names = ("chosen", "rejected") if kind == "pairs" else ("image",)
    if missing := [name for name in names if record.get(name) is None]:
        raise InputError(f"{where} has no {' and no '.join(missing)}; {EXPECTED}")
    pictures = tuple(_at(folder, record[name]) for name in names)
    if kind == "pairs":
        return Choice(images=pictures, ranks=(1, 2), **common)
    if kind == "ratings":
        return Choice(images=pictures, value=_number(where, "rating", record["rating"]), **common)
    good = record["good"]
    value = {"true": True, "false": False, "1": True, "0": False}.get(str(good).lower())
    if value is None:
        raise InputError(f"{where}, good={good!r}: expected true or false")
    return Choice(images=pictures, value=float(value), **common)


def _at(folder: Path, image: Any) -> Any:
    return folder / image if isinstance(image, str | os.PathLike) else image


def _is_rank(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0 and value == value // 1


def _number(where: str, name: str, value: Any, least: float = -math.inf) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < least:
        limit = "" if least == -math.inf else f" of at least {least:g}"
        raise InputError(f"{where}, {name}={value!r}: expected a finite number{limit}")
    return number


def _check_images(choices: Choices) -> None:
    """InputError naming record and image, for the first image that is missing or damaged."""
    for choice in choices.items:
        for place, image in enumerate(choice.images):
            try:
                check_image(image, place)
            except ImageRewardError as error:
                raise InputError(f"{choice.where}, image {place}: {error}") from error


def _check_says_anything(choices: Choices) -> None:
    count = len(choices.items)
    if not choices.compares:
        values = Counter(choice.value for choice in choices.items)
        if len(values) < 2:
            raise InputError(
                f"{choices.source}: all {count} {choices.kind} are {next(iter(values)):g}; expected several"
            )
        return
    if not any(choice.decided for choice in choices.items):
        raise InputError(
            f"{choices.source}: all {count} choices are ties: no image is preferred to another, so there is "
            "nothing to learn"
        )
    if not any(net_preferences(choices.items)):
        raise InputError(
            f"{choices.source}: every choice is contradicted by another one of the same two images, so there "
            "is nothing to learn"
        )


def net_preferences(items: Iterable[Choice]) -> Iterator[int]:
    """For every two images of a prompt: by how many choices one is preferred more often than the other."""
    votes: Counter = Counter()
    for choice in items:
        for better, worse in choice.decided:
            pair = [(choice.prompt, identity(choice.images[index])) for index in (better, worse)]
            first, second = sorted(pair, key=repr)
            votes[repr(first), repr(second)] += 1 if pair[0] is first else -1
    return iter(votes.values())
