"""Tokenizers for tiny vision-language models: Qwen's vocabulary, or bytes and a few words."""

import base64
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# The words that are one token each in the small vocabulary.
WORDS = (
    "Yes",
    "No",
    "yes",
    "no",
    " yes",
    " no",
    " Yes",
    " No",
    "A",
    "B",
    " image",
    " the",
    "user",
    "assistant",
)
# How Qwen splits text before merging bytes: contractions, words, single digits, punctuation, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@cache
def _letters() -> dict[int, str]:
    """The character that byte-level tokenizers write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def written(data: bytes) -> str:
    """The bytes as byte-level tokenizers write them."""
    return "".join(_letters()[byte] for byte in data)


def qwen_vocabulary_file() -> Path | None:
    """`resources/qwen.tiktoken` of the installed package dashscope; None if it is not installed."""
    spec = find_spec("dashscope")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("resources") / "qwen.tiktoken"
    return path if path.is_file() else None


@cache
def _qwen_merges(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges): every split of a token into two tokens is a merge, in order of the ranks."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    merges = []
    for token, rank in ranks.items():
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [
            (ranks[left], ranks[right], left, right)
            for left, right in halves
            if left in ranks and right in ranks
        ]
        merges += [(rank, order, left, right) for order, (_, _, left, right) in enumerate(sorted(known))]
    return (
        {written(token): rank for token, rank in ranks.items()},
        [(written(left), written(right)) for _, _, left, right in sorted(merges)],
    )


def _small_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """256 bytes, and the tokens that join them to `WORDS` from the left."""
    vocabulary = {written(bytes([byte])): byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = written(word.encode())
        for end in range(2, len(letters) + 1):
            if letters[:end] not in vocabulary:
                vocabulary[letters[:end]] = len(vocabulary)
                merges.append((letters[: end - 1], letters[end - 1]))
    return vocabulary, merges


def tokenizer(
    special: Iterable[str], names: dict[str, str], *, qwen: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that splits text as Qwen's.

    special  special tokens, after the vocabulary in this order
    names    roles of special tokens: "pad_token", "eos_token", "image_token" and so on
    qwen     Qwen's vocabulary of 151,643 tokens instead of the small one; needs `qwen_vocabulary_file`
    """
    path = qwen_vocabulary_file() if qwen else None
    if qwen and path is None:
        raise FileNotFoundError(
            "Qwen's vocabulary is in the package dashscope: python -m pip install dashscope"
        )
    vocabulary, merges = _small_merges() if path is None else _qwen_merges(path)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(special))
    known = {name: token for name, token in names.items() if name in ("pad_token", "eos_token", "bos_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        extra_special_tokens={name: token for name, token in names.items() if name not in known},
        clean_up_tokenization_spaces=False,
        **known,
    )
