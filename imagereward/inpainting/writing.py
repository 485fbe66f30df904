"""Writes inpainting data sets: masks made for images that have none, or scenes of Shapes; a contact sheet."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from imagereward.config import whole_number
from imagereward.errors import ImageReadError, InputError, OutputError, listing
from imagereward.images.orientation import upright
from imagereward.images.reading import read_image
from imagereward.inpainting.layout import MASKS, ORIGINALS, PROMPTS, files_by_name, prompt_of
from imagereward.inpainting.makers import make_mask
from imagereward.records import open_table, prompt_error, read_all
from imagereward.shapes.inpainting import REGIONS, inpainting_row
from imagereward.writing import TEMPORARY, replacing, temporary_for, write_text

ROWS_FILE, SHEET_FILE = "rows.jsonl", "contact-sheet.png"
_OWN = (ROWS_FILE, SHEET_FILE, ORIGINALS, MASKS, PROMPTS)  # the rows, which say whose the others are, first
SHAPES = "shapes"
_CELL, _GAP, _LABEL = 160, 6, 14  # pixels of the contact sheet
_COLUMNS, _MOST_CELLS = 6, 48
_TINT = (255, 0, 200)


class Item(NamedTuple):
    """A row to write: `mask` bool [H, W], True where to paint anew."""

    name: str
    prompt: str
    image: Image.Image
    mask: np.ndarray


def write_data(
    out: str | os.PathLike,
    source: str | os.PathLike,
    *,
    kind: str = "box",
    share: float = 0.25,
    seed: int = 0,
    count: int = 100,
    split: str = "train",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write originals/, masks/, prompts/, rows.jsonl and a contact sheet; returns the path of the sheet.

    source     "shapes": drawn scenes, whose masks cover one thing and whose prompts ask for another one
               there; a table of prompts and images; or a folder with originals/ and prompts/
    kind       of the masks: box or strokes; for Shapes also object, the shape of the masked thing, and brush
    share      of the area that a mask covers, above 0 and below 1; masks of Shapes have the size of the thing
    seed       decides the masks; equal arguments write equal bytes
    count      rows of Shapes; of other sources, the most rows
    split      of Shapes: train, valid or test
    overwrite  replace a data set that this function wrote, once the new one is finished

    A mask depends on the seed and the row's number alone. Originals are written upright, as PNG. Raises
    InputError for arguments out of range, for a source within `out` and, naming the record, for a prompt or
    an image that is missing or damaged; OutputError if `out` has files already. `out` then stays as it was.
    """
    count, seed = whole_number("count", count, 1), whole_number("seed", seed, 0)
    out = Path(out).expanduser()
    items: Callable[[], Iterator[Item]]
    if str(source) == SHAPES:
        if kind not in REGIONS:
            raise InputError(f"kind={kind!r}: for shapes, expected one of {', '.join(REGIONS)}")
        total, items = count, lambda: _shapes(count, seed, split, kind)
    else:
        make_mask(kind, 8, 8, share, np.random.default_rng(0))  # finds wrong arguments
        source = Path(source).expanduser()
        rows = list(_sources(source))
        _refuse_within(out, [source, *(path for *_, path in rows)])
        if not rows:
            raise InputError(f"{source} has no rows")
        rows = rows[:count]
        total, items = len(rows), lambda: _masked(rows, kind, share, seed)
    _check_room(out, overwrite)
    existed, fresh = out.exists(), temporary_for(out, out)
    try:
        _write(fresh, tqdm(items(), "masks", total, unit="image", disable=not progress))
        _replace(out, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # it holds the data set
                out.rmdir()
    return out / SHEET_FILE


def _write(out: Path, items: Iterable[Item]) -> None:
    """Write a data set into an empty directory."""
    records: list[dict[str, str]] = []
    cells: list[tuple[str, Image.Image]] = []
    for item in items:
        mask = Image.fromarray(np.where(item.mask, 255, 0).astype(np.uint8))
        image, grey = f"{ORIGINALS}/{item.name}.png", f"{MASKS}/{item.name}.png"
        for path, picture in ((image, item.image), (grey, mask)):
            with replacing(out / path) as temporary:
                picture.save(temporary, "PNG", compress_level=1)
        write_text(out / PROMPTS / f"{item.name}.txt", item.prompt + "\n")
        records.append({"prompt": item.prompt, "image": image, "mask": grey})
        if len(cells) < _MOST_CELLS:
            cells.append((item.prompt, masked_thumbnail(item.image, item.mask)))
    write_text(out / ROWS_FILE, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))
    with replacing(out / SHEET_FILE) as temporary:
        contact_sheet(cells).save(temporary, "PNG")


