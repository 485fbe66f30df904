"""LatentImages, LatentPairs: the images of pairs as latents, encoded at each access or once, in a file."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.data.pictures import Images
from imagereward.tuning.data.preferences import PreferencePairs
from imagereward.tuning.distributed import of_first_process, rank_and_ranks, wait_for_everyone
from imagereward.tuning.families.autoencoder import Autoencoder, digest_of_autoencoder
from imagereward.writing import replacing

ENCODED_AT_ONCE = 32  # images in a batch of the autoencoder, to fill the file
MET_AFTER = 64 * ENCODED_AT_ONCE  # images after which waiting processes are met


class Latents:
    """Images as latents, in the images' order.

    images       of the autoencoder's size
    autoencoder  encodes an image to the mean of its posterior
    cache        directory for a file with all latents, whose name has a digest of the images and the
                 autoencoder; the file is written by `fill`, or else at the first access. None: each access
                 encodes anew
    """

    def __init__(self, images: Images, autoencoder: Autoencoder, cache: Path | None = None):
        self._images, self._autoencoder = images, autoencoder
        self._cache = cache
        self._cached: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, indices: Sequence[int]) -> torch.Tensor:
        """The latents [B, C, h, w] float32 of the images with these indices."""
        if self._file is None:
            return self._encoded(indices)
        if self._cached is None:
            if not self._file.is_file():
                self._fill(self._file)
            self._cached = load_file(self._file)["latents"]
        return self._cached[list(indices)]

    @property
    def cached(self) -> bool:
        """Whether there is a cache, so that no access but the first encodes."""
        return self._cache is not None

    def fill(self) -> None:
        """Write the file, if there is a cache without one: the first process does, while the others wait.

        All joined processes must call this.
        """
        if self._file is None:
            return
        if not of_first_process(self._file.is_file()):
            self._fill(self._file, rank_and_ranks()[0] == 0, wait_for_everyone)
        wait_for_everyone()

    def _encoded(self, indices: Sequence[int]) -> torch.Tensor:
        pixels = torch.stack([self._images[index]["pixels"] for index in indices])
        return self._autoencoder.encode(pixels.to(self._autoencoder.vae.device).float() / 255)

    def _fill(self, path: Path, mine: bool = True, meet: Callable[[], None] = lambda: None) -> None:
        """Encode all images, where `mine` is true; `meet` is called in between, as often in every process."""
        parts = []
        starts = range(0, len(self), ENCODED_AT_ONCE)
        for at in tqdm(starts, desc="latents", unit="batch", disable=not mine):
            if mine:
                parts.append(self._encoded(range(at, min(at + ENCODED_AT_ONCE, len(self)))).cpu())
            if at % MET_AFTER == 0:  # processes do not wait for each other for hours
                meet()
        if mine:
            with replacing(path) as temporary:
                save_file({"latents": torch.cat(parts).contiguous()}, temporary)

    @cached_property
    def _file(self) -> Path | None:
        """The cache's file; None without one. Kept, for the autoencoder's encoder may be hidden later."""
        if self._cache is None:
            return None
        digest = hashlib.sha256(
            f"{self._images.identity} {digest_of_autoencoder(self._autoencoder.vae)}".encode()
        )
        return self._cache / f"latents-{digest.hexdigest()[:16]}.safetensors"


class LatentImages:
    """(prompt, image) pairs as rows (`rows`, with their prompts in `texts`) and latents (`latents(indices)`).

    The arguments are those of `Latents`, with `pairs` as the images.
    """

    def __init__(self, pairs: Pairs, autoencoder: Autoencoder, cache: Path | None = None):
        self.pairs, self.rows, self.texts = pairs, pairs.rows, pairs.texts
        self.latents = Latents(pairs, autoencoder, cache)
        self.fill = self.latents.fill

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def encodes(self) -> bool:
        """Whether images, or the pictures of rows, are encoded when they are asked for."""
        return not self.latents.cached or not isinstance(self.rows[0], str)


class LatentPairs:
    """Preferences as rows (`rows`, with their prompts in `texts`) and latents (`latents(indices)`).

    The arguments are those of `Latents`, with the images of `pairs`. A cache holds each image once, however
    many pairs it is in.
    """

    def __init__(self, pairs: PreferencePairs, autoencoder: Autoencoder, cache: Path | None = None):
        self.pairs, self.rows, self.texts = pairs, pairs.rows, pairs.texts
        self._latents = Latents(pairs.images, autoencoder, cache)
        self.fill = self._latents.fill

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def encodes(self) -> bool:
        """Whether images, or the pictures of rows, are encoded when they are asked for."""
        return not self._latents.cached or not isinstance(self.rows[0], str)

    def latents(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents of B pairs: chosen and rejected, each float32 [B, C, h, w]."""
        places = [side[index] for side in (self.pairs.chosen, self.pairs.rejected) for index in indices]
        chosen, rejected = self._latents(places).chunk(2)
        return chosen, rejected
