"""Human rankings on disk, in ImageRewardDB's layout."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagereward.errors import InputError


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt's images in order of preference: `ranking[i]` is image i's rank, 1 the best, ties allowed."""

    id: str
    prompt: str
    generations: tuple[Path, ...]
    ranking: tuple[int, ...]


def read_rankings(path: str | os.PathLike, images: str | os.PathLike | None = None) -> list[RankedPrompt]:
    """The records `{id, prompt, generations, ranking}` of a JSON list; other keys are left alone.

    Image paths are relative to `images`, by default the file's own directory; whether they exist is not
    looked at. Raises InputError naming file, id and field for a field that is missing or of the wrong
    kind, for unequal numbers of generations and ranks, and for a ranking of only ties.
    """
    path = Path(path).expanduser()
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected a JSON list of rankings") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise InputError(
            f"{path} holds no rankings; expected a JSON list of {{id, prompt, generations, ranking}}"
        )
    root = path.parent if images is None else Path(images).expanduser()
    return [_checked(record, f"{path}, record {index}", root) for index, record in enumerate(records)]


def _checked(record: Any, where: str, root: Path) -> RankedPrompt:
    if not isinstance(record, dict):
        raise InputError(f"{where} is a {type(record).__name__}; expected an object")
    missing = {"id", "prompt", "generations", "ranking"} - record.keys()
    where += f" (id {record['id']!r})" if "id" in record else ""
    if missing:
        raise InputError(f"{where} has no {', '.join(sorted(missing))}")
    generations, ranking = record["generations"], record["ranking"]
    if not isinstance(record["prompt"], str):
        raise InputError(f"{where}, prompt: expected a string, not {record['prompt']!r}")
    if not isinstance(generations, list) or not all(type(name) is str for name in generations):
        raise InputError(f"{where}, generations: expected a list of paths")
    if not isinstance(ranking, list) or not all(type(rank) is int and rank >= 0 for rank in ranking):
        raise InputError(f"{where}, ranking: expected a list of whole numbers from 0 on")
    if len(generations) != len(ranking):
        raise InputError(f"{where}: {len(generations)} generations but {len(ranking)} ranks in ranking")
    if len(set(ranking)) < 2:
        raise InputError(f"{where}, ranking: {ranking} prefers no image to another; leave the record out")
    return RankedPrompt(
        str(record["id"]), record["prompt"], tuple(root / name for name in generations), tuple(ranking)
    )