def masked_thumbnail(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The image, small, with its masked pixels tinted."""
    veil = Image.fromarray(np.where(mask, 150, 0).astype(np.uint8))
    shown = Image.composite(Image.new("RGB", image.size, _TINT), image.convert("RGB"), veil)
    if max(shown.size) < _CELL:
        scale = _CELL // max(shown.size)
        return shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)
    shown.thumbnail((_CELL, _CELL))
    return shown


def contact_sheet(cells: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """One picture of (label, thumbnail) cells; long labels are cut."""
    rows = -(-len(cells) // _COLUMNS)
    wide, high = _CELL + _GAP, _CELL + _LABEL + _GAP
    page = Image.new("RGB", (min(len(cells), _COLUMNS) * wide + _GAP, rows * high + _GAP), "white")
    pen = ImageDraw.Draw(page)
    for place, (label, picture) in enumerate(cells):
        left, top = _GAP + place % _COLUMNS * wide, _GAP + place // _COLUMNS * high
        pen.text((left, top), label[: _CELL // 6].encode("ascii", "replace").decode(), "black")
        page.paste(picture, (left, top + _LABEL))
    return page


def _shapes(count: int, seed: int, split: str, kind: str) -> Iterator[Item]:
    for index in range(count):
        row = inpainting_row(index, seed, split, change=True, regions=(kind,))  # type: ignore[arg-type]
        yield Item(f"{index:06d}", row.prompt, row.image, np.asarray(row.mask) > 0)


def _sources(source: Path) -> Iterator[tuple[str, str, str, Path]]:
    """(name, name in error messages, prompt, path of the image) of every row."""
    if source.is_dir():
        found = files_by_name(source / ORIGINALS)
        if not found:
            raise InputError(f"{source / ORIGINALS} holds no image: expected originals/ and prompts/")
        yield from (
            (name, f"{source}: {name}", prompt_of(source, name), path) for name, path in found.items()
        )
        return
    table = open_table(source)
    columns = table.find_column("prompt"), table.find_column("image")
    for index, (where, record, folder) in enumerate(read_all(table)):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        prompt, image = (None if name is None else record.get(name) for name in columns)
        error = prompt_error(prompt)
        if error or not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{where} has no prompt: {error or 'expected text'}")
        if not isinstance(image, str) or not image or "\0" in image:
            raise InputError(f"{where} has no image: expected a path")
        yield f"{index:06d}", where, prompt, folder / image


def _masked(rows: Sequence[tuple[str, str, str, Path]], kind: str, share: float, seed: int) -> Iterator[Item]:
    for index, (name, where, prompt, path) in enumerate(rows):
        try:
            image = upright(read_image(path)).convert("RGB")
        except ImageReadError as error:
            raise InputError(f"{where}: its image cannot be read: {error}") from error
        rng = np.random.default_rng([seed, index])
        yield Item(name, prompt, image, make_mask(kind, image.height, image.width, share, rng))


def _refuse_within(out: Path, sources: Sequence[Path]) -> None:
    """InputError if one of the sources is, after links are followed, the directory `out` or in it."""
    place = os.path.realpath(out)
    for source in sources:
        path = os.path.realpath(source)
        if Path(path).is_relative_to(place):
            raise InputError(f"{source} is read, and is within {out}, which is written: choose another --out")


def _check_room(out: Path, overwrite: bool) -> None:
    """OutputError unless `out` is new or empty, or, with `overwrite`, a data set that `write_data` wrote."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected the name of a directory")
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    found = [name for name in found if not name.startswith(TEMPORARY)]  # left by a run that was killed
    if found and not overwrite:
        raise OutputError(f"{out} exists; pass --overwrite (overwrite=True) to replace it")
    if strangers := [name for name in found if name not in _OWN]:
        raise OutputError(
            f"{out} holds more than a data set of masks ({listing(strangers, 3)}); choose another"
        )
    if found and ROWS_FILE not in found:
        raise OutputError(
            f"{out} holds no {ROWS_FILE}, which is written with masks; choose another directory"
        )


def _move(source: Path, target: Path, names: Sequence[str]) -> None:
    """Move those of the files and folders that are in `source` and not in `target`, in this order."""
    for name in names:
        if os.path.lexists(source / name) and not os.path.lexists(target / name):
            os.replace(source / name, target / name)


def _replace(out: Path, fresh: Path) -> None:
    """Move the data set in `fresh` to `out`; the one there is removed last, or put back on a failure."""
    old = temporary_for(out, out)
    try:
        old.mkdir()
        try:
            _move(out, old, _OWN)
            _move(fresh, out, _OWN[::-1])  # the rows last: where they are, all is there
        except BaseException:
            _move(out, fresh, _OWN)
            _move(old, out, _OWN[::-1])
            old.rmdir()
            raise
        for left in out.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}") from error
