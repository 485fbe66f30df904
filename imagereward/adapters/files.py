"""Files of an adapter, config.json and adapter.safetensors; and the hashes by which it knows its base."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from imagereward.config import AdapterConfig, read_json, strict
from imagereward.errors import CheckpointError, OutputError
from imagereward.precision import DTYPES
from imagereward.version import __version__
from imagereward.writing import replacing

CONFIG_FILE, WEIGHTS_FILE = "config.json", "adapter.safetensors"
# Prefix of adapters' weights in a scorer's state dict.
PREFIX = "adapters."
EXTRA_FILES = ("README.md", "summary.json")  # what training writes beside an adapter
LOADING = re.compile(r"""adapter=(["']).*?\1""")
MOST_BYTES = 2**31  # of a file of weights


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict without its adapters, under the names that it has without them."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if not name.startswith(PREFIX) and ".lora_" not in name
    }


def formats_of(model: nn.Module) -> list[str]:
    """The number formats in which the model's weights are known: its own, and narrower ones than float32."""
    half = {value.dtype for value in plain_state(model).values() if value.dtype.itemsize < 4}
    names = [name for name, each in DTYPES.items() if each in (half or DTYPES.values())]
    return [name for name in names if name != "float64"]


def weights_hashes(model: nn.Module, formats: Sequence[str] | None = None) -> dict[str, str]:
    """{number format: SHA-256 of the model's own weights in it}, by default for all of `formats_of`.

    So an adapter that was made in float32 is known to belong to the same weights loaded in half precision.
    """
    state = plain_state(model)
    kept = tuple(getattr(model, "float32_prefixes", ()))
    return {name: _hash(state, DTYPES[name], kept) for name in formats or formats_of(model)}


def _hash(state: Mapping[str, torch.Tensor], dtype: torch.dtype, kept: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        value = value.to("cpu", torch.float32 if name.startswith(kept) else dtype).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_base(config: AdapterConfig, model: nn.Module, source: str) -> None:
    """Raises CheckpointError if the adapter was made for a model with other weights."""
    if not config.weights:
        return
    formats = formats_of(model)
    common = [each for each in formats if each in config.weights][:1]  # one hash decides, and takes seconds
    name = getattr(model, "name", type(model).__name__)
    if not common:
        raise CheckpointError(
            f"{source} was made for {config.base} in {', '.join(config.weights)}, and {name} is loaded in "
            f"{', '.join(formats)}: load it in that format"
        )
    if weights_hashes(model, common)[common[0]] != config.weights[common[0]]:
        raise CheckpointError(
            f"{source} is an adapter for {config.base}, and the weights of {name} are others: put it on the "
            "scorer that it was made for"
        )


def save_adapter(
    config: AdapterConfig, weights: Mapping[str, torch.Tensor], directory: str | os.PathLike
) -> Path:
    """Write both files to `directory`, complete before either gets its name; returns the directory.

    Raises OutputError if a file cannot be written.
    """
    directory = Path(directory).expanduser()
    text = json.dumps({**_header(), "adapter": asdict(config)}, indent=2) + "\n"
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    with replacing(directory / CONFIG_FILE) as described, replacing(directory / WEIGHTS_FILE) as file:
        described.write_text(text, encoding="utf-8")
        try:
            safetensors.torch.save_file(plain, file, {"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, among others
            raise OutputError(f"{directory / WEIGHTS_FILE} cannot be written: {error}") from error
    return directory


class Upload(NamedTuple):
    """The files of an adapter for a repository of the hub.

    directory  where it was saved, or read from; None: nowhere
    """

    config: AdapterConfig
    weights: Mapping[str, torch.Tensor]
    directory: Path | None
    repo_id: str

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write both files, and those of `EXTRA_FILES` that lie beside a saved copy of the same weights.

        A line in them that loads the adapter from the local directory loads it from the repository instead.
        """
        save_adapter(self.config, self.weights, directory)
        if self.directory is None or not self._saved_there(self.directory):
            return
        for name in EXTRA_FILES:
            if (self.directory / name).is_file():
                text = (self.directory / name).read_text(encoding="utf-8")
                text = LOADING.sub(lambda _: f"adapter={self.repo_id!r}", text)
                (Path(directory) / name).write_text(text, encoding="utf-8")

    def _saved_there(self, directory: Path) -> bool:
        try:
            saved = read_adapter(directory)[1]
        except CheckpointError:  # removed or replaced since
            return False
        return saved.keys() == self.weights.keys() and all(
            torch.equal(value, self.weights[name].detach().to("cpu", value.dtype))
            for name, value in saved.items()
        )


def _header() -> dict[str, Any]:
    return {"library": "imagereward", "version": __version__}


def read_adapter(directory: str | os.PathLike) -> tuple[AdapterConfig, dict[str, torch.Tensor]]:
    """(config, weights) of a directory that `save_adapter` wrote. Raises CheckpointError for any other."""
    directory = Path(directory).expanduser()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory / name} is missing: expected an adapter's directory, with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}, as its save_pretrained writes it"
            )
    path = directory / WEIGHTS_FILE
    try:
        config = strict(AdapterConfig, dict(read_json(directory / CONFIG_FILE)["adapter"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE} describes no adapter: {error}") from error
    if path.stat().st_size > MOST_BYTES:
        raise CheckpointError(f"{path} has more than {MOST_BYTES} bytes: no adapter is as large")
    try:
        return config, safetensors.torch.load_file(path)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise CheckpointError(f"{path} cannot be read: it is damaged or cut off ({error})") from error
