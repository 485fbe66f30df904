"""Output directories: checks that one is free or holds the run to resume, and finds its checkpoints."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagereward.errors import InputError
from imagereward.rewards.opening import shown_name
from imagereward.tuning.distributed import is_first_process

RUN_FILE = "run.json"
# The file that transformers' Trainer writes last into a checkpoint.
STATE_FILE = "trainer_state.json"


def check_run_directory(
    output: str, config: dict[str, Any], resume: bool, may_differ: Sequence[str] = ()
) -> Path:
    """The path of the output directory, checked; it need not exist yet.

    output      the directory
    config      the run's config, compared with the config in the directory's run.json
    resume      whether to go on with the run in the directory
    may_differ  config keys that may differ from the resumed run's

    Only the first process checks: others may look when it has already written files. Raises InputError for a
    directory that holds anything, without `resume`; and with `resume` for one that holds no run, or a run
    with another config.
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
        changed = [key for key in differing if key not in may_differ]
        if changed:
            told = ", ".join(
                shown_name(f"{key} was {before.get(key)!r}, is {values.get(key)!r}") for key in changed
            )
            raise InputError(
                f"{path} holds a run with another config: {told}; expected the same values, or another "
                "output="
            )
    return path


def create_run_directory(output: Path, config: dict[str, Any]) -> None:
    """Make the directory, and write the run's config to its run.json."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / RUN_FILE, json.dumps(_plain(config), indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file under another name, then rename it; a full disk or a kill keeps the previous file."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def latest_checkpoint(output: Path) -> str | None:
    """The path of the last complete checkpoint of transformers' Trainer; None if there is none.

    Incomplete checkpoints after it, from a run that was stopped while writing, are removed.
    """
    found = checkpoints(output)
    while found and not _is_whole(found[-1]):
        torn = found.pop()
        if is_first_process():
            shutil.rmtree(torn)
    return str(found[-1]) if found else None


def checkpoints(directory: Path) -> list[Path]:
    """The directories checkpoint-N in a run's directory, by rising N; other names do not count."""
    found = [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=updates_of)


def updates_of(checkpoint: Path) -> int:
    """The number of updates N of checkpoint-N."""
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
    """The config after a round trip through JSON, which makes tuples lists, so that configs compare equal."""
    return json.loads(json.dumps(config))
