"""Text embeddings kept on disk: every prompt is encoded once, and text encoders can leave the device."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from imagereward.errors import CheckpointError, InputError
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.text import Text

FACTS_FILE = "embeddings.json"
ENCODED_AT_ONCE = 16
# Raised when what families make of prompts changes.
FORMAT = "1"
# Facts of a config or a tokenizer that no embedding depends on.
IDLE = ("_name_or_path", "_diffusers_version", "transformers_version", "dtype", "torch_dtype")


def cache_text(denoiser: Denoiser, prompts: Iterable[str], directory: Path) -> None:
    """Encode the prompts that the directory lacks, and take embeddings from there from now on.

    Text encoders are on the autoencoder's device only while they encode these; others later are
    encoded on the CPU. Raises InputError for a directory whose embeddings are another model's.
    """
    encoders = [encoder.to("cpu") for encoder in _encoders(denoiser)]
    cached = CachedText(denoiser.text, facts_of(denoiser), directory)
    if missing := cached.missing([*prompts, ""]):
        for encoder in encoders:
            encoder.to(denoiser.autoencoder.vae.device)
        cached.fill(missing)
        for encoder in encoders:
            encoder.to("cpu")
    denoiser.text = cached


class CachedText:
    """A family's `text` with a memory: a file a prompt, in a directory that says what they depend on."""

    def __init__(self, encode: Text, facts: dict[str, str], directory: Path):
        self.encode, self.directory = encode, directory.expanduser()
        self._claim(facts)

    def __call__(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        self.fill(prompts)
        rows = [self._load(prompt) for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Those of the prompts that have not been encoded yet."""
        return [prompt for prompt in dict.fromkeys(prompts) if not self._path(prompt).is_file()]

    def fill(self, prompts: Sequence[str]) -> None:
        """Encode those of the prompts that are not there yet."""
        missing = self.missing(prompts)
        starts = range(0, len(missing), ENCODED_AT_ONCE)
        for start in tqdm(starts, "embeddings", unit="batch", disable=len(starts) < 2):
            batch = missing[start : start + ENCODED_AT_ONCE]
            found = self.encode(batch)
            for row, prompt in enumerate(batch):
                values = {name: value[row : row + 1].cpu().contiguous() for name, value in found.items()}
                unfinished = self._path(prompt).with_suffix(f".{os.getpid()}")
                save_file(values, unfinished, {"prompt": prompt})
                os.replace(unfinished, self._path(prompt))

    def _path(self, prompt: str) -> Path:
        return self.directory / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"

    def _load(self, prompt: str) -> dict[str, torch.Tensor]:
        path = self._path(prompt)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}, the embedding of {prompt!r}, cannot be read: {error}; delete it"
            ) from error

    def _claim(self, facts: dict[str, str]) -> None:
        path = self.directory / FACTS_FILE
        self.directory.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            unfinished = path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, path)
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} cannot be read: {error}; delete {self.directory}") from error
        if theirs != facts:
            other = sorted(name for name in {*theirs, *facts} if theirs.get(name) != facts.get(name))
            raise InputError(
                f"{self.directory} holds embeddings of another model: {', '.join(other)} differ; delete it, "
                "or name another directory"
            )


def facts_of(denoiser: Denoiser) -> dict[str, str]:
    """What embeddings depend on: encoders with weights, tokenizers, and the network's sizes, as digests."""
    pipeline = denoiser.pipeline
    family = f"{type(denoiser).__module__}:{type(denoiser).__qualname__}"
    facts = {"format": FORMAT, "pipeline": type(pipeline).__name__, "family": family}
    facts["network"] = _digest(denoiser.network.config)
    for name, part in pipeline.components.items():
        if any(part is encoder for encoder in _encoders(denoiser)):
            facts[name] = _digest(part.config.to_dict(), part.state_dict().items())
            facts[f"{name} precision"] = str(part.dtype).removeprefix("torch.")
        elif hasattr(part, "get_vocab"):
            facts[name] = _digest(_tokenizer_facts(part))
    return facts


def _encoders(denoiser: Denoiser) -> list[torch.nn.Module]:
    return [part for part in denoiser.frozen if part is not denoiser.autoencoder.vae]


def _tokenizer_facts(tokenizer) -> dict[str, Any]:
    facts = {"vocabulary": tokenizer.get_vocab(), "length": tokenizer.model_max_length}
    facts["special"] = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # Padding and truncation are the last call's.
        facts["backend"] = {k: v for k, v in backend.items() if k not in ("padding", "truncation")}
    return facts


def _digest(facts: Any, weights: Iterable[tuple[str, torch.Tensor]] = ()) -> str:
    kept = {name: value for name, value in dict(facts).items() if name not in IDLE}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, value in weights:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
