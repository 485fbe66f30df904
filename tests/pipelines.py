"""Pipelines of every family with random weights, small enough that a training takes seconds."""

import functools
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.tiny_sd import SCHEDULER, make_tokenizer

WIDTH = 32
LATENT_SIDE = 8


@functools.cache
def tokenizer():
    with tempfile.TemporaryDirectory() as directory:
        return make_tokenizer(Path(directory))


def autoencoder(**changes):
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * LATENT_SIDE,
        scaling_factor=0.5,
        **changes,
    )


def text_encoder(kind=CLIPTextModel, width=WIDTH):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=width,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
    )
    return kind(config)


def unet(**changes):
    values = {
        "sample_size": LATENT_SIDE,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**values, **changes})


def sd(prediction="epsilon", seed=0):
    """A Stable Diffusion of 16 pixels."""
    torch.manual_seed(seed)
    scheduler = DDIMScheduler(**{**SCHEDULER, "prediction_type": prediction})
    return StableDiffusionPipeline(
        autoencoder(),
        text_encoder(),
        tokenizer(),
        unet(),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def sdxl(seed=0):
    """A Stable Diffusion XL of 16 pixels."""
    torch.manual_seed(seed)
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )
    scheduler = DDIMScheduler(**{**SCHEDULER, "prediction_type": "epsilon"})
    return StableDiffusionXLPipeline(
        autoencoder(),
        text_encoder(),
        text_encoder(CLIPTextModelWithProjection),
        tokenizer(),
        tokenizer(),
        network,
        scheduler,
        add_watermarker=False,
    )


FAMILIES = {"sd": sd, "sdxl": sdxl}
