"""Candidates: the images of a folder by their prompts, and the pairs of images that may be compared."""

import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from imagereward.bulk.inputs.folders import Folder
from imagereward.errors import ImageRewardError, InputError
from imagereward.generation_metadata import prompt_of
from imagereward.images.reading import check_image
from imagereward.records import open_table, prompt_error, read_all

# Most pairs of one prompt's images; of more, those of its first images are taken.
MOST_PAIRS = 200


@dataclass(frozen=True)
class Candidates:
    """Images and their prompts, by index.

    images   paths
    prompts  for each image its prompt
    pairs    indices (i, j), i < j, of images with the same prompt
    """

    images: tuple[Path, ...]
    prompts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


def read_candidates(folder: str | os.PathLike, table: str | os.PathLike | None = None) -> Candidates:
    """The images of a folder.

    table   a table with a record for each image or each prompt's images; its paths start at the folder.
            Default: all images of the folder, with the prompts beside or inside them

    Raises InputError, naming record and image, for an image that is missing, damaged or without a prompt, and
    if no prompt has two images.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is no folder; expected one with images")
    rows = _from_folder(root) if table is None else _from_table(root, Path(table).expanduser())
    images: list[Path] = []
    prompts: list[str] = []
    for where, image, prompt in rows:
        try:
            check_image(image, len(images))
        except ImageRewardError as error:
            raise InputError(f"{where}: {error}") from error
        images.append(image)
        prompts.append(prompt)
    by_prompt: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(index)
    pairs = [pair for found in by_prompt.values() for pair in list(combinations(found, 2))[:MOST_PAIRS]]
    if not pairs:
        raise InputError(
            f"{root}: {len(images)} images of {len(by_prompt)} prompts, and none has two images to compare"
        )
    return Candidates(tuple(images), tuple(prompts), tuple(pairs))


def _from_folder(root: Path) -> list[tuple[str, Path, str]]:
    source = Folder(str(root), root)
    source.columns()  # InputError for a folder without images
    records = (found.record for found in source.records(lambda _: True, ["image"]))
    paths = [root / str(record["image"]) for record in records if isinstance(record, dict)]
    return [(str(path), path, prompt_of(path)) for path in paths]


def _from_table(root: Path, path: Path) -> list[tuple[str, Path, str]]:
    table = open_table(path)
    names = {role: table.find_column(role) for role in ("image", "prompt")}
    if missing := [role for role, name in names.items() if name is None]:
        raise InputError(f"{path} has no column of {' and of '.join(missing)}s: {', '.join(table.columns())}")
    rows = []
    for where, record, _ in read_all(table):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        image, prompt = record.get(names["image"] or ""), record.get(names["prompt"] or "")
        if error := prompt_error(prompt):
            raise InputError(f"{where}, {names['prompt']}: {error}")
        if not isinstance(image, str) or not image:
            raise InputError(f"{where}, {names['image']}: expected a path, found {image!r}")
        rows.append((f"{where}, {names['image']}", root / image, str(prompt)))
    return rows
