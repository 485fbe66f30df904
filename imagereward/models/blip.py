"""BLIP's image encoder, text encoder and projections, and the BLIP score: the cosine of both embeddings.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language
Understanding and Generation", 2022 (arXiv:2201.12086).
"""

from dataclasses import asdict, dataclass, field, replace

import torch
from timm.models import VisionTransformer
from torch import nn

from imagereward.adapters.streams import TokenStream
from imagereward.config import ScorerConfig, strict
from imagereward.errors import InputError
from imagereward.models.blip_text import TextEncoder, TextShape
from imagereward.models.cosine import PROMPT_BATCH, cosine
from imagereward.models.tokenizer import VOCABULARY, WordPieceTokenizer
from imagereward.scoring.scorer import Scorer


@dataclass(frozen=True)
class VisionShape:
    """A ViT's shape; the defaults are ViT-L/16 at 224 pixels."""

    img_size: int = 224
    patch_size: int = 16
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16


@dataclass(frozen=True)
class BLIPShape:
    """BLIP's shape; the defaults are BLIP-large, which ImageReward is built on.

    `vocabulary` are the WordPiece entries in order, for models that know fewer words than BERT does;
    None is BERT's, which ships with the package.
    """

    vision: VisionShape = field(default_factory=VisionShape)
    text: TextShape = field(default_factory=TextShape)
    projection: int = 256
    vocabulary: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, values: dict) -> "BLIPShape":
        """The shape that `asdict` wrote; unknown keys are an InputError."""
        values = dict(values)
        vision = strict(VisionShape, values.pop("vision", {}))
        text = strict(TextShape, values.pop("text", {}))
        words = values.pop("vocabulary", None)
        if words is not None and not (isinstance(words, (list, tuple)) and set(map(type, words)) == {str}):
            raise InputError("vocabulary: expected a list of words")
        vocabulary = None if words is None else tuple(words)
        return strict(cls, {**values, "vision": vision, "text": text, "vocabulary": vocabulary})


class BLIP(nn.Module):
    """Image tower, text encoder and their projections, under the released parameter names."""

    def __init__(self, shape: BLIPShape, tokenizer: WordPieceTokenizer):
        super().__init__()
        self.shape, self.wordpiece = shape, tokenizer
        # global_pool="" makes calling the tower return all its tokens, as BLIP's own did.
        self.visual_encoder = VisionTransformer(
            **asdict(shape.vision), num_classes=0, global_pool="", weight_init="skip"
        )
        self.text_encoder = TextEncoder(shape.text, shape.vision.embed_dim)
        self.vision_proj = nn.Linear(shape.vision.embed_dim, shape.projection)
        self.text_proj = nn.Linear(shape.text.width, shape.projection)

    @property
    def tokenizer(self):
        """WordPiece with transformers' calling convention, for code written for the original."""
        return self.wordpiece.for_transformers

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual_encoder.set_grad_checkpointing(enable)
        self.text_encoder.grad_checkpointing = enable


class BLIPBase(Scorer):
    """Base of ImageReward and the BLIP score: a BLIP and its WordPiece tokenizer."""

    image_prefixes: tuple[str, ...] = ("blip.visual_encoder.",)

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        shape = BLIPShape.from_dict(config.architecture)
        if config.max_length > shape.text.max_positions:
            raise InputError(
                f"max_length={config.max_length}: the text encoder has {shape.text.max_positions} positions"
            )
        tokenizer = WordPieceTokenizer(shape.vocabulary or VOCABULARY)
        if len(tokenizer) > shape.text.vocab_size:
            raise InputError(
                f"vocab_size={shape.text.vocab_size}: the vocabulary has {len(tokenizer)} entries, [DEC] and "
                "[ENC] included"
            )
        self.blip = BLIP(shape, tokenizer)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return self.blip.wordpiece.count(prompts)

    def token_streams(self) -> dict[str, TokenStream]:
        text, image = "blip.text_encoder", "blip.visual_encoder"
        shape = self.blip.shape
        layers = tuple(f"{text}.encoder.layer.{index}" for index in range(shape.text.depth))
        sources = {text: lambda args, kwargs: args[1]}
        # Each layer gets the mask again, also when checkpointing computes it a second time.
        sources |= {layer: lambda args, kwargs: args[1][:, 0, 0] for layer in layers}
        blocks = tuple(f"{image}.blocks.{index}" for index in range(shape.vision.depth))
        return {
            "text": TokenStream((f"{text}.",), layers, shape.text.width, ("query", "value"), sources=sources),
            "image": TokenStream((f"{image}.",), blocks, shape.vision.embed_dim, ("qkv",), False),
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.blip.set_grad_checkpointing(enable)

    def compile_towers(self) -> None:
        self.adapters.check_uncompiled()
        self.blip.visual_encoder.compile()
        self.blip.text_encoder.compile()


class BLIPScore(BLIPBase):
    """Cosine, in [-1, 1], of the image's and the prompt's projected first tokens."""

    image_prefixes = ("blip.visual_encoder.", "blip.vision_proj.")

    def token_streams(self) -> dict[str, TokenStream]:
        streams = super().token_streams()
        # Prompts are read without an image, so the attention to images does not run.
        linear = (".attention.self.query", ".attention.self.value")
        return streams | {"text": replace(streams["text"], linear=linear)}

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.blip.vision_proj(self.blip.visual_encoder(pixels.to(self.dtype))[:, 0])

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        ids, mask = self.blip.wordpiece.encode(prompts, self.config.max_length)
        ids, mask = ids.to(self.device), mask.to(self.device)
        first = [
            self.blip.text_encoder(*part, first_only=True)[:, 0]
            for part in zip(ids.split(PROMPT_BATCH), mask.split(PROMPT_BATCH))
        ]
        return self.blip.text_proj(torch.cat(first))

    def head(self, image_features, prompt_features, pairs_P_2):
        return cosine(image_features, prompt_features, pairs_P_2)
