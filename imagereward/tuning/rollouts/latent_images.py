"""LatentImages: (prompt, image) pairs as latents, encoded at each access, or once and kept in a file."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.families.autoencoder import Autoencoder, digest_of_autoencoder

ENCODED_AT_ONCE = 32  # images in a batch of the autoencoder, to fill the file


class LatentImages:
    """(prompt, image) pairs as prompts (`texts`) and latents (`latents(rows)`).

    pairs        (prompt, image) pairs with images of the autoencoder's size
    autoencoder  encodes an image to the mean of its posterior
    cache        directory for a file with all latents, whose name has a digest of the pairs and the
                 autoencoder; the file is written at the first access. None: each access encodes anew
    """

    def __init__(self, pairs: Pairs, autoencoder: Autoencoder, cache: Path | None = None):
        self.pairs, self._autoencoder = pairs, autoencoder
        self.texts = pairs.texts
        self._cache = cache
        self._cached: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, rows: Sequence[int]) -> torch.Tensor:
        """The latents [B, C, h, w] float32 of the pairs with these indices."""
        if self._cache is None:
            return self._encoded(rows)
        if self._cached is None:
            path = self._cache / f"latents-{self._key()}.safetensors"
            if not path.is_file():
                self._fill(path)
            self._cached = load_file(path)["latents"]
        return self._cached[list(rows)]

    def _encoded(self, rows: Sequence[int]) -> torch.Tensor:
        pixels = torch.stack([self.pairs[row]["pixels"] for row in rows]).to(self._autoencoder.vae.device)
        return self._autoencoder.encode(pixels.float() / 255)

    def _fill(self, path: Path) -> None:
        starts = tqdm(range(0, len(self), ENCODED_AT_ONCE), desc="latents", unit="batch")
        parts = [self._encoded(range(at, min(at + ENCODED_AT_ONCE, len(self)))).cpu() for at in starts]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        save_file({"latents": torch.cat(parts).contiguous()}, unfinished)
        os.replace(unfinished, path)

    def _key(self) -> str:
        digest = hashlib.sha256(
            f"{self.pairs.identity} {digest_of_autoencoder(self._autoencoder.vae)}".encode()
        )
        return digest.hexdigest()[:16]
