"""Pictures that records name by path or hold as bytes: reading them, checking them, and sets of them."""

import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from tqdm import tqdm

from imagereward.errors import ImageReadError, InputError, listing
from imagereward.images.orientation import upright
from imagereward.images.reading import read_encoded, read_image
from imagereward.images.row_pictures import cropped_mask, mask_name
from imagereward.records import Table, find_column, prompt_error
from imagereward.tuning.data.image_size import CoverCrop, ImageSize
from imagereward.tuning.data.requests import Request, Row, as_request, name_row, open_pictures

log = logging.getLogger(__name__)

Picture: TypeAlias = Path | bytes  # a file, or an encoded image
MOST_HELD = 2**33  # most bytes of a table that holds pictures, which stay in memory


class Images(Protocol):
    """A sequence of images of one size. Item i is a dict with `pixels`, uint8 [3, H, W]."""

    @property
    def identity(self) -> str:
        """A string that is equal for equal images; it is part of the name of files with cached latents."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


class DistinctImages:
    """Images of which each is held once: upright, resized to cover a size, and cropped at the centre.

    preprocess  resizes and crops
    pictures    {SHA-256 of the encoded image: the picture}, in order
    """

    def __init__(self, preprocess: CoverCrop, pictures: Mapping[str, Picture]):
        self.preprocess = preprocess
        self.digests, self.pictures = list(pictures), list(pictures.values())

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def identity(self) -> str:
        """The preprocessing, and the SHA-256 of every encoded image."""
        return repr((self.preprocess, self.digests))

    def __getitem__(self, index: int) -> dict:
        return {"pixels": self.preprocess.pixels(upright(read_image(self.pictures[index], index)))}


class Checked(NamedTuple):
    """What the check of a picture found.

    digest  SHA-256 (hex) of the encoded image; "" for a picture with a fault
    size    (width, height) in pixels, upright
    fault   why the picture cannot be used; None if it can
    """

    digest: str
    size: tuple[int, int]
    fault: str | None


def picture_in(record: Mapping[str, Any], name: str, where: str, folder: Path) -> Picture | None:
    """The picture under the key `name` or `name`_path: text is a path relative to `folder`, bytes an image.

    A dict of `bytes` and `path` is Hugging Face's image in Parquet. None without the key, and for an empty
    cell. Raises InputError for a cell of another type.
    """
    key = find_column(record, name, where, (name, f"{name}_path"))
    cell = record.get(key or "")
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or cell in ("", b""):
        return None
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise InputError(f"{where}, {name}: expected a path or bytes, found {type(cell).__name__}")
    return folder / cell


def prompt_column(table: Table, wanted: str | None) -> str | None:
    """The column of a table's prompts: `wanted`, or else by the usual names; None without any.

    Raises InputError, naming the table and its columns, if it lacks the column `wanted`.
    """
    if wanted is None:
        return table.find_column("prompt")
    if wanted not in (present := table.columns()):
        raise InputError(
            f"{table.name} has no column {wanted!r} of prompts; its columns are {listing(present)}"
        )
    return wanted


def row_in(
    record: Mapping[str, Any], column: str | None, inputs: Sequence[str], where: str, folder: Path
) -> Row:
    """The record's prompt, with the pictures that `inputs` names.

    column  the key of the prompt
    inputs  the pictures that the model takes, of "image" and "mask"

    Raises InputError for a record without a prompt, and for a picture that is missing.
    """
    prompt = record.get(column or "")
    if (error := prompt_error(prompt)) or not str(prompt).strip():
        raise InputError(f"{where} has no prompt: {error or 'it is blank'}")
    return with_pictures(str(prompt), record, inputs, where, folder)


def with_pictures(
    prompt: str, record: Mapping[str, Any], inputs: Sequence[str], where: str, folder: Path
) -> Row:
    """The prompt with the record's pictures that `inputs` names; InputError for one that is missing."""
    if not inputs:
        return prompt
    pictures: dict[str, Any] = {name: picture_in(record, name, where, folder) for name in inputs}
    for name, picture in pictures.items():
        if picture is None:
            raise InputError(f"{where} has no {name}: this model takes {', '.join(('prompt', *inputs))}")
    return Request(prompt, **pictures, where=where)


