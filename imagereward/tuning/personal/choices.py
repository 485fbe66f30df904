"""read_choices: what a person said about images, read from a table or from records in Python.

One kind a file: rankings of several images, pairs of a chosen and a rejected one, ratings, or labels good and
bad of single images.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagereward.agreement.rankings import read_rankings
from imagereward.errors import ImageRewardError, InputError, did_you_mean
from imagereward.images.reading import check_image
from imagereward.records import open_table, prompt_error, read_all
from imagereward.records.columns import folded
from imagereward.records.delimited import Delimited
from imagereward.tuning.personal.choice import Choice, Choices, Kind, image_key, net_preferences

# Column that tells the kind -> the kind.
TELLING: dict[str, Kind] = {"chosen": "pairs", "rating": "ratings", "good": "labels"}
LISTS = ("images", "generations")
_AS_JSON = '; in a table of text as JSON, such as ["a.png", "b.png"] and [2, 1]'
EXPECTED = (
    "expected {prompt, images, ranking}, {prompt, chosen, rejected}, {prompt, image, rating} or "
    "{prompt, image, good}"
)


def read_choices(
    data: str | os.PathLike | Sequence[Mapping[str, Any]],
    images: str | os.PathLike | None = None,
    encoding: str | None = None,
) -> Choices:
    """Choices of a table (.jsonl, .json, .csv, .tsv, .parquet) or of a list of records.

    images    folder that relative paths start at; default: the table's own
    encoding  of text files; default: by the byte order mark, else UTF-8

    In .csv and .tsv, lists are JSON. The headers of all images are read; rankings of only ties are kept as
    such. Raises InputError, naming file, record and field, for what is missing or of the wrong type, for an
    image that is missing or damaged or is compared with itself, for records of several kinds, and if no
    choice is left that says anything: all are ties, or each is contradicted by another.
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
    lists = LISTS if any(isinstance(each, Delimited) for each in table.readers) else ("images",)
    if not {*TELLING} & {*columns} and not ({*lists} & {*columns} and "ranking" in columns):
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
    read = read_rankings(path, images, encoding, allow_ties=True)
    table = open_table(path, encoding=encoding, split=False)
    listed = {folded(name): is_list for name, is_list in table.readers[0].columns().items()}
    extra: list[dict[str, Any]] = [{}] * len(read)
    if {"subset", "margin"} & {*listed}:
        if not any(listed.values()):
            raise InputError(
                f"{path} has a record for each image, and a column subset or margin, which is of a whole "
                "ranking: expected records of {prompt, images, ranking, subset, margin}"
            )
        found = [(where, record) for where, record, _ in read_all(table)]
        extra = [_said_beside(where, record) for where, record in found if not isinstance(record, str)]
    return [
        Choice(
            where=f"{path}, record {index} (id {each.id!r})",
            prompt=each.prompt,
            images=tuple(each.generations),
            ranks=each.ranking,
            **beside,
        )
        for index, (each, beside) in enumerate(zip(read, extra, strict=True))
    ]


def _said_beside(where: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The subset and the margin of a record; InputError for a margin that is no number of at least 0."""
    values = {folded(name): value for name, value in record.items() if value is not None}
    return {
        "subset": str(values.get("subset", "")),
        "margin": _number(where, "margin", values.get("margin", 0.0), 0.0),
    }


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
    common = {"where": where, "prompt": record["prompt"], **_said_beside(where, record)}
    if common["margin"] and kind in ("ratings", "labels"):
        raise InputError(f"{where}, margin: {kind} have none; expected it beside rankings and pairs alone")
    if kind == "rankings":
        name = next(name for name in LISTS if name in record)
        found, ranks = _listed(record[name]), _listed(record.get("ranking"))
        if not isinstance(found, list | tuple) or len(found) < 2:
            raise InputError(f"{where}, {name}: expected a list of at least two images{_AS_JSON}")
        if not isinstance(ranks, list | tuple) or not all(_is_rank(rank) for rank in ranks):
            raise InputError(f"{where}, ranking: expected a list of whole numbers from 0 on{_AS_JSON}")
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


def _listed(cell: Any) -> Any:
    """The list that a cell of text holds as JSON; any other cell as it is."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell


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
    """InputError naming record and field, for an image that is missing, damaged or twice in its record."""
    fields = {"pairs": ("chosen", "rejected"), "ratings": ("image",), "labels": ("image",)}
    for choice in choices.items:
        seen: dict[Any, str] = {}
        for place, image in enumerate(choice.images):
            field = fields[choices.kind][place] if choices.kind in fields else f"images[{place}]"
            try:
                check_image(image, place)
                key = image_key(image)
            except (ImageRewardError, OSError) as error:
                said = str(error)
                rest = said.removeprefix(f"images[{place}]")  # what the reader calls it
                raise InputError(f"{choice.where}, {field}{rest if rest != said else f': {said}'}") from error
            if (same := seen.setdefault(key, field)) != field:
                raise InputError(
                    f"{choice.where}: {same} and {field} are the same image; expected different ones, since "
                    "an image says nothing when it is compared with itself"
                )


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
