"""Recognises files that bulk scoring wrote, so that they are not read as input by accident."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imagereward.errors import InputError
from imagereward.records.arrow import arrow

FORMATS = (".parquet", ".jsonl", ".csv")
FINGERPRINT = "fingerprint.json"
NAME_IN_PARQUET = b"imagereward"  # key of the fingerprint in Parquet metadata
COMPANION = re.compile(r"\.(parquet|jsonl|csv)\.(lock|parts|fingerprint\.json)$", re.IGNORECASE)


def is_output(path: Path) -> bool:
    """Whether a path is a table of scores that this package wrote, or its lock, parts or fingerprint."""
    return bool(COMPANION.search(path.name)) or fingerprint_of(path, finished=False) is not None


def fingerprint_of(path: Path, finished: bool = True) -> dict[str, Any] | None:
    """The fingerprint of the run that wrote a table of scores; None for any other file.

    finished  False: also that of a run that has not replaced an older table yet
    """
    try:
        if path.suffix.lower() == ".parquet":
            found = (arrow().parquet.read_schema(path).metadata or {}).get(NAME_IN_PARQUET)
        elif path.suffix.lower() in FORMATS:
            beside = path.with_name(f"{path.name}.{FINGERPRINT}")
            # The fingerprint is written before its table; a younger one belongs to an unfinished output.
            older = not finished or beside.stat().st_mtime_ns <= path.stat().st_mtime_ns
            found = beside.read_bytes() if older else None
        else:
            return None
        fingerprint = None if found is None else json.loads(found)
    except (OSError, ValueError, arrow().ArrowException):
        return None  # reading the file as input reports the error
    return fingerprint if isinstance(fingerprint, dict) else None


def refuse_output_in_input(out: Path, files: Iterable[Path]) -> None:
    """InputError if the output `out` is, directly or by a link, one of the input's `files` or holds them as
    parts."""
    place = os.path.realpath(out)
    parts = place + ".parts" + os.sep
    status = out.stat() if out.exists() else None
    for file in files:
        path = os.path.realpath(file)
        same = path == place or path.startswith(parts)
        if status is not None and not same and file.exists():
            same = os.path.samestat(status, file.stat())
        if same:
            raise InputError(f"the output {out} is part of the input ({file}): choose another output")
