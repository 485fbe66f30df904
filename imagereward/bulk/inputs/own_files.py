"""Files that this package writes beside or as an output: they are never taken for input by accident."""

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
NAME_IN_PARQUET = b"imagereward"  # the key of the fingerprint in the metadata of Parquet
COMPANION = re.compile(r"\.(parquet|jsonl|csv)\.(lock|parts|fingerprint\.json)$", re.IGNORECASE)


def is_output(path: Path) -> bool:
    """Whether a file or directory is a table of scores that this package wrote, or lies beside one."""
    return bool(COMPANION.search(path.name)) or fingerprint_of(path) is not None


def fingerprint_of(path: Path) -> dict[str, Any] | None:
    """The fingerprint of a table of scores; None for any other file."""
    try:
        if path.suffix.lower() == ".parquet":
            found = (arrow().parquet.read_schema(path).metadata or {}).get(NAME_IN_PARQUET)
        elif path.suffix.lower() in FORMATS:
            beside = path.with_name(f"{path.name}.{FINGERPRINT}")
            # It is written first: one that is younger belongs to an output that was not finished.
            older = beside.stat().st_mtime_ns <= path.stat().st_mtime_ns
            found = beside.read_bytes() if older else None
        else:
            return None
        fingerprint = None if found is None else json.loads(found)
    except (OSError, ValueError, arrow().ArrowException):
        return None  # whoever reads the file says what is wrong with it
    return fingerprint if isinstance(fingerprint, dict) else None


def refuse_output_in_input(out: Path, files: Iterable[Path]) -> None:
    """InputError if `out` is one of the input's files, also by a link, or `files` are its own parts."""
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
