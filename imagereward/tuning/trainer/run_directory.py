"""Output directories: one run each, recognised by its config."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagereward.errors import InputError
from imagereward.tuning.distributed import is_first_process

RUN_FILE = "run.json"
# What a checkpoint of transformers' Trainer holds last.
STATE_FILE = "trainer_state.json"


def check_run_directory(output: str, config: dict[str, Any], resume: bool, free: Sequence[str] = ()) -> Path:
    """The output directory, which need not exist yet. Only the first process looks: the others may be late.

    Raises InputError if it holds anything and this is not that run resumed, apart from keys that are `free`.
    """
    path = Path(output).expanduser()
    if not is_first_process():
        return path
    mark = path / RUN_FILE
    values = _plain(config)
    if not resume and path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "another run" if mark.exists() else "something else"
        raise InputError(f"{path} already holds {what}; choose another output=, or resume=true to go on")
    if resume:
        if not mark.is_file():
            raise InputError(f"{path} holds no run to resume: {RUN_FILE} is missing")
        before = _read(mark)
        differing = [key for key in {**before, **values} if before.get(key) != values.get(key)]
        changed = [key for key in differing if key not in free]
        if changed:
            raise InputError(
                f"{path} holds a run with another config: "
                + ", ".join(f"{key} was {before.get(key)!r}, is {values.get(key)!r}" for key in changed)
            )
    return path


def create_run_directory(output: Path, config: dict[str, Any]) -> None:
    """Make the directory, and mark it with the config of the run that it now holds."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / RUN_FILE, json.dumps(_plain(config), indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a full disk or a kill leaves the one before as it was."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def latest_checkpoint(output: Path) -> str | None:
    """The run's last whole checkpoint, None if it was stopped before the first.

    One that was being written when the run was stopped is not whole, and is removed.
    """
    found = checkpoints(output)
    while found and not _is_whole(found[-1]):
        torn = found.pop()
        if is_first_process():
            shutil.rmtree(torn)
    return str(found[-1]) if found else None


def checkpoints(directory: Path) -> list[Path]:
    """A run's checkpoint-N, the last at the end; checkpoint-best is somebody's own."""
    found = [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=updates_of)


def updates_of(checkpoint: Path) -> int:
    """The N of checkpoint-N."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def _read(mark: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(mark.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{mark} cannot be read as the config of a run: {error}") from error


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Through JSON, so that tuples and lists compare equal."""
    return json.loads(json.dumps(config))