def pictures_of(row: Row, inputs: Sequence[str]) -> dict[str, Picture]:
    """{name: picture} of the row's pictures that `inputs` names."""
    return {name: getattr(row, name) for name in inputs}


def check_sizes(pictures: Mapping[str, Picture], checked: Mapping[Picture, Checked], where: str) -> None:
    """Raises InputError unless a record's pictures, {name: picture}, have one size."""
    sizes = {name: checked[picture].size for name, picture in pictures.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {width}x{height}" for name, (width, height) in sizes.items())
        raise InputError(f"{where}: expected pictures of one size, got {found} pixels")


def check_masks(rows: Sequence[Row], size: ImageSize) -> None:
    """Read every mask of the rows once, and no other picture, in threads.

    Raises InputError naming the row for a mask that is empty or white everywhere, or of which the crop to
    `size` leaves nothing or everything.
    """

    def check(row: Row) -> None:
        where = name_row(row, 0)
        cropped_mask(open_pictures(row, ("mask",), where)[0], size, mask_name(row, where))

    of_mask: dict[Any, Row] = {}
    for row in rows:
        of_mask.setdefault(as_request(row).mask, row)
    for _ in _in_threads(check, list(of_mask.values())):
        pass


def check_held(path: Path) -> None:
    """Raises InputError for a table in Parquet that is too large for its pictures to be held in memory."""
    if path.suffix.lower() == ".parquet" and path.is_file() and path.stat().st_size > MOST_HELD:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes; expected at most {MOST_HELD}, because pictures in a "
            "table stay in memory: split it, or write the pictures to files and their paths to the table"
        )


def check_pictures(
    source: str | os.PathLike, names: Mapping[Picture, str], max_bad_share: float
) -> dict[Picture, Checked]:
    """Decode every picture once, in threads; logs the unusable ones as a warning.

    names          {picture: its name in messages}
    max_bad_share  largest share of the pictures that may be missing or damaged, 0..1

    Raises InputError, naming `source` and pictures, for more unusable ones.
    """
    checked = dict(zip(names, _in_threads(_checked, list(names))))
    faults = [f"{names[picture]}: {found.fault}" for picture, found in checked.items() if found.fault]
    report_unusable(source, faults, len(names), max_bad_share)
    return checked


def unreadable(paths: Sequence[Path]) -> dict[str, str]:
    """{path: cause} of the files that do not decode as images. Files are decoded in threads."""
    return {str(path): found for path, found in zip(paths, _in_threads(_fault, paths)) if found}


def report_unusable(
    source: str | os.PathLike, causes: Collection[str], count: int, max_bad_share: float
) -> None:
    """Log why some of the `count` images of `source` cannot be used.

    Raises InputError if they are more than the share `max_bad_share` (0..1).
    """
    found = f"{source}: {len(causes)} of {count} images cannot be used: "
    if len(causes) > max_bad_share * count:
        raise InputError(
            f"{found}{listing(causes, 4)}; at most {max_bad_share:.2%} may be unusable; repair them, or set "
            "a larger max_bad_share="
        )
    if causes:
        log.warning("%s%s; they are skipped", found, listing(causes, 20))


def _in_threads(check: Any, items: Sequence[Any]) -> Iterable[Any]:
    with ThreadPoolExecutor(thread_name_prefix="imagereward-check") as pool:
        found = pool.map(check, items)
        disable = len(items) < 5000
        yield from tqdm(found, "checking images", len(items), disable=disable, unit="image")


def _fault(picture: Picture) -> str | None:
    return _checked(picture).fault


def _checked(picture: Picture) -> Checked:
    try:
        size = upright(read_image(picture)).size
        encoded = picture if isinstance(picture, bytes) else read_encoded(picture)
    except ImageReadError as error:
        return Checked("", (0, 0), str(error).removeprefix("images[0] "))
    return Checked(hashlib.sha256(encoded).hexdigest(), size, None)
