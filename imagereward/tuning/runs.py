"""Output directories: one run each, recognised by its config."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagereward.errors import InputError
from imagereward.tuning.processes import is_first_process

RUN_FILE = "run.json"
# What a checkpoint of transformers' Trainer holds last.
STATE_FILE = "trainer_state.json"


def check_output(output: str, config: dict[str, Any], resume: bool, free: Sequence[str] = ()) -> Path:
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
        before = json.loads(mark.read_text())
        differing = [key for key in {**before, **values} if before.get(key) != values.get(key)]
        changed = [key for key in differing if key not in free]
        if changed:
            raise InputError(
                f"{path} holds a run with another config: "
                + ", ".join(f"{key} was {before.get(key)!r}, is {values.get(key)!r}" for key in changed)
            )
    return path


def claim(output: Path, config: dict[str, Any]) -> None:
    """Make the directory, and mark it with the config of the run that it now holds."""
    output.mkdir(parents=True, exist_ok=True)
    (output / RUN_FILE).write_text(json.dumps(_plain(config), indent=1) + "\n")


def latest_checkpoint(output: Path) -> str | None:
    """The run's last whole checkpoint, None if it was stopped before the first.

    One that was being written when the run was stopped is not whole, and is removed.
    """
    found = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found and not _is_whole(found[-1]):
        torn = found.pop()
        if is_first_process():
            shutil.rmtree(torn)
    return str(found[-1]) if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Through JSON, so that tuples and lists compare equal."""
    return json.loads(json.dumps(config))
