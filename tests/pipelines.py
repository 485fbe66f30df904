"""Pipelines of every family with random weights, small enough that a training takes seconds."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from benchmarks.toy_models import tiny_sd
from imagereward.tuning.data.requests import Request

WIDTH = 32
LATENT_SIDE = 8
SIDE = 16
CHANNELS = 4
PROMPTS = ("a red circle", "two blue squares", "a green star above a red square")
SCHEDULER = {**tiny_sd.SCHEDULER, "beta_end": 0.012}  # Stable Diffusion's own noise


@functools.cache
def tokenizer():
    with tempfile.TemporaryDirectory() as directory:
        return tiny_sd.make_tokenizer(Path(directory))


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


def sd_inpaint(seed=0):
    """Stable Diffusion inpainting, of 16 pixels: latents, a mask and the masked image's latents go in."""
    torch.manual_seed(seed)
    scheduler = DDIMScheduler(**{**SCHEDULER, "prediction_type": "epsilon"})
    return StableDiffusionInpaintPipeline(
        autoencoder(),
        text_encoder(),
        tokenizer(),
        unet(in_channels=9),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def t5(width):
    config = T5Config(
        vocab_size=len(tokenizer()), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2
    )
    return T5EncoderModel(config).eval()  # it has dropout


def flow_autoencoder():
    return autoencoder(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)


def sd3(seed=0, without=()):
    """A Stable Diffusion 3 of 16 pixels; `without` are numbers of text encoders, from 1, to leave out."""
    torch.manual_seed(seed)
    network = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH + 8,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=LATENT_SIDE,
        qk_norm="rms_norm",
    )
    encoders = [
        text_encoder(CLIPTextModelWithProjection),
        text_encoder(CLIPTextModelWithProjection),
        t5(2 * WIDTH + 8),
    ]
    encoders = [None if number in without else each for number, each in enumerate(encoders, 1)]
    tokenizers = [each and tokenizer() for each in encoders]
    return StableDiffusion3Pipeline(
        network,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        flow_autoencoder(),
        *(part for pair in zip(encoders, tokenizers, strict=True) for part in pair),
    )


def flux(seed=0, kind=FluxPipeline, more_channels=0, guidance_embeds=True):
    """A FLUX of 16 pixels."""
    torch.manual_seed(seed)
    network = FluxTransformer2DModel(
        in_channels=4 * (CHANNELS + more_channels),
        out_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return kind(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flow_autoencoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(WIDTH),
        tokenizer_2=tokenizer(),
        transformer=network,
    )


def flux_kontext(seed=0):
    return flux(seed, FluxKontextPipeline)


def flux_fill(seed=0):
    """With the masked image's latents and the mask's two by two pixels a latent."""
    return flux(seed, FluxFillPipeline, CHANNELS + 4)


FAMILIES = {
    "sd": sd,
    "sdxl": sdxl,
    "sd_inpaint": sd_inpaint,
    "sd3": sd3,
    "flux": flux,
    "flux_kontext": flux_kontext,
    "flux_fill": flux_fill,
}
INPUTS = {"sd_inpaint": ("image", "mask"), "flux_kontext": ("image",), "flux_fill": ("image", "mask")}


def pictures(seed=0, side=SIDE):
    """An image and a mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.uint8)
    mask[seed : seed + side // 2, side // 4 :] = 255
    return {
        "image": Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)),
        "mask": Image.fromarray(mask),
    }


def rows(family, count=3):
    """Prompts, with the pictures that the family takes."""
    inputs = INPUTS.get(family, ())
    if not inputs:
        return list(PROMPTS[:count])
    made = [(prompt, pictures(seed)) for seed, prompt in enumerate(PROMPTS[:count])]
    return [Request(prompt, **{name: every[name] for name in inputs}) for prompt, every in made]


def network_of(pipeline):
    """What learns."""
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def learners(network, lora):
    """Names of what a training should move: all of it, or of its adapter the half that starts at 0."""
    return {name for name, _ in network.named_parameters() if not lora or "lora_B" in name}


def moved(module, before):
    """Names of what is not as in `before`, the state without adapters; lora_B is compared with 0."""
    found = set()
    for name, value in module.state_dict().items():
        was = 0 if "lora_B" in name else before.get(name.replace(".base_layer", ""))
        if "lora_A" not in name and (value != was).any():
            found.add(name)
    return found
