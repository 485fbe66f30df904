"""The folder layout of inpainting data: originals/, masks/, prompts/, and results/MODEL/, matched by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imagereward.errors import InputError, listing

ORIGINALS, MASKS, PROMPTS, RESULTS = "originals", "masks", "prompts", "results"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MOST_PROMPT_BYTES = 64_000


class LayoutRow(NamedTuple):
    """One image of the layout.

    name   of its files, without the suffix
    where  its name in error messages
    """

    name: str
    where: str
    prompt: str
    image: Path
    mask: Path


def is_layout(folder: Path) -> bool:
    """Whether a folder has the folders originals/ and masks/."""
    return (folder / ORIGINALS).is_dir() and (folder / MASKS).is_dir()


def read_layout(folder: Path) -> list[LayoutRow]:
    """The rows of originals/NAME.*, masks/NAME.* and prompts/NAME.txt, by name.

    Files are matched by their names without suffixes; masks and prompts may be more than the originals.
    Raises InputError for originals without a mask or a prompt, naming them, for two files of one name, for a
    prompt that is blank or no UTF-8, and for a folder without originals.
    """
    originals = files_by_name(folder / ORIGINALS)
    if not originals:
        raise InputError(f"{folder / ORIGINALS} holds no image; expected {', '.join(SUFFIXES)}")
    masks = files_by_name(folder / MASKS)
    if missing := [path for name, path in originals.items() if name not in masks]:
        raise InputError(f"{folder / MASKS} has no mask for {listing(missing, 4)}: expected one of each name")
    return [
        LayoutRow(name, f"{folder}: {name}", prompt_of(folder, name), path, masks[name])
        for name, path in originals.items()
    ]


def files_by_name(folder: Path) -> dict[str, Path]:
    """{name without suffix: path} of the images in a folder, sorted. Raises InputError for a name twice."""
    found: dict[str, Path] = {}
    for path in sorted(_images(folder)):
        if path.stem in found:
            raise InputError(
                f"{folder} has two images named {path.stem!r}: {found[path.stem].name}, {path.name}"
            )
        found[path.stem] = path
    return found


def prompt_of(folder: Path, name: str) -> str:
    """The text of prompts/NAME.txt, without white space around it. Raises InputError if there is none."""
    path = folder / PROMPTS / f"{name}.txt"
    try:
        data = path.read_bytes()
        if len(data) > MOST_PROMPT_BYTES:
            raise InputError(
                f"{path} has {len(data)} bytes; expected a prompt of at most {MOST_PROMPT_BYTES}"
            )
        prompt = data.decode("utf-8-sig").strip()
    except OSError as error:
        raise InputError(f"{path}, the prompt of {name!r}, cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error
    if not prompt:
        raise InputError(f"{path} is blank: expected a prompt")
    return prompt


def results_of(folder: Path) -> dict[str, dict[str, Path]]:
    """{model: {name: path of the image}} of the folders in results/, sorted by name."""
    results = folder / RESULTS
    models = sorted(each for each in results.iterdir() if each.is_dir()) if results.is_dir() else []
    return {model.name: files_by_name(model) for model in models}


def _images(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
