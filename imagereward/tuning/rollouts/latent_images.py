"""LatentImages, LatentPairs: the images of pairs as latents, encoded at each access or once, in a file."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.data.pictures import Images
from imagereward.tuning.data.preferences import PreferencePairs
from imagereward.tuning.families.autoencoder import Autoencoder, digest_of_autoencoder

ENCODED_AT_ONCE = 32  # images in a batch of the autoencoder, to fill the file


class Latents:
    """Images as latents, in the images' order.

    images       of the autoencoder's size
    autoencoder  encodes an image to the mean of its posterior
    cache        directory for a file with all latents, whose name has a digest of the images and the
                 autoencoder; the file is written at the first access. None: each access encodes anew
    """

    def __init__(self, images: Images, autoencoder: Autoencoder, cache: Path | None = None):
        self._images, self._autoencoder = images, autoencoder
        self._cache = cache
        self._cached: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, indices: Sequence[int]) -> torch.Tensor:
        """The latents [B, C, h, w] float32 of the images with these indices."""
        if self._cache is None:
            return self._encoded(indices)
        if self._cached is None:
            path = self._cache / f"latents-{self._key()}.safetensors"
            if not path.is_file():
                self._fill(path)
            self._cached = load_file(path)["latents"]
        return self._cached[list(indices)]

    def _encoded(self, indices: Sequence[int]) -> torch.Tensor:
        pixels = torch.stack([self._images[index]["pixels"] for index in indices])
        return self._autoencoder.encode(pixels.to(self._autoencoder.vae.device).float() / 255)

    def _fill(self, path: Path) -> None:
        starts = tqdm(range(0, len(self), ENCODED_AT_ONCE), desc="latents", unit="batch")
        parts = [self._encoded(range(at, min(at + ENCODED_AT_ONCE, len(self)))).cpu() for at in starts]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        save_file({"latents": torch.cat(parts).contiguous()}, unfinished)
        os.replace(unfinished, path)

    def _key(self) -> str:
        digest = hashlib.sha256(
            f"{self._images.identity} {digest_of_autoencoder(self._autoencoder.vae)}".encode()
        )
        return digest.hexdigest()[:16]


class LatentImages:
    """(prompt, image) pairs as rows (`rows`, with their prompts in `texts`) and latents (`latents(indices)`).

    The arguments are those of `Latents`, with `pairs` as the images.
    """

    def __init__(self, pairs: Pairs, autoencoder: Autoencoder, cache: Path | None = None):
        self.pairs, self.rows, self.texts = pairs, pairs.rows, pairs.texts
        self.latents = Latents(pairs, autoencoder, cache)

    def __len__(self) -> int:
        return len(self.pairs)


class LatentPairs:
    """Preferences as rows (`rows`, with their prompts in `texts`) and latents (`latents(indices)`).

    The arguments are those of `Latents`, with the images of `pairs`. A cache holds each image once, however
    many pairs it is in.
    """

    def __init__(self, pairs: PreferencePairs, autoencoder: Autoencoder, cache: Path | None = None):
        self.pairs, self.rows, self.texts = pairs, pairs.rows, pairs.texts
        self._latents = Latents(pairs.images, autoencoder, cache)

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents of B pairs: chosen and rejected, each float32 [B, C, h, w]."""
        places = [side[index] for side in (self.pairs.chosen, self.pairs.rejected) for index in indices]
        chosen, rejected = self._latents(places).chunk(2)
        return chosen, rejected
