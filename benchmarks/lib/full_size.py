"""Released generators at full size with random weights, without tokenizers, whose files would be needed."""

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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from benchmarks.toy_models.tiny_sd import SCHEDULER


def autoencoder(**changes) -> AutoencoderKL:
    """The autoencoder of all families; `changes` are a family's own arguments, such as latent_channels."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **changes,
    )


def flow_autoencoder() -> AutoencoderKL:
    """The autoencoder of Stable Diffusion 3 and FLUX.1."""
    return autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)


def clip_l() -> CLIPTextConfig:
    """The config of CLIP ViT-L/14's text encoder."""
    return CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)


def clip_g() -> CLIPTextConfig:
    """The config of OpenCLIP ViT-bigG/14's text encoder."""
    return CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
    )


def t5_xxl() -> T5EncoderModel:
    """The encoder of T5 v1.1 XXL."""
    config = T5Config(
        d_model=4096,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        d_kv=64,
        feed_forward_proj="gated-gelu",
        vocab_size=32128,
    )
    return T5EncoderModel(config)


def stable_diffusion_15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    scheduler = DDIMScheduler(**{**SCHEDULER, "prediction_type": "epsilon"})
    return StableDiffusionPipeline(
        autoencoder(sample_size=512),
        CLIPTextModel(clip_l()),
        None,
        unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL."""
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    vae = autoencoder(sample_size=1024, scaling_factor=0.13025)
    encoders = CLIPTextModel(clip_l()), CLIPTextModelWithProjection(clip_g())
    return StableDiffusionXLPipeline(vae, *encoders, None, None, unet, DDIMScheduler(**SCHEDULER))


def sd35_medium() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 Medium."""
    return _sd35(24, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)))


def sd35_large() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 Large, without Medium's second attention of the first layers."""
    return _sd35(38, pos_embed_max_size=192)


def _sd35(layers: int, **changes) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 with as many heads as layers; `changes` are further arguments of the network."""
    network = SD3Transformer2DModel(
        sample_size=128,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=layers,
        joint_attention_dim=4096,
        caption_projection_dim=64 * layers,
        pooled_projection_dim=2048,
        qk_norm="rms_norm",
        in_channels=16,
        out_channels=16,
        **changes,
    )
    clips = CLIPTextModelWithProjection(clip_l()), CLIPTextModelWithProjection(clip_g())
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(
        network, scheduler, flow_autoencoder(), clips[0], None, clips[1], None, t5_xxl(), None
    )


def stable_diffusion_15_inpainting() -> StableDiffusionInpaintPipeline:
    """Stable Diffusion 1.5 with the nine input channels of inpainting."""
    of = stable_diffusion_15()
    network = UNet2DConditionModel(
        sample_size=64, in_channels=9, cross_attention_dim=768, attention_head_dim=8
    )
    return StableDiffusionInpaintPipeline(
        of.vae, of.text_encoder, None, network, of.scheduler, None, None, requires_safety_checker=False
    )


def flux_kontext() -> FluxKontextPipeline:
    """FLUX.1 Kontext, whose network is FLUX.1-dev's."""
    of = flux_dev()
    return FluxKontextPipeline(
        of.scheduler, of.vae, of.text_encoder, None, of.text_encoder_2, None, of.transformer
    )


def flux_fill() -> FluxFillPipeline:
    """FLUX.1 Fill, whose network also sees a masked image and a mask."""
    of = flux_dev()
    network = FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True)
    return FluxFillPipeline(of.scheduler, of.vae, of.text_encoder, None, of.text_encoder_2, None, network)


def flux_dev() -> FluxPipeline:
    """FLUX.1-dev."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    network = FluxTransformer2DModel(guidance_embeds=True)
    encoder = CLIPTextModel(clip_l())
    return FluxPipeline(scheduler, flow_autoencoder(), encoder, None, t5_xxl(), None, network)
