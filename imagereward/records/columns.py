"""Finds the columns of image, prompt, id and mask by their usual names."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from imagereward.errors import InputError, listing

# Role of a column -> its usual names, tried in this order if the caller names no column.
USUAL = {
    "image": ("image", "image_path", "path", "file_name", "filename", "file", "img"),
    "prompt": ("prompt", "text", "caption", "txt"),
    "id": ("id", "key", "__key__", "prompt_id"),
    "mask": ("mask",),
}
ALL_USUAL = frozenset(name for names in USUAL.values() for name in names)


def is_usual(name: str) -> bool:
    """Whether a column has one of the usual names."""
    return folded(name) in ALL_USUAL


def find_column(
    present: Iterable[str], role: str, where: str, usual: Iterable[str] | None = None
) -> str | None:
    """The first usual name of a role that is present, ignoring case and outer spaces; None without one.

    role    a key of `USUAL`
    where   the table, for messages
    usual   names to try instead of `USUAL[role]`

    Raises InputError if two columns have that name.
    """
    by_name: dict[str, list[str]] = {}
    for name in present:
        by_name.setdefault(folded(name), []).append(name)
    for candidate in usual or USUAL[role]:
        if found := by_name.get(candidate):
            if len(found) > 1:
                raise InputError(f"{where} has several columns for the {role}: {listing(map(repr, found))}")
            return found[0]
    return None


def usual_columns(present: Iterable[str], role: str) -> list[str]:
    """All columns that have one of the role's usual names."""
    return [name for name in present if folded(name) in USUAL[role]]


def check_repeated(names: Sequence[str], path: Path) -> None:
    """InputError if two columns have the same name, except for empty names."""
    repeated = [name for name, times in Counter(names).items() if times > 1 and name.strip()]
    if repeated:
        raise InputError(f"{path} has several columns {listing(map(repr, repeated))}; rename one")


def folded(name: str) -> str:
    """A column's name for comparisons: lower case, without outer spaces."""
    return name.strip().casefold()
