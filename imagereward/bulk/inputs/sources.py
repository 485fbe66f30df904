"""`open_source`: chooses the reader of an input by its name and content."""

import os
from pathlib import Path

from imagereward.bulk.inputs.directories import matches_of, tables_in
from imagereward.bulk.inputs.folders import Folder, is_picture
from imagereward.bulk.inputs.shards import Shards
from imagereward.bulk.inputs.source import Source
from imagereward.errors import InputError, listing
from imagereward.records import SUFFIXES, open_table


def open_source(given: str | os.PathLike, encoding: str | None = None) -> Source:
    """The reader of an input.

    given      a table (.jsonl, .ndjson, .json, .csv, .tsv, .parquet), WebDataset shards (.tar), a quoted glob
               of files of one kind or of images, or a directory of .tar files, .parquet files or images
    encoding   of text tables; default: by the byte order mark, or else UTF-8

    Raises InputError for an input that does not exist or is of none or several of these kinds.
    """
    path = Path(given).expanduser()
    name = os.fspath(given)
    files = _files(path, name)
    if files and not path.is_file() and all(is_picture(file.name) for file in files):
        return Folder(name, Path(os.path.commonpath([file.parent for file in files])), tuple(files))
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1:
        raise InputError(f"{name} matches files of several kinds: {listing(sorted(kinds))}")
    if files and ".tar" not in kinds:
        if not kinds <= set(SUFFIXES):
            raise InputError(
                f"{name} is no table: expected a directory or a name that ends in "
                + ", ".join((*SUFFIXES, ".tar"))
            )
        return open_table(name, files, encoding)
    if encoding is not None:
        raise InputError(f"encoding={encoding!r} is for tables of text; {name} is none")
    return Shards(name, tuple(files)) if files else Folder(name, path)


def _files(path: Path, name: str) -> list[Path]:
    """The files of a table, glob or directory of tables; empty for a directory of images."""
    if path.is_dir():
        return tables_in(path, name)
    if path.is_file():
        return [path]
    if path.exists():
        raise InputError(
            f"{name} is a pipe or a device, and input is read more than once: write a file first"
        )
    if not (found := matches_of(path)):
        raise InputError(f"{name} does not exist; expected a table, a glob of tables or a directory")
    return found
