"""ImageReward computed as by the original code: a baseline for speed, and a reference for tests.

It scores one image at a time, with the prompt padded to 35 tokens and eager attention in both towers. The
image tower is timm's without fused attention; the text encoder is transformers' BLIP text model, which is
independent of this package. Only the weights, the tokenizer and the image size come from the scorer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from torchvision.transforms import v2
from transformers import BlipTextConfig, BlipTextModel

from imagereward.images.preprocess import CLIP_MEAN, CLIP_STD


class PlainImageReward:
    """`score(prompt, PIL image) -> float` with the weights of an ImageReward scorer of any size.

    `rewards` is the same of pixels, with gradient.
    """

    def __init__(self, scorer, max_length: int = 35):
        shape = scorer.blip.shape
        self.visual, self.tokenizer = scorer.blip.visual_encoder, scorer.blip.tokenizer
        config = BlipTextConfig(
            vocab_size=shape.text.vocab_size,
            hidden_size=shape.text.width,
            encoder_hidden_size=shape.vision.embed_dim,
            intermediate_size=shape.text.mlp_width,
            num_hidden_layers=shape.text.depth,
            num_attention_heads=shape.text.heads,
            max_position_embeddings=shape.text.max_positions,
            layer_norm_eps=shape.text.eps,
            attn_implementation="eager",
        )
        self.text = BlipTextModel(config, add_pooling_layer=False).eval()
        missing, unexpected = self.text.load_state_dict(
            scorer.blip.text_encoder.state_dict(), strict=False, assign=True
        )
        assert not unexpected, unexpected
        assert all("position_ids" in name for name in missing), missing
        self.text.to(scorer.device).requires_grad_(False)
        self.mlp, self.mean, self.std = scorer.mlp.layers, scorer.mean, scorer.std
        self.device, self.max_length = scorer.device, max_length
        size = scorer.preprocess.size
        self.preprocess = v2.Compose(
            [
                v2.Resize(size, v2.InterpolationMode.BICUBIC),
                v2.CenterCrop(size),
                v2.Lambda(lambda image: image.convert("RGB")),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )
        self.from_pixels = v2.Compose(
            [
                v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(size),
                v2.Lambda(lambda pixels: pixels.clamp(0, 1)),
                v2.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    @torch.inference_mode()
    def score(self, prompt: str, image) -> float:
        with self.unfused():
            return self._scores(self.preprocess(image)[None], prompt).item()

    def rewards(self, pixels_B_3_H_W: torch.Tensor, prompt: str) -> torch.Tensor:
        """Scores [B] of pixels in [0, 1], with gradient.

        Call it within `unfused`, and the backward pass too if activations are recomputed.
        """
        return self._scores(self.from_pixels(pixels_B_3_H_W), prompt)

    def recompute(self) -> None:
        """Let the backward pass recompute layers, as `Scorer.set_grad_checkpointing` does."""
        self.visual.set_grad_checkpointing()
        for layer in self.text.encoder.layer:
            layer.forward = partial(checkpoint, type(layer).forward.__get__(layer), use_reentrant=False)

    @contextmanager
    def unfused(self) -> Iterator[None]:
        """A context with eager attention in the image tower, which the scorer shares and fuses."""
        fused = [block.attn.fused_attn for block in self.visual.blocks]
        for block in self.visual.blocks:
            block.attn.fused_attn = False
        try:
            yield
        finally:
            for block, value in zip(self.visual.blocks, fused):
                block.attn.fused_attn = value

    def _scores(self, images_B_3_S_S: torch.Tensor, prompt: str) -> torch.Tensor:
        tokens = self.visual(images_B_3_S_S.to(self.device))
        text = self.tokenizer(
            [prompt] * len(tokens),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.device)
        hidden = self.text(
            text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:-1], dtype=torch.long, device=self.device),
            is_decoder=False,
        ).last_hidden_state
        return ((self.mlp(hidden[:, 0]) - self.mean) / self.std).squeeze(1)
