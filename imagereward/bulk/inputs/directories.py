"""Decides whether a directory holds shards, tables or images; expands globs; counts skipped files."""

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

# Parquet files of a directory whose columns are checked for images.
FIRST_FILES = 20


def tables_in(directory: Path, name: str) -> list[Path]:
    """The .tar or .parquet files of a directory, sorted; empty for a directory of images.

    name   of the directory, for messages

    A directory can be read as .tar shards, as .parquet files with a column of images, or as image files at
    any depth; InputError if it holds more than one of these. Parquet files without images (metadata of
    img2dataset) count only if there is nothing else. Hidden files and outputs of this package never count.
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
    """The files that match a glob, sorted; outputs of this package only if nothing else matches.

    A file found by several paths through linked directories counts once, by the path with fewest folders.
    """
    found: dict[tuple[str, str], Path] = {}
    for match in sorted(glob.glob(os.fspath(pattern), recursive=True), key=lambda match: match.count(os.sep)):
        path = Path(match)
        found.setdefault((os.path.realpath(path.parent), path.name), path)
    paths = sorted(found.values())
    return [path for path in paths if not is_output(path)] or paths


def skipped_of(source: Source, given: str | os.PathLike) -> dict[str, int]:
    """{reason: number of files or shard members} of the input `given` that are in no row of `source`."""
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
    """Whether a Parquet file has a binary column, or a column with a usual name of image columns."""
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
