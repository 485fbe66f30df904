"""Scorers on CLIP embeddings, with open_clip's towers: CLIP, HPS and PickScore, which are cosines.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(arXiv:2103.00020); Wu et al., "Human Preference Score v2", 2023 (arXiv:2306.09341); Kirstain et
al., "Pick-a-Pic", 2023 (arXiv:2305.01569).
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import open_clip
import tokenizers
import torch

from imagereward.adapters.streams import TokenStream
from imagereward.config import ScorerConfig
from imagereward.errors import CheckpointError, InputError
from imagereward.models.cosine import PROMPT_BATCH, cosine
from imagereward.precision import full_precision
from imagereward.scoring.scorer import Scorer


@lru_cache(maxsize=16)
def _tokenizer(tokenization: str, length: int) -> Any:
    """The tokenizer of a config, which scorers share, because its vocabulary is slow to read."""
    tokenizer = RustBPE(context_length=length)
    return TransformersBPE(tokenizer) if tokenization == "transformers" else tokenizer


class CLIPBase(Scorer):
    """A CLIP (`clip_model`, OpenAI's and open_clip's parameter names) and its image embedding."""

    image_prefixes = ("clip_model.visual.",)

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        architecture = config.architecture
        if isinstance(architecture, str):
            # get_model_config would also read from the disk ("local-dir:...") and the hub ("hf-hub:...").
            if architecture not in open_clip.list_models():
                raise InputError(f"architecture={architecture!r}: expected a name of open_clip.list_models()")
            architecture = open_clip.get_model_config(architecture)
        _refuse_references(architecture)
        self.clip_model = open_clip.CLIP(**architecture)
        if config.max_length > self.clip_model.context_length:
            raise InputError(
                f"max_length={config.max_length}: this CLIP reads {self.clip_model.context_length} tokens"
            )
        self.bpe = _tokenizer(config.tokenization, config.max_length)

    def init_buffers(self) -> None:
        """The causal mask [T, T] of the text tower."""
        length = self.clip_model.context_length
        mask = torch.full((length, length), float("-inf"), device="cpu").triu_(1)
        self.clip_model.register_buffer("attn_mask", mask, persistent=False)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.clip_model.encode_image(pixels.to(self.dtype))

    def image_key(self) -> tuple:
        return (id(self.clip_model), self.preprocess)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return [len(self.bpe.encode(prompt)) + 2 for prompt in prompts]

    def token_streams(self) -> dict[str, TokenStream]:
        clip, text, image = self.clip_model, "clip_model.transformer", "clip_model.visual.transformer"
        blocks = tuple(
            f"{image}.resblocks.{index}" for index in range(len(clip.visual.transformer.resblocks))
        )
        layers = tuple(f"{text}.resblocks.{index}" for index in range(len(clip.transformer.resblocks)))
        prefixes = (f"{text}.", "clip_model.token_embedding.")
        sources = {"clip_model.token_embedding": _until_end}
        linear, width = ("c_fc", "c_proj"), clip.visual.transformer.width
        return {
            "image": TokenStream(("clip_model.visual.",), blocks, width, linear),
            "text": TokenStream(prefixes, layers, clip.transformer.width, linear, sources=sources),
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        # Of the image tower alone: a text layer that is computed again would not know the prompts' lengths,
        # which adapters ask for.
        self.clip_model.visual.set_grad_checkpointing(enable)

    def compile_towers(self) -> None:
        self.adapters.check_uncompiled()
        self.clip_model.visual.compile()
        self.clip_model.transformer.compile()


class CLIPScore(CLIPBase):
    """Cosine of image and prompt, in [-1, 1]; with `scaled`, times the learned logit scale."""

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        ids = self.bpe(prompts).to(self.device)
        return torch.cat([self._encode_text(part) for part in ids.split(PROMPT_BATCH)])

    def head(self, image_features, prompt_features, pairs_P_2):
        scores = cosine(image_features, prompt_features, pairs_P_2)
        return scores * full_precision(self.clip_model.logit_scale).exp() if self.config.scaled else scores

    def _encode_text(self, ids_M_T: torch.Tensor) -> torch.Tensor:
        # Attention is causal and the feature is read at the end-of-text token, the largest id, so
        # positions behind the last one change nothing and are not computed.
        clip, end = self.clip_model, ids_M_T.argmax(1)
        length = int(end.max()) + 1
        x = clip.token_embedding(ids_M_T[:, :length]) + clip.positional_embedding[:length]
        x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
        x = clip.ln_final(x[torch.arange(len(x), device=x.device), end])
        return x @ clip.text_projection


def _until_end(args: tuple, kwargs: dict) -> torch.Tensor:
    """The mask [M, T] of the tokens up to that of the end, the largest id, of ids [M, T]."""
    ids_M_T = args[0]
    return torch.arange(ids_M_T.shape[1], device=ids_M_T.device) <= ids_M_T.argmax(1)[:, None]


class RustBPE(open_clip.SimpleTokenizer):
    """open_clip's tokenizer, with words merged in Rust.

    The original takes a time that is quadratic in a word's length, and keeps every word that it has read.
    """

    def __init__(self, context_length: int):
        super().__init__(context_length=context_length)
        self._model = tokenizers.models.BPE(
            vocab=dict(self.encoder),
            merges=list(self.bpe_ranks),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )

    def bpe(self, token: str) -> str:
        """The word's tokens, with spaces between them."""
        if token in self.cache:  # the special tokens; nothing is added
            return self.cache[token]
        return " ".join(piece.value for piece in self._model.tokenize(token))


