"""What a directory given as input is: shards, tables, or pictures; and what of it is not read."""

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from imagereward.bulk.inputs.folders import OUTPUTS, REPEATED, Folder, is_hidden, is_picture, reason
from imagereward.bulk.inputs.own_files import is_output
from imagereward.bulk.inputs.source import Source
from imagereward.errors import InputError
from imagereward.records.arrow import arrow
from imagereward.records.columns import USUAL, folded

# Parquet files whose columns are looked at.
FIRST_FILES = 20


def tables_in(directory: Path, name: str) -> list[Path]:
    """The files of the table that a directory is; none if it is one of pictures.

    .tar shards, .parquet files with a column of images, and pictures at any depth each can be what is
    meant. InputError if more than one is there. Parquet without images (metadata of img2dataset), hidden
    files and outputs of this package are no input beside something else.
    """
    files = sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and not is_hidden(path.name) and not is_output(path)
    )
    shards = [path for path in files if path.suffix.lower() == ".tar"]
    parquet = [path for path in files if path.suffix.lower() == ".parquet"]
    tables = parquet if any(map(_has_images, parquet[:FIRST_FILES])) else []
    pictures = any(map(is_picture, _names(directory, name)))
    possible = {
        f"'{name}/*.tar'": shards,
        f"'{name}/*.parquet'": tables,
        f"pictures ('{name}/*.png' and the like, or '{name}/**/*.png')": pictures,
    }
    if len(found := [what for what, there in possible.items() if there]) > 1:
        raise InputError(
            f"{name} can be read as {' or as '.join(found)}: give the one that is meant, as a quoted glob"
        )
    return shards or tables or ([] if pictures else parquet)


def matches_of(pattern: str | os.PathLike) -> list[Path]:
    """What a glob finds, in order; without earlier outputs of this package, unless there is nothing else.

    A file that is found by several paths, since a directory is linked, counts once, by the shortest of them.
    """
    found: dict[tuple[str, str], Path] = {}
    for match in sorted(glob.glob(os.fspath(pattern), recursive=True), key=lambda match: match.count(os.sep)):
        path = Path(match)
        found.setdefault((os.path.realpath(path.parent), path.name), path)
    paths = sorted(found.values())
    return [path for path in paths if not is_output(path)] or paths


def skipped_of(source: Source, given: str | os.PathLike) -> dict[str, int]:
    """What the input `given` holds that is not in rows of `source`: reason -> number of files or members."""
    skipped = Counter(getattr(source, "skipped", dict)())
    directory = Path(given).expanduser()
    if not directory.exists():
        read = {os.path.abspath(path) for path in source.files()}
        found = map(os.path.abspath, glob.glob(str(directory), recursive=True))
        unread = (Path(path) for path in found if path not in read)
        skipped.update(OUTPUTS if is_output(path) else REPEATED for path in unread)
    if not isinstance(source, Folder) and directory.is_dir():
        read = {os.path.abspath(path) for path in source.files()}
        for place, names in Folder(source.name, directory).walk(skipped):
            paths = (Path(place, name) for name in names)
            skipped.update(reason(path) for path in paths if os.path.abspath(path) not in read)
    return dict(+skipped)


def _names(directory: Path, name: str) -> Iterable[str]:
    for _, names in Folder(name, directory).walk(Counter()):
        yield from names


def _has_images(path: Path) -> bool:
    """Whether a Parquet file has a column of encoded images, or one named as columns of images are."""
    pa = arrow()
    try:
        schema = pa.parquet.read_schema(path)
    except (OSError, pa.ArrowException):
        return False

    def encoded(type) -> bool:
        if pa.types.is_struct(type):
            return any(encoded(type.field(place).type) for place in range(type.num_fields))
        return pa.types.is_binary(type) or pa.types.is_large_binary(type)

    return any(folded(field.name) in USUAL["image"] or encoded(field.type) for field in schema)
