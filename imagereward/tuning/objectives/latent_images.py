"""(prompt, image) pairs as latents, encoded when asked for or once and kept in a file."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.families.autoencoder import Autoencoder, digest_of_autoencoder

ENCODED_AT_ONCE = 32


class LatentImages:
    """Pairs as prompts (`texts`) and latents (`latents(rows)`).

    pairs        (prompt, image) pairs of the autoencoder's image size
    autoencoder  encodes their images, by the posterior's mean
    cache        directory of a file with all latents, encoded when the first are asked for, whose name is
                 a digest of the pairs and the autoencoder; None: encoded each time
    """

    def __init__(self, pairs: Pairs, autoencoder: Autoencoder, cache: Path | None = None):
        self.pairs, self._autoencoder = pairs, autoencoder
        self.texts = pairs.texts
        self._cache = cache
        self._cached: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, rows: Sequence[int]) -> torch.Tensor:
        """The latents of pairs by index, float32 [B, C, h, w]."""
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
