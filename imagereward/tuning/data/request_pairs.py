"""RequestPairs: (request, target image) pairs for models that are shown pictures beside the prompt."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from imagereward.errors import InputError
from imagereward.records import open_table, read_all
from imagereward.tuning.data.image_size import CoverCrop
from imagereward.tuning.data.pictures import (
    Checked,
    DistinctImages,
    Picture,
    check_held,
    check_masks,
    check_pictures,
    check_sizes,
    picture_in,
    pictures_of,
    prompt_column,
    row_in,
)
from imagereward.tuning.data.requests import Row, prompts_of


class Example(NamedTuple):
    """A record: its name in messages, the row, the image that the model should make, and all its pictures.

    pictures   {name: picture} of the row and of the target
    """

    where: str
    row: Row
    target: Picture
    pictures: dict[str, Picture]


class RequestPairs(Dataset):
    """(request, target image) pairs from a table in one file (see `imagereward.records`).

    path           the table: records of {prompt, image, mask, target} with the pictures that `inputs` names.
                   A picture is a path relative to the table's folder or, in Parquet, bytes. `target` is the
                   image that the model should make; of a model that takes a mask it may be left out, and is
                   the image itself then, whose region under the mask the model learns to paint
    inputs         the pictures that the model takes, of "image" and "mask"
    preprocess     resizes and crops a target
    max_bad_share  largest share of pictures that may be missing or damaged, 0..1; their pairs are skipped
    encoding       encoding of a text file; default: its byte order mark, else UTF-8
    column         the table's column of prompts; default: by the usual names

    All pictures are decoded once at the start, and turned upright. Raises InputError naming the file and the
    record for one without a prompt, a picture or a target, for a mask, or beside a mask a target, of another
    size than the image, for a mask that is empty or white everywhere, in its file or as the crop leaves it,
    for more damaged pictures than `max_bad_share`, and for a table without usable pairs.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        inputs: Sequence[str],
        preprocess: CoverCrop,
        max_bad_share: float = 0.01,
        encoding: str | None = None,
        column: str | None = None,
    ):
        path = Path(path).expanduser()
        examples = _examples(path, inputs, encoding, column)
        names: dict[Picture, str] = {}
        for each in examples:
            for name, picture in each.pictures.items():
                names.setdefault(picture, f"{each.where}, {name}")
        checked = check_pictures(path, names, max_bad_share)
        usable = [each for each in examples if _usable(each, checked, inputs)]
        if not usable:
            raise InputError(f"{path} holds no pair of a prompt and a usable target")
        self.rows: list[Row] = [each.row for each in usable]
        if "mask" in inputs:
            check_masks(self.rows, preprocess.size)
        self.skipped = len(examples) - len(usable)
        targets = {checked[each.target].digest: each.target for each in usable}
        places = {digest: place for place, digest in enumerate(targets)}
        self._targets = DistinctImages(preprocess, targets)
        self._place_of = [places[checked[each.target].digest] for each in usable]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def texts(self) -> list[str]:
        """All prompts."""
        return prompts_of(self.rows)

    @property
    def identity(self) -> str:
        """The preprocessing, the SHA-256 of every target, and the target of every pair."""
        return repr((self._targets.identity, self._place_of))

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self._targets[self._place_of[index]]
        return {"prompt": prompts_of([self.rows[index]])[0], "wrong": [], **pixels}


def _examples(path: Path, inputs: Sequence[str], encoding: str | None, column: str | None) -> list[Example]:
    check_held(path)
    table = open_table(path, encoding=encoding, split=False)
    column, examples = prompt_column(table, column), []
    for where, record, folder in read_all(table):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        row = row_in(record, column, inputs, where, folder)
        shown = pictures_of(row, inputs)
        target = picture_in(record, "target", where, folder)
        if target is None and "mask" not in inputs:
            raise InputError(
                f"{where} has no target: expected the image that the model should make; "
                f"this model takes {', '.join(('prompt', *inputs))}"
            )
        target = shown["image"] if target is None else target
        examples.append(Example(where, row, target, {**shown, "target": target}))
    return examples


def _usable(each: Example, checked: dict[Picture, Checked], inputs: Sequence[str]) -> bool:
    """Whether all pictures of a record can be read; InputError for pictures that do not cover each other."""
    if any(checked[picture].fault for picture in each.pictures.values()):
        return False
    if "mask" in inputs:
        check_sizes(each.pictures, checked, each.where)
    return True