class TransformersBPE:
    """open_clip's vocabulary, with prompts read as transformers' CLIPTokenizer reads them.

    Text is composed (NFC), runs of white space become a space, letters lower case; nothing is repaired or
    unescaped. `<|startoftext|>` and `<|endoftext|>` within a prompt are those tokens. The interface is
    that of open_clip's SimpleTokenizer, of which `base` is one: ids [M, T], padded with 0.
    """

    def __init__(self, base: open_clip.SimpleTokenizer):
        self.context_length = base.context_length
        start, end = "<|startoftext|>", "<|endoftext|>"
        vocabulary = dict(base.encoder)
        for name, ours in (("<start_of_text>", start), ("<end_of_text>", end)):
            vocabulary[ours] = vocabulary.pop(name)
        self.start_id, self.end_id = vocabulary[start], vocabulary[end]
        model = tokenizers.models.BPE(
            vocab=vocabulary,
            merges=list(base.bpe_ranks),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=end,
        )
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.normalizer = tokenizers.normalizers.Sequence(
            [
                tokenizers.normalizers.NFC(),
                tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
                tokenizers.normalizers.Lowercase(),
            ]
        )
        words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), "removed", invert=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.add_special_tokens([start, end])

    def encode(self, prompt: str) -> list[int]:
        """Tokens of a prompt, without those of start and end, however many there are."""
        return self._tokenizer.encode(prompt, add_special_tokens=False).ids

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Ids [M, context_length]; a longer prompt keeps its beginning, and the token of the end."""
        ids = torch.zeros(len(prompts), self.context_length, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = [self.start_id, *self.encode(prompt)[: self.context_length - 2], self.end_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids


def _refuse_references(architecture: dict) -> None:
    """A tower named rather than described would be fetched from a hub while it is built."""
    for part in ("vision_cfg", "text_cfg"):
        for key in architecture[part]:
            if key.startswith(("hf_", "timm_")):
                raise InputError(f"architecture.{part}.{key}: expected a tower of open_clip's own")


def from_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformers `CLIPModel` state dict under open_clip's names, weights unchanged."""
    renames = [
        (r"^vision_model\.", "visual."),
        (r"^text_model\.", ""),
        (r"embeddings\.class_embedding$", "class_embedding"),
        (r"embeddings\.patch_embedding\.weight$", "conv1.weight"),
        (r"embeddings\.position_embedding\.weight$", "positional_embedding"),
        (r"embeddings\.token_embedding\.", "token_embedding."),
        (r"pre_layrnorm\.", "ln_pre."),
        (r"post_layernorm\.", "ln_post."),
        (r"final_layer_norm\.", "ln_final."),
        (r"encoder\.layers\.", "transformer.resblocks."),
        (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
        (r"\.layer_norm(\d)\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    ]
    named: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.endswith("embeddings.position_ids") or re.search(r"\.[kv]_proj\.", name):
            continue
        if ".q_proj." in name:  # open_clip keeps query, key and value in one matrix
            parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            if missing := [part for part in parts if part not in state]:
                raise CheckpointError(f"missing beside {name}: {', '.join(missing)}")
            value = torch.cat([state[part] for part in parts])
            name = re.sub(r"\.self_attn\.q_proj\.", ".attn.in_proj_", name)
        if name in ("visual_projection.weight", "text_projection.weight"):
            name = {"v": "visual.proj", "t": "text_projection"}[name[0]]
            value = value.T.contiguous()
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        named[name] = value
    return named
