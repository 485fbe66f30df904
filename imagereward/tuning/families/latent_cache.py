"""Keeps the latents of rows' pictures on disk, so that each is encoded once; reads preprocessed rows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from imagereward.errors import CheckpointError, InputError
from imagereward.images.orientation import upright
from imagereward.images.reading import read_image
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.preprocessed import PreprocessedRow
from imagereward.tuning.data.requests import Row, digest_of_pixels, name_row, prompt_of
from imagereward.tuning.families.autoencoder import Autoencoder, digest_of_autoencoder
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.image_conditioning import ImageConditioning, Latents
from imagereward.tuning.families.text_cache import claim, fill_together, store

FACTS_FILE = "latents.json"
# Increased whenever the files of a row change.
FORMAT = "1"


class CachedPictures:
    """A family's `pictures` that keeps a row's latents: one safetensors file a row, and their facts.

    pictures     what encodes them
    autoencoder  whose latents they are
    size         of the images in pixels
    directory    where the files are; made if missing. None: nothing is kept, and only preprocessed rows are
                 read

    A file has "source", the latents [C, h, w] of the whole image; "masked", those of the masked image, and
    "mask", uint8 [1, H, W] of 0 and 1, where the family takes a mask. Its name is a digest of the pictures'
    contents. A `PreprocessedRow` brings the same tensors. Raises InputError for a directory with latents of
    another autoencoder or size, and for a preprocessed row of another size; CheckpointError naming the row
    and the file of latents that cannot be read.
    """

    def __init__(
        self, pictures: ImageConditioning, autoencoder: Autoencoder, size: ImageSize, directory: Path | None
    ):
        self.pictures, self.autoencoder, self.size = pictures, autoencoder, size
        self.directory = directory.expanduser() if directory else None
        if self.directory is not None:
            claim(self.directory / FACTS_FILE, _facts(pictures, autoencoder, size), "latents")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The pictures that a row brings."""
        return self.pictures.inputs

    def __call__(
        self, rows: Sequence[Row], autoencoder: Autoencoder, size: ImageSize
    ) -> dict[str, torch.Tensor]:
        """The condition tensors of the rows' pictures; rows that are not there are encoded and kept."""
        found = [self._row(row, name_row(row, index)) for index, row in enumerate(rows)]
        device = autoencoder.vae.device
        names = [name for name in found[0] if all(name in each for each in found)]
        together = {name: torch.stack([each[name] for each in found]).to(device) for name in names}
        masks = together.pop("mask").float() if "mask" in together else None
        return self.pictures.arrange(autoencoder, together, masks)

    def missing(self, rows: Iterable[Row]) -> list[Row]:
        """The rows whose latents are not in the directory, each once."""
        by_path = {self._path(row, name_row(row, at)): row for at, row in enumerate(rows) if _encodes(row)}
        return [row for path, row in by_path.items() if path is not None and not path.is_file()]

    def fill(self, row: Row) -> None:
        """Encode and keep one row."""
        path = self._path(row, name_row(row, 0))
        if path is not None and not path.is_file():
            store(path, self._encoded(row), prompt_of(row))

    def _row(self, row: Row, where: str) -> Latents:
        if isinstance(row, PreprocessedRow):
            return self._preprocessed(row, where)
        path = self._path(row, where)
        if path is None:
            return self._encoded(row)
        if not path.is_file():
            store(path, self._encoded(row), prompt_of(row))
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{where}: its latents {path} cannot be read: {error}; delete the file"
            ) from error

    def _encoded(self, row: Row) -> Latents:
        columns = [
            column.to(self.autoencoder.vae.device) for column in self.pictures.pixels([row], self.size)
        ]
        found = self.pictures.encode(self.autoencoder, *columns)
        found.setdefault("source", self.autoencoder.encode(columns[0]))
        if "mask" in self.inputs:
            found["mask"] = columns[1].to(torch.uint8)
        return {name: value[0] for name, value in found.items()}

    def _path(self, row: Row, where: str) -> Path | None:
        if self.directory is None:
            return None
        digest = hashlib.sha256()
        for name in self.inputs:
            picture = getattr(row, name, None)
            if picture is None:
                raise InputError(f"{where} has no {name}: expected {', '.join(('prompt', *self.inputs))}")
            digest.update(_content(picture, where, name).encode())
        return self.directory / f"latents-{digest.hexdigest()[:32]}.safetensors"

    def _preprocessed(self, row: PreprocessedRow, where: str) -> Latents:
        found = row.conditions(self.inputs, where, self.size, self.autoencoder.shape)
        return {
            name: (value >= 0.5).to(torch.uint8) if name == "mask" else value.float()
            for name, value in found.items()
        }


def cache_pictures(denoiser: Denoiser, rows: Sequence[Row], directory: Path | None) -> None:
    """Make `denoiser` read rows' latents from the directory, where missing ones are first encoded.

    Each process encodes a part of them; all joined processes must call this.

    rows       of the whole training. Latents of preprocessed rows are read as they are
    directory  None: only preprocessed rows are read; nothing is kept

    Raises as `CachedPictures`.
    """
    shown: Any = denoiser
    if not denoiser.inputs or (directory is None and all(map(_encodes, rows))):
        return
    cached = CachedPictures(shown.pictures, denoiser.autoencoder, denoiser.resolution, directory)

    def fill(missing: Sequence[Row]) -> None:
        for row in missing:
            cached.fill(row)

    fill_together(lambda: cached.missing(rows), fill)
    shown.pictures = cached


@contextmanager
def encoder_aside(vae: torch.nn.Module) -> Iterator[None]:
    """A context in which the autoencoder's encoder is on the CPU, where it still encodes; then it is back."""
    encoder = vae.encoder
    device = next(encoder.parameters()).device  # type: ignore[union-attr]
    vae.encoder = _OnCPU(encoder.to("cpu"))  # type: ignore[operator,assignment]
    try:
        yield
    finally:
        vae.encoder = encoder.to(device)  # type: ignore[operator,assignment]


class _OnCPU(torch.nn.Module):
    """Runs a module on the CPU; it is hidden from `parameters`, whose first decides the device of a whole."""

    def __init__(self, module: Any):
        super().__init__()
        self._hidden = (module,)

    def forward(self, x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        return self._hidden[0](x.cpu(), *arguments, **named).to(x.device)


def _encodes(row: Row) -> bool:
    return not isinstance(row, PreprocessedRow)


def _facts(pictures: ImageConditioning, autoencoder: Autoencoder, size: ImageSize) -> dict[str, str]:
    """Everything that the latents of a picture depend on."""
    vae = autoencoder.vae
    return {
        "format": FORMAT,
        "autoencoder": digest_of_autoencoder(vae),
        "autoencoder precision": str(vae.dtype).removeprefix("torch."),
        "latents": " x ".join(map(str, autoencoder.shape)),
        "resolution": str(size),
        "pictures": ", ".join(pictures.inputs),
    }


def _content(picture: Any, where: str, name: str) -> str:
    """A digest of a picture's file, or of its pixels."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    if not isinstance(picture, str | Path):
        return digest_of_pixels(upright(read_image(picture)))
    try:
        stat = Path(picture).stat()
        return _file_digest(str(picture), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{where}: its {name} {picture} cannot be read: {error}") from error


@lru_cache(maxsize=100_000)
def _file_digest(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file, read once while its size and time of change are the same."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
