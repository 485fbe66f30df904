"""read_state_dict: reads the state dict from a local file of weights, without running code from it."""

import os
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from imagereward.errors import CheckpointError, listing

WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors")


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors by name of a `.safetensors`, `.pt` or `.pth` file, mapped from disk where possible.

    The file holds a state dict, or a dict with a state dict under `model`, `state_dict` or `module`. The
    prefix `module.` of data-parallel training is removed if all names have it. No code from the file is run.
    Raises CheckpointError for a file that is missing or damaged, is compressed, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        read = safetensors.torch.load_file if path.suffix == ".safetensors" else _read_torch
        state: Any = read(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise CheckpointError(
            f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: it is damaged, "
            f"half-downloaded, or holds more than tensors ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    for container in ("model", "state_dict", "module"):
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"checkpoint {path} holds no state dict")
    if others := [name for name, value in state.items() if not _is_named_tensor(name, value)]:
        raise CheckpointError(f"checkpoint {path}: not tensors: {listing(others)}")
    if others := [name for name, value in state.items() if not _holds_numbers(value)]:
        raise CheckpointError(
            f"checkpoint {path}: expected plain tensors that hold their numbers; sparse, quantized or "
            f"of the meta device: {listing(others)}. Save them dense, from the CPU"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _read_torch(path: Path):
    with open(path, "rb") as stream:
        mapped = stream.read(4) == b"PK\3\4"  # older than torch 1.6: no zip, cannot be mapped
    if mapped:
        _check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(
            f"checkpoint {path} is a TorchScript archive, which holds code; "
            "use the same weights as a state dict or safetensors"
        )
    # torch.save does not compress. A compressed file of 13 MB could hold 7 GB of zeros.
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            f"checkpoint {path} is a compressed archive ({size} bytes, {unpacked} unpacked); expected one as "
            "torch.save writes it, without compression: load it with torch and save it again"
        )


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _holds_numbers(value: torch.Tensor) -> bool:
    return value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)
