"""ImageReward computed as by the original code: a baseline for speed, and a reference for tests.

It scores one image at a time, with the prompt padded to 35 tokens and eager attention in both towers. The
image tower is timm's without fused attention; the text encoder is transformers' BLIP text model, which is
independent of this package. Only the weights, the tokenizer and the image size come from the scorer.
"""

import torch
from torchvision.transforms import v2
from transformers import BlipTextConfig, BlipTextModel

from imagereward.images.preprocess import CLIP_MEAN, CLIP_STD


class PlainImageReward:
    """`score(prompt, PIL image) -> float` with the weights of an ImageReward scorer of any size."""

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
        self.text.to(scorer.device)
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

    @torch.inference_mode()
    def score(self, prompt: str, image) -> float:
        # The scorer shares the image tower and fuses attention: switch that off for this call.
        fused = [block.attn.fused_attn for block in self.visual.blocks]
        for block in self.visual.blocks:
            block.attn.fused_attn = False
        try:
            tokens = self.visual(self.preprocess(image)[None].to(self.device))
        finally:
            for block, value in zip(self.visual.blocks, fused):
                block.attn.fused_attn = value
        text = self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        hidden = self.text(
            text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:-1], dtype=torch.long, device=self.device),
            is_decoder=False,
        ).last_hidden_state
        return ((self.mlp(hidden[:, 0]) - self.mean) / self.std).item()
