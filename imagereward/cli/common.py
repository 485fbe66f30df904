"""What several commands do: load a scorer, say what it is not good for, print rows."""

import csv
import json
import sys
from typing import Any

from imagereward.cli.options import Format


def load_scorer(model, checkpoint, device, dtype, download_root, offline):
    """The scorer that a command asks for, with its note said. Raises CheckpointError for no such file."""
    import imagereward
    from imagereward.errors import CheckpointError

    if checkpoint is not None:
        if not checkpoint.is_file():
            found = "is a directory: pass it as --model" if checkpoint.is_dir() else "does not exist"
            raise CheckpointError(f"checkpoint {checkpoint} {found}")
        return imagereward.load(
            checkpoint, device, download_root, kind=model, dtype=dtype, local_files_only=offline
        )
    name = model or "ImageReward-v1.0"
    say_note(name)
    return imagereward.load(name, device, download_root, dtype=dtype, local_files_only=offline)


def say_note(name: str) -> None:
    """What people must know before they believe this scorer, on stderr."""
    from imagereward.registry import REGISTRY

    if name in REGISTRY and REGISTRY[name].note:
        print(f"note: {REGISTRY[name].note}", file=sys.stderr)


def print_rows(rows: list[dict[str, Any]], format: Format) -> None:
    """Rows to stdout, as one of the formats every command has."""
    if format == Format.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif format == Format.csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        from imagereward.table import table

        print(table(rows))
