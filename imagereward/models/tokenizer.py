"""BERT's WordPiece tokenizer with the vocabulary that ships with the package, as BLIP uses it."""

from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path

import tokenizers
import torch

from imagereward.errors import InputError

VOCABULARY = Path(str(resources.files("imagereward") / "assets" / "vocab.txt"))
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPieceTokenizer:
    """Lower-casing WordPiece with BLIP's two extra tokens after the vocabulary: [DEC], then [ENC].

    The vocabulary is a file with an entry a line, or the entries themselves, `SPECIAL_TOKENS` among them.
    """

    def __init__(self, vocabulary: Path | Sequence[str] = VOCABULARY):
        if isinstance(vocabulary, Path):
            known: str | dict[str, int] = str(vocabulary)
        else:
            known = {entry: index for index, entry in enumerate(vocabulary)}
            missing = [token for token in SPECIAL_TOKENS if token not in known]
            if missing or len(known) != len(vocabulary) or vocabulary[0] != SPECIAL_TOKENS[0]:
                raise InputError(
                    f"a vocabulary of {len(vocabulary)} entries: expected [PAD] first, each entry once, and "
                    f"{', '.join(SPECIAL_TOKENS)} among them"
                )
        self._tokenizer = tokenizers.BertWordPieceTokenizer(known, lowercase=True)
        self._tokenizer.add_special_tokens(["[DEC]", "[ENC]"])
        self.pad_id = self._tokenizer.token_to_id("[PAD]")
        self.sep_id = self._tokenizer.token_to_id("[SEP]")
        self.cls_id = self._tokenizer.token_to_id("[CLS]")
        self.mask_id = self._tokenizer.token_to_id("[MASK]")

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, prompts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, mask), both [M, T]; T is the longest prompt's length, at most `max_length` tokens.

        A longer prompt keeps its first `max_length - 1` tokens and the closing [SEP].
        """
        rows = [
            ids if len(ids) <= max_length else [*ids[: max_length - 1], self.sep_id]
            for ids in self._ids(prompts)
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids, mask

    def count(self, prompts: list[str]) -> list[int]:
        """Tokens per prompt before truncation, [CLS] and [SEP] included."""
        return [len(ids) for ids in self._ids(prompts)]

    def _ids(self, prompts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(prompts)]

    @cached_property
    def for_transformers(self):
        """The same tokenizer with transformers' calling convention.

        `tokenizer(prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt")`
        """
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(self._tokenizer.to_str()),
            cls_token="[CLS]",
            sep_token="[SEP]",
            pad_token="[PAD]",
            unk_token="[UNK]",
            mask_token="[MASK]",
            bos_token="[DEC]",
        )
        tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
        return tokenizer
