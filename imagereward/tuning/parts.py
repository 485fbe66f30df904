"""Training the parts of a small latent-diffusion pipeline from nothing: its autoencoder and its text encoder.

Both ride on the same loop as everything else; the network between them is trained by the objective `sft`.
"""

from typing import Any, Literal

import diffusers
import torch
from pydantic import Field
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from imagereward.tuning.config import build
from imagereward.tuning.denoisers import Latents
from imagereward.tuning.latent_images import Pairs, open_pairs
from imagereward.tuning.loop import Loop, LoopConfig, make_accelerator, start_trackers
from imagereward.tuning.memory import keep_freed_memory
from imagereward.tuning.objectives.autoencoder import Autoencoder
from imagereward.tuning.objectives.clip import Contrast
from imagereward.tuning.processes import is_first_process
from imagereward.tuning.runs import check_output, claim

# Images by which the latents' scale is measured.
MEASURED = 256
# Where the logarithm of posteriors' variance starts: at a variance of 1 noise drowns what the latents say,
# and colours are learned late or never.
FIRST_LOGVAR = -6.0


class PartConfig(LoopConfig):
    """What every part needs. `data` is a JSON list of {text, image}, or "shapes"."""

    output: str
    data: str = "shapes"
    pairs: int = Field(20_000, ge=1, description="how many of Shapes")
    things: int = Field(4, ge=1, description="most things in a scene of Shapes")
    resolution: int = Field(64, ge=8)
    architecture: dict[str, Any] = Field(description="in the terms of the library whose class it is")
    most_bad: float = Field(0.01, ge=0, le=1, description="share of images that may be missing or damaged")


class AutoencoderConfig(PartConfig):
    """An AutoencoderKL."""

    objective: Literal["autoencoder"] = "autoencoder"
    kl: float = Field(1e-6, ge=0)
    kl_from: int = Field(0, ge=0, description="the update from which the KL counts")


class CLIPTextConfig(PartConfig):
    """A CLIP, of which a generator takes the text half. `tokenizer` is a directory of a CLIPTokenizer."""

    objective: Literal["clip"] = "clip"
    tokenizer: str


class CodingModule(torch.nn.Module):
    """An autoencoder from images and noise to images again, as one call, which data parallelism can wrap."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, images_B_3_H_W, noise):
        posterior = self.vae.encode(images_B_3_H_W).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior


class TowersModule(torch.nn.Module):
    """A CLIP from images and tokens to the features of both, and its temperature."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def forward(self, images_B_3_H_W, tokens):
        found = self.clip(pixel_values=images_B_3_H_W, **tokens)
        return found.image_embeds, found.text_embeds, self.clip.logit_scale


class Part:
    """What the loop trains: a module, and where it is."""

    def __init__(self, module: torch.nn.Module, device: torch.device):
        self.module, self.device = module.to(device), device


def tune_autoencoder(values: dict[str, Any], source: str) -> Any:
    """Train an autoencoder as a recipe says; saved in `output` with its latents' scale, and returned."""
    config = build(AutoencoderConfig, values, source)
    torch.manual_seed(config.seed)
    vae: Any = diffusers.AutoencoderKL(**config.architecture)
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    torch.nn.init.constant_(last.bias.data[vae.config.latent_channels :], FIRST_LOGVAR)
    pairs = _pairs(config)
    objective = Autoencoder(
        pairs,
        latent_shape=Latents(vae, config.resolution).shape,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        kl=config.kl,
        kl_from=config.kl_from,
        seed=config.seed,
    )
    vae.requires_grad_(True)
    _train(config, CodingModule(vae), objective)
    vae.eval()
    few = range(min(MEASURED, len(pairs)))
    pixels = torch.stack([pairs[i]["pixels"] for i in few]).to(vae.device).float() / 127.5 - 1
    with torch.no_grad():
        scale = 1 / float(vae.encode(pixels).latent_dist.mean.std())
    vae.register_to_config(scaling_factor=scale)
    if is_first_process():
        vae.save_pretrained(config.output)
    return vae


def tune_clip(values: dict[str, Any], source: str) -> CLIPModel:
    """Train a CLIP as a recipe's values say; its text half is saved in `output`. Returns all of it."""
    config = build(CLIPTextConfig, values, source)
    tokenizer = CLIPTokenizer.from_pretrained(config.tokenizer)
    torch.manual_seed(config.seed)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids = {"vocab_size": len(tokenizer), **ends}
    shape = config.architecture
    clip = CLIPModel(CLIPConfig(**{**shape, "text_config": {**shape.get("text_config", {}), **ids}}))
    objective = Contrast(_pairs(config), tokenizer, batch_size=config.batch_size, seed=config.seed)
    _train(config, TowersModule(clip), objective)
    encoder: Any = CLIPTextModel(clip.config.text_config)  # type: ignore[arg-type]
    learned = clip.state_dict()
    # Before transformers 5 the text model had this prefix on its own as well.
    keys = {name: name if name in learned else f"text_model.{name}" for name in encoder.state_dict()}
    encoder.load_state_dict({name: learned[key] for name, key in keys.items()})
    if is_first_process():
        encoder.save_pretrained(config.output)
    return clip


def _pairs(config: PartConfig) -> Pairs:
    return open_pairs(
        config.data,
        config.resolution,
        config.most_bad,
        count=config.pairs,
        seed=config.seed,
        things=config.things,
    )


def _train(config: PartConfig, module: torch.nn.Module, objective) -> None:
    values = config.model_dump(exclude={"resume"})
    output = check_output(config.output, values, config.resume)
    accelerator = make_accelerator(config, output)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if accelerator.is_main_process:
        claim(output, values)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config)
    Loop(Part(module, accelerator.device), objective, config, output, accelerator).run()
