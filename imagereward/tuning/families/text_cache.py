"""Keeps text embeddings on disk, so that each prompt is encoded once; reads those of preprocessed rows."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from imagereward.errors import CheckpointError, InputError
from imagereward.tuning.data.preprocessed import PreprocessedRow
from imagereward.tuning.data.requests import Row
from imagereward.tuning.distributed import rank_and_ranks, wait_for_everyone
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.text import FIXED_LENGTH, Text
from imagereward.writing import replacing, write_text

FACTS_FILE = "embeddings.json"
ENCODED_AT_ONCE = 16
# Increased whenever the embeddings that a family computes for a prompt change.
FORMAT = "1"
# Keys of a config that no embedding depends on.
NEUTRAL_FACTS = (
    *("_name_or_path", "_diffusers_version", "transformers_version", "dtype", "torch_dtype"),
    "_use_default_values",  # names in another order in every process
)


def cache_text(
    denoiser: Denoiser, prompts: Iterable[str], directory: Path | None, rows: Sequence[Row] = ()
) -> None:
    """Make `denoiser.text` read embeddings: a preprocessed row's from its files, others from the directory.

    prompts    those whose embeddings the directory lacks are encoded first, by each process a part
    directory  None: nothing is kept, and only embeddings of preprocessed rows are read
    rows       of the whole training, for the preprocessed ones among them

    What rows bring is another program's, and never enters the directory. With a directory the text encoders
    are on the autoencoder's device only meanwhile; prompts that come later are encoded on the CPU. Raises
    InputError for a directory that holds another model's embeddings.
    """
    brought = brought_text(denoiser, rows)
    if directory is not None:
        encoders = [encoder.to("cpu") for encoder in _encoders(denoiser)]
        cached = CachedText(denoiser.text, facts_of(denoiser), directory, denoiser.text_sequences)
        asked = [prompt for prompt in [*prompts, ""] if prompt not in brought]

        def fill(missing: Sequence[str]) -> None:
            for encoder in encoders:
                encoder.to(denoiser.autoencoder.vae.device)
            cached.fill(missing)
            for encoder in encoders:
                encoder.to("cpu")

        fill_together(lambda: cached.missing(asked), fill)
        denoiser.text = cached
    if brought:
        denoiser.text = PreprocessedText(
            denoiser.text, brought, "pooled_projection_dim" in denoiser.network.config
        )


def fill_together(missing: Callable[[], list[Any]], fill: Callable[[Sequence[Any]], None]) -> None:
    """Fill a cache, of which each process computes a part; all joined processes must call this.

    missing  gives what the directory lacks, in the same order in every process
    fill     computes and stores a part of it, which is not empty

    Where the processes do not share the directory, each then computes the other parts too.
    """
    rank, ranks = rank_and_ranks()
    mine = missing()[rank::ranks]
    wait_for_everyone()  # until all have looked: their parts are those of one list
    if mine:
        fill(mine)
    wait_for_everyone()
    if rest := missing():
        fill(rest)


def brought_text(denoiser: Denoiser, rows: Iterable[Row]) -> dict[str, PreprocessedRow]:
    """{prompt: its row} of the preprocessed rows whose embeddings `denoiser` takes as they are.

    Empty for a model that takes no pictures, which encodes the captions of preprocessed rows itself.
    """
    shown = rows if denoiser.inputs else ()
    return {row.prompt: row for row in shown if isinstance(row, PreprocessedRow) and row.has_text}


class PreprocessedText:
    """A family's `text` that reads embeddings from rows' files, and leaves all other prompts to `encode`.

    encode  prompts -> tensors [B, ...] by name
    rows    {prompt: the row that brings its embedding}, from `brought_text`
    pooled  whether the family takes a pooled embedding beside the sequence
    """

    def __init__(self, encode: Text, rows: Mapping[str, PreprocessedRow], pooled: bool):
        self.encode, self.rows = encode, rows
        self._kept = {"encoder_hidden_states": "prompt"} | (
            {"pooled_projections": "pooled"} if pooled else {}
        )

    def __call__(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        if not any(prompt in self.rows for prompt in prompts):
            return self.encode(prompts)
        each = [self._one(prompt) for prompt in prompts]
        return {name: torch.cat([found[name].to(value) for found in each]) for name, value in each[0].items()}

    def _one(self, prompt: str) -> dict[str, torch.Tensor]:
        if prompt not in self.rows:
            return self.encode([prompt])
        row = self.rows[prompt]
        return {name: row.tensor(kept, row.where).float()[None] for name, kept in self._kept.items()}


class CachedText:
    """A family's `text` that keeps its results: one safetensors file a prompt, and the facts they depend on.

    encode     prompts -> tensors [B, ...] by name
    facts      names and digests of everything that embeddings depend on, from `facts_of`
    directory  where the files are; made if missing
    sequences  which tensors are sequences of a varying length, and their masks: see `Condition.sequences`
    """

    def __init__(
        self,
        encode: Text,
        facts: dict[str, str],
        directory: Path,
        sequences: Mapping[str, str] = FIXED_LENGTH,
    ):
        self.encode, self.directory, self.sequences = encode, directory.expanduser(), sequences
        claim(self.directory / FACTS_FILE, facts, "embeddings")

    def __call__(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        self.fill(prompts)
        rows = [self._load(prompt) for prompt in prompts]
        return Condition.cat([Condition(row, self.sequences) for row in rows]).tensors

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """The prompts, each once, whose embeddings are not in the directory."""
        return [prompt for prompt in dict.fromkeys(prompts) if not self._path(prompt).is_file()]

    def fill(self, prompts: Sequence[str]) -> None:
        """Encode and store the prompts whose embeddings are not in the directory."""
        missing = self.missing(prompts)
        starts = range(0, len(missing), ENCODED_AT_ONCE)
        for start in tqdm(starts, "embeddings", unit="batch", disable=len(starts) < 2):
            batch = missing[start : start + ENCODED_AT_ONCE]
            found = self.encode(batch)
            for row, prompt in enumerate(batch):
                values = {name: value[row : row + 1] for name, value in found.items()}
                store(self._path(prompt), values, prompt)

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


def claim(path: Path, facts: dict[str, str], what: str) -> None:
    """Write the facts that a cache's files depend on, or compare them with those that are there.

    path   the file of the facts; its folder is made if missing
    what   what the files hold, for the message: "embeddings"

    Raises InputError naming the facts that differ.
    """
    if not path.is_file():
        write_text(path, json.dumps(facts, indent=1) + "\n")
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}; delete {path.parent}") from error
    if theirs != facts:
        other = sorted(name for name in {*theirs, *facts} if theirs.get(name) != facts.get(name))
        raise InputError(
            f"{path.parent} holds {what} of another model: {', '.join(other)} differ; delete it, "
            "or name another directory"
        )


def store(path: Path, tensors: dict[str, torch.Tensor], prompt: str) -> None:
    """Write tensors to a safetensors file, which is there whole or not at all."""
    kept = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(kept, temporary, {"prompt": prompt})


def facts_of(denoiser: Denoiser) -> dict[str, str]:
    """Digests by name of everything that embeddings depend on: encoders, tokenizers, the network's config."""
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
        # Padding and truncation are leftovers of the tokenizer's last call.
        facts["backend"] = {k: v for k, v in backend.items() if k not in ("padding", "truncation")}
    return facts


def _digest(facts: Any, weights: Iterable[tuple[str, torch.Tensor]] = ()) -> str:
    kept = {name: value for name, value in dict(facts).items() if name not in NEUTRAL_FACTS}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, value in weights:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
