"""(prompt, image) pairs as latents, computed when asked for or once for all."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from imagereward.tuning.data.image_pairs import Pairs
from imagereward.tuning.families.autoencoder import KLAutoencoder

ENCODED_AT_ONCE = 32


class LatentImages:
    """Pairs as `texts` and `latents(rows)`.

    With a `cache` directory all latents are computed when the first are asked for, and kept there, under a
    name that depends on the data and the autoencoder.
    """

    def __init__(self, pairs: Pairs, latents: KLAutoencoder, cache: Path | None = None):
        self.pairs, self._latents = pairs, latents
        self.texts = pairs.texts
        self._cache = cache
        self._cached: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, rows: Sequence[int]) -> torch.Tensor:
        """float32 [B, C, h, w]."""
        if self._cache is None:
            return self._encoded(rows)
        if self._cached is None:
            path = self._cache / f"latents-{self._key()}.safetensors"
            if not path.is_file():
                self._fill(path)
            self._cached = load_file(path)["latents"]
        return self._cached[list(rows)]

    def _encoded(self, rows: Sequence[int]) -> torch.Tensor:
        pixels = torch.stack([self.pairs[row]["pixels"] for row in rows]).to(self._latents.vae.device)
        return self._latents.encode(pixels.float() / 255)

    def _fill(self, path: Path) -> None:
        starts = tqdm(range(0, len(self), ENCODED_AT_ONCE), desc="latents", unit="batch")
        parts = [self._encoded(range(at, min(at + ENCODED_AT_ONCE, len(self)))).cpu() for at in starts]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        save_file({"latents": torch.cat(parts).contiguous()}, unfinished)
        os.replace(unfinished, path)

    def _key(self) -> str:
        vae, shift = self._latents.vae, self._latents.shift
        digest = hashlib.sha256(f"{self.pairs.identity} {vae.config.scaling_factor} {shift}".encode())
        for name, value in vae.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
