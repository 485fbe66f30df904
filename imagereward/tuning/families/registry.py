"""Opens a diffusers pipeline as its family's Denoiser; which pipeline class belongs to which family."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from imagereward.errors import CheckpointError, InputError
from imagereward.lookup import find
from imagereward.tuning.data.image_size import Resolution
from imagereward.tuning.families.base import Denoiser

# The pipeline class that a directory's model_index.json names -> what makes its Denoiser.
FAMILIES = {
    "StableDiffusionPipeline": "imagereward.tuning.families.sd:SDDenoiser",
    "StableDiffusionInpaintPipeline": "imagereward.tuning.families.sd:inpainting",
    "StableDiffusionXLPipeline": "imagereward.tuning.families.sdxl:SDXLDenoiser",
    "StableDiffusion3Pipeline": "imagereward.tuning.families.sd3:SD3Denoiser",
    "FluxPipeline": "imagereward.tuning.families.flux:FluxDenoiser",
    "FluxKontextPipeline": "imagereward.tuning.families.flux:kontext",
    "FluxFillPipeline": "imagereward.tuning.families.flux:fill",
}


def family_of(pipeline: str) -> str:
    """The "module:name" of a pipeline class's family. Raises InputError naming the known classes."""
    if pipeline not in FAMILIES:
        raise InputError(
            f"{pipeline} is no family that can be trained; known: {', '.join(FAMILIES)}; for others "
            'family="module:name" names what makes their Denoiser'
        )
    return FAMILIES[pipeline]


def open_denoiser(
    source: str | os.PathLike | Any,
    resolution: Resolution | None = None,
    dtype: torch.dtype = torch.float32,
    family: str | None = None,
) -> Denoiser:
    """A diffusers pipeline as its family's Denoiser.

    source      a pipeline, or a directory or hub id of one
    resolution  of the images in pixels: one number for a square, or (height, width); default: the model's own
    dtype       of the weights that are read from files; the autoencoder's are float32 always
    family      "module:name" of a class or function (pipeline, resolution) -> Denoiser; default: the
                pipeline's class decides, see FAMILIES

    Raises InputError for a family that is not known, and for a height or width that is no multiple of what
    the model takes; CheckpointError for a pipeline that cannot be read.
    """
    pipeline = source
    if isinstance(source, str | os.PathLike):
        pipeline = _read(source, dtype, known=family is not None)
    family = family or family_of(type(pipeline).__name__)
    make = find(family, "family", f"none for {', '.join(FAMILIES)}")
    return make(pipeline, resolution)


def _read(source: str | os.PathLike, dtype: torch.dtype, known: bool) -> Any:
    """A pipeline from its files. Unless `known`, its class must be in FAMILIES, or no file is fetched."""
    from diffusers import DiffusionPipeline

    path = Path(source).expanduser()
    source = str(path if path.is_dir() else source)
    try:
        index = DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: {_why_absent(path)}; expected a directory with model_index.json, as save_pretrained "
            f"leaves it, or a repository of the hub as owner/name ({_first_line(error)})"
        ) from error
    if not known:
        family_of(str(index.get("_class_name")))
    # diffusers must be told which components the pipeline was saved without, such as SD3's T5.
    absent = [
        name for name, component in index.items() if isinstance(component, list | tuple) and not component[0]
    ]
    dtypes = {"default": dtype, "vae": torch.float32}
    with _reading(source):
        return DiffusionPipeline.from_pretrained(source, dtype=dtypes, **dict.fromkeys(absent))


def _why_absent(path: Path) -> str:
    if path.is_dir():
        return "the directory holds no diffusers pipeline"
    return "there is no such directory here, and no pipeline of that name could be read from the hub"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be read as a diffusers pipeline: {error}") from error
