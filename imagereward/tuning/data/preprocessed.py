"""Rows that other programs have encoded: metadata.json, and a .pt file for each tensor in folders beside it.

The layout of DanceGRPO's preprocessing and of its forks for inpainting: metadata.json is a list of records
with `caption` and the names of files in the folders prompt_embed/, pooled_prompt_embeds/, text_ids/,
source_latents/, masked_latents/ and mask_latents/. Files are tensors alone, read with weights_only=True.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from imagereward.errors import CheckpointError, InputError
from imagereward.images.row_pictures import check_mask
from imagereward.records import prompt_error
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.requests import Request

METADATA_FILE = "metadata.json"
MOST_BYTES = 2**30  # of one tensor's file
# Name of a tensor here -> (its folder, the keys of a record that may name its file).
FILES = {
    "prompt": ("prompt_embed", ("prompt_embed_path", "prompt_embed")),
    "pooled": ("pooled_prompt_embeds", ("pooled_prompt_embeds_path", "pooled_prompt_embeds")),
    "source": ("source_latents", ("source_latents_path", "source_latents")),
    "masked": ("masked_latents", ("masked_latents_path", "masked_latents")),
    "mask": ("mask_latents", ("mask_latents_path", "mask_latents")),
}


class PreprocessedRow(Request):
    """A row whose tensors are files; it has no image, and its mask is read from its file.

    prompt  the caption
    files   {name of `FILES`: path}; "prompt" [T, D], "pooled" [D], "source" and "masked" [C, h, w], already
            shifted and scaled as the generator takes them, "mask" [1, H, W] in pixels, 1 where to paint anew
    where   its name in error messages: the file and the record
    """

    files: Mapping[str, Path]

    def __init__(self, prompt: str, files: Mapping[str, Path], metadata: Mapping[str, Any], where: str):
        values = {"prompt": prompt, "files": files, "metadata": metadata, "where": where}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def image(self) -> None:  # type: ignore[override]
        """None: only latents of the image are there."""
        return None

    @property
    def mask(self) -> torch.Tensor | None:  # type: ignore[override]
        """float32 [1, H, W] of 0 and 1; None without a file."""
        return (self.tensor("mask", self.where) >= 0.5).float() if "mask" in self.files else None

    @property
    def has_text(self) -> bool:
        """Whether the prompt's embedding is there."""
        return "prompt" in self.files

    def conditions(
        self,
        inputs: Sequence[str],
        where: str,
        size: ImageSize | None = None,
        latents: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """{name: tensor}, checked, that a model with these inputs takes: "source", or "masked" and "mask".

        where    the row's name in error messages
        size     of the model's images; None: any
        latents  shape (C, h, w) of their latents; None: any

        Raises InputError and CheckpointError as `tensor` does, and InputError for a tensor of another shape
        and for a mask that is empty or 1 everywhere.
        """
        names = ("masked", "mask") if "mask" in inputs else ("source",)
        found = {name: self.tensor(name, where) for name in names}
        mask_shape = None if size is None else (1, *size)
        for name, value in found.items():
            expected = mask_shape if name == "mask" else latents
            if expected is not None and list(value.shape) != list(expected):
                raise InputError(
                    f"{where}: {self.files[name]} is {list(value.shape)}; expected {list(expected)}, as this "
                    f"model has it at {size}: it is of another autoencoder or resolution"
                )
        if "mask" in found:
            white = found["mask"] >= 0.5
            check_mask(bool(white.any()), bool(white.all()), f"{where}: its mask {self.files['mask']}")
        return found

    def tensor(self, name: str, where: str) -> torch.Tensor:
        """One of the row's tensors, on the CPU.

        where   the row's name in error messages

        Raises InputError if the row has no such file; CheckpointError naming the file if it cannot be read,
        holds more than a tensor, or is not finite.
        """
        if name not in self.files:
            raise InputError(f"{where} has no {FILES[name][1][0]}: expected a file in {FILES[name][0]}/")
        path = self.files[name]
        try:
            if path.stat().st_size > MOST_BYTES:
                raise CheckpointError(f"{where}: {path} has more than {MOST_BYTES} bytes")
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{where}: {path} cannot be read as a tensor: {_first_line(error)}"
            ) from error
        if not isinstance(found, torch.Tensor):
            raise CheckpointError(f"{where}: {path} holds a {type(found).__name__}; expected a tensor")
        if not found.isfinite().all():
            raise CheckpointError(f"{where}: {path} has values that are NaN or infinite")
        return found


def is_preprocessed(path: Path) -> bool:
    """Whether a path is such a folder, or its metadata.json."""
    return path.name == METADATA_FILE or (path / METADATA_FILE).is_file()


def read_preprocessed(path: Path) -> list[tuple[PreprocessedRow, str]]:
    """[(row, its name in error messages)] of a folder or its metadata.json.

    Raises InputError for records without a caption or latents, and for files that are missing or outside the
    folder.
    """
    path = path if path.name == METADATA_FILE else path / METADATA_FILE
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(records, list) or not records:
        raise InputError(f"{path}: expected a list of records with caption and paths of latents")
    return [
        (_row(record, path.parent, f"{path}: record {i}"), f"{path}: record {i}")
        for i, record in enumerate(records)
    ]


def _row(record: Any, root: Path, where: str) -> PreprocessedRow:
    if not isinstance(record, dict):
        raise InputError(f"{where} is a {type(record).__name__}; expected caption and paths of latents")
    caption = record.get("caption", record.get("prompt"))
    if (error := prompt_error(caption)) or not str(caption).strip():
        raise InputError(f"{where} has no caption: {error or 'it is blank'}")
    files = {}
    for name, (folder, keys) in FILES.items():
        value = next((record[key] for key in keys if record.get(key)), None)
        if value is not None:
            files[name] = _inside(root, folder, value, where)
    if not {"source", "masked"} & files.keys():
        raise InputError(f"{where} has no latents: expected masked_latents_path or source_latents_path")
    known = {key for _, keys in FILES.values() for key in keys} | {"caption", "text_ids"}
    metadata = {key: value for key, value in record.items() if key not in known}
    return PreprocessedRow(str(caption), files, metadata, where)


def _inside(root: Path, folder: str, value: Any, where: str) -> Path:
    """The file `value` of a folder, given by its name or with the folder; InputError if it is elsewhere."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {folder} is {value!r:.100}; expected the name of a file")
    inner = (root / folder).resolve()
    for path in (root / folder / value, root / value):
        found = path.resolve()
        if inner in found.parents and found.is_file():
            return found
    if inner not in (root / folder / value).resolve().parents:
        raise InputError(f"{where}: {value} lies outside {root / folder}; expected a file inside it")
    raise InputError(f"{where}: {root / folder / value} does not exist")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
