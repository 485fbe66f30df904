"""Output directories: one run each, recognised by its config."""

import json
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from imagereward.errors import InputError

RUN_FILE = "run.json"


def claim(output: str, config: dict[str, Any], resume: bool) -> Path:
    """The output directory, made if need be and marked with the config.

    Raises InputError if it holds anything and this is not that run resumed.
    """
    path = Path(output).expanduser()
    mark = path / RUN_FILE
    # Through JSON, so that tuples and lists compare equal.
    values = json.loads(json.dumps(config))
    if not resume and path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "another run" if mark.exists() else "something else"
        raise InputError(f"{path} already holds {what}; choose another output=, or resume=true to go on")
    if resume:
        if not mark.is_file():
            raise InputError(f"{path} holds no run to resume: {RUN_FILE} is missing")
        before = json.loads(mark.read_text())
        changed = [key for key in {**before, **values} if before.get(key) != values.get(key)]
        if changed:
            raise InputError(
                f"{path} holds a run with another config: "
                + ", ".join(f"{key} was {before.get(key)!r}, is {values.get(key)!r}" for key in changed)
            )
    path.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(values, indent=1) + "\n")
    return path


def latest_checkpoint(output: Path) -> str | None:
    """The run's last checkpoint, None if it was stopped before the first."""
    return get_last_checkpoint(str(output)) if output.is_dir() else None
