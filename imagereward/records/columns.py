"""Which column holds the image, the prompt or the id of a record."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from imagereward.errors import InputError, listing

# Names under which each is looked for where the caller names no column, in this order.
USUAL = {
    "image": ("image", "image_path", "path", "file_name", "filename", "file", "img"),
    "prompt": ("prompt", "text", "caption", "txt"),
    "id": ("id", "key", "__key__", "prompt_id"),
    "mask": ("mask",),
}
ALL_USUAL = frozenset(name for names in USUAL.values() for name in names)


def is_usual(name: str) -> bool:
    """Whether a column is found without being named."""
    return folded(name) in ALL_USUAL


def find_column(
    present: Iterable[str], role: str, where: str, usual: Iterable[str] | None = None
) -> str | None:
    """The first of the role's usual names that is present, without regard to case and outer spaces.

    Raises InputError, naming `where`, if two columns have that name.
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
    """InputError for two columns of one name, of which only one could be read. Empty names do not count."""
    repeated = [name for name, times in Counter(names).items() if times > 1 and name.strip()]
    if repeated:
        raise InputError(f"{path} has several columns {listing(map(repr, repeated))}; rename one")


def folded(name: str) -> str:
    """A column's name as it is compared: without regard to case and outer spaces."""
    return name.strip().casefold()
