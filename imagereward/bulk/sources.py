"""Which reader an input needs, and by what an input is known again."""

import glob
import hashlib
import os
from pathlib import Path

from imagereward.bulk.folders import Folder
from imagereward.bulk.shards import Shards
from imagereward.bulk.source import Source
from imagereward.errors import InputError
from imagereward.records import SUFFIXES, open_table


def open_source(given: str | os.PathLike, encoding: str | None = None) -> Source:
    """The reader of an input.

    A table by its suffix (.jsonl, .ndjson, .json, .csv, .tsv, .parquet) or WebDataset shards (.tar); a quoted
    glob of several of one kind; a directory of .tar or .parquet files, else one of images. `encoding` is that
    of text tables. Raises InputError.
    """
    path = Path(given).expanduser()
    name = os.fspath(given)
    files = _files(path, name)
    kinds = {file.suffix.lower() for file in files}
    if files and ".tar" not in kinds:
        if not kinds <= set(SUFFIXES):
            raise InputError(
                f"{name} is no table: expected a directory or a name that ends in "
                + ", ".join((*SUFFIXES, ".tar"))
            )
        return open_table(name, files, encoding)
    if encoding is not None:
        raise InputError(f"encoding={encoding!r} is for tables of text; {name} is none")
    if not files:
        return Folder(name, path)
    if kinds != {".tar"}:
        raise InputError(f"{name} matches files of several kinds: {', '.join(sorted(kinds))}")
    return Shards(name, tuple(files))


def identity(source: Source) -> str:
    """A hash of the names, sizes and times of the input's files: another one means another input."""
    digest = hashlib.sha256()
    for file in source.files():
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"{source.name}: {error}") from error
        digest.update(os.fsencode(file.name) + b"\0%d %d\n" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _files(path: Path, name: str) -> list[Path]:
    """The files of a table; none for a directory of images."""
    if path.is_dir():
        return next((found for kind in ("*.tar", "*.parquet") if (found := sorted(path.glob(kind)))), [])
    if path.is_file():
        return [path]
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not found:
        raise InputError(f"{name} does not exist; expected a table, a glob of tables or a directory")
    return found
