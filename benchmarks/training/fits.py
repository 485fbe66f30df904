"""Counts the memory of one update at real sizes with torch's fake tensors, without running it.

    python -m benchmarks.training.fits

Fake tensors have shapes and no values; every tensor of a step is counted while it is alive. Of ReFL the step
with gradient is counted; of GRPO the larger of drawing and scoring, and of learning from one step. With the
guidance, LoRA rank and steps of the model's recipe, in bfloat16, with ImageReward at full size. Not counted:
the driver's context, kernels' scratch space and fragmentation, for which a tenth of a card is reserved, and
the latents that GRPO keeps of an update, which are listed apart. Activations are counted in float32 as well,
with and without checkpointing. Writes results/fits.json.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from diffusers.utils import logging
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.lib import record
from benchmarks.lib.full_size import (
    flux_dev,
    flux_fill,
    flux_kontext,
    sd35_large,
    sd35_medium,
    sdxl,
    stable_diffusion_15,
    stable_diffusion_15_inpainting,
)
from benchmarks.lib.memory import Count
from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY
from imagereward.table import table
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.flux import T5_TOKENS as FLUX_TOKENS
from imagereward.tuning.families.image_conditioning import ImageConditioning
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.families.sd3 import CLIP_TOKENS
from imagereward.tuning.families.sd3 import T5_TOKENS as SD3_TOKENS
from imagereward.tuning.finetune import recompute
from imagereward.tuning.policy.quantization import Linear4bit, quantize_to_4bit
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters
from imagereward.tuning.recipe import read_recipe, recipe_names
from imagereward.tuning.rewards.weighted import Rewards

CARDS = (12, 24, 40, 48, 80, 141)
LEFT = 0.1  # of a card, for what is not counted
GB, MB = 2**30, 2**20
PROMPT = "an ocean with clouds and birds"


class Model(NamedTuple):
    """`make` lays it out; `text` are the shapes of what its text encoders give for one prompt.

    `recipes` is the folder of its recipes, which give guidance, LoRA's rank and GRPO's steps.
    """

    make: Callable
    text: dict[str, tuple[int, ...]]
    recipes: str

    def recipe(self, objective: str) -> dict[str, Any]:
        """The values of its recipe for the objective: the one with LoRA, if there is one."""
        name = f"{self.recipes}/{objective.lower()}"
        return read_recipe(f"{name}_lora" if f"{name}_lora" in recipe_names() else name)

    def rank(self) -> int:
        """The rank of LoRA in its recipe for ReFL."""
        return self.recipe("ReFL")["lora"]["rank"]


HIDDEN, POOLED = "encoder_hidden_states", "pooled_projections"
SD3_TEXT = {HIDDEN: (CLIP_TOKENS + SD3_TOKENS, 4096), POOLED: (2048,)}
FLUX_TEXT = {HIDDEN: (FLUX_TOKENS, 4096), POOLED: (768,)}
MODELS = {
    "SD 1.5": Model(stable_diffusion_15, {HIDDEN: (CLIP_TOKENS, 768)}, "sd15"),
    "SDXL": Model(sdxl, {HIDDEN: (CLIP_TOKENS, 2048), "text_embeds": (1280,)}, "sdxl"),
    "SD 3.5 Medium": Model(sd35_medium, SD3_TEXT, "sd3"),
    "SD 3.5 Large": Model(sd35_large, SD3_TEXT, "sd35_large"),
    "FLUX.1-dev": Model(flux_dev, FLUX_TEXT, "flux"),
    "SD 1.5 inpainting": Model(stable_diffusion_15_inpainting, {HIDDEN: (CLIP_TOKENS, 768)}, "sd_inpaint"),
    "FLUX.1 Kontext": Model(flux_kontext, FLUX_TEXT, "flux_kontext"),
    "FLUX.1 Fill": Model(flux_fill, FLUX_TEXT, "flux_fill"),
}


class Setting(NamedTuple):
    """What is trained and how; `vae` is the precision of the decoder, `dtype` that of the network.

    `encoders` stay on the card; without, embeddings are kept on disk.
    """

    objective: str
    model: str
    side: int
    lora: bool = True
    checkpointing: bool = True
    four_bits: bool = False
    encoders: bool = True
    vae: torch.dtype = torch.float32
    dtype: torch.dtype = torch.bfloat16


SETTINGS = [
    Setting("ReFL", "SD 1.5", 512, checkpointing=False),
    Setting("ReFL", "SD 1.5", 512),
    Setting("ReFL", "SD 1.5", 512, lora=False),
    Setting("ReFL", "SDXL", 1024, checkpointing=False),
    Setting("ReFL", "SDXL", 1024),
    Setting("ReFL", "SDXL", 1024, vae=torch.bfloat16),
    Setting("ReFL", "SDXL", 1024, lora=False, vae=torch.bfloat16),
    Setting("ReFL", "SD 3.5 Medium", 1024, encoders=False),
    Setting("ReFL", "SD 3.5 Large", 1024, encoders=False),
    Setting("ReFL", "FLUX.1-dev", 1024, encoders=False),
    Setting("ReFL", "FLUX.1-dev", 1024, encoders=False, four_bits=True, vae=torch.bfloat16),
    Setting("GRPO", "SD 1.5", 512),
    Setting("GRPO", "SD 1.5", 512, lora=False),
    Setting("GRPO", "SDXL", 1024),
    Setting("GRPO", "SD 3.5 Medium", 512),
    Setting("GRPO", "SD 3.5 Medium", 512, encoders=False),
    Setting("GRPO", "SD 3.5 Medium", 512, lora=False, encoders=False),
    Setting("GRPO", "SD 3.5 Large", 512, encoders=False),
    Setting("GRPO", "SD 3.5 Large", 512, lora=False, encoders=False),
    Setting("GRPO", "FLUX.1-dev", 512),
    Setting("GRPO", "FLUX.1-dev", 512, encoders=False),
    Setting("GRPO", "FLUX.1-dev", 512, encoders=False, four_bits=True),
    Setting("GRPO", "FLUX.1-dev", 1024, encoders=False, four_bits=True),
    Setting("GRPO", "FLUX.1-dev", 512, lora=False, encoders=False),
    Setting("ReFL", "SD 1.5 inpainting", 512),
    Setting("ReFL", "FLUX.1 Kontext", 1024, encoders=False),
    Setting("ReFL", "FLUX.1 Fill", 1024, encoders=False),
    Setting("GRPO", "SD 1.5 inpainting", 512),
    Setting("GRPO", "FLUX.1 Kontext", 1024, encoders=False),
    Setting("GRPO", "FLUX.1 Fill", 1024, encoders=False),
]
MEASURED = [Setting("ReFL", "SD 1.5", 512, checkpointing=on, dtype=torch.float32) for on in (False, True)]


def laid_out(setting: Setting) -> Denoiser:
    """The denoiser on fake tensors, in the precisions of the setting."""
    model = MODELS[setting.model]
    with torch.device("meta"):
        pipeline = model.make()
    denoiser = open_denoiser(pipeline, setting.side)
    if denoiser.inputs:
        denoiser.pictures = Unseen(**vars(denoiser.pictures))
    for part in denoiser.frozen:
        part.to(setting.dtype)
    pipeline.vae.to(setting.vae)
    denoiser.network.to(setting.dtype if setting.lora else torch.float32)
    denoiser.text = lambda prompts: {
        name: torch.empty(len(prompts), *shape, dtype=setting.dtype) for name, shape in model.text.items()
    }
    return denoiser


class Unseen(ImageConditioning):
    """The pictures of rows as tensors without values."""

    def pixels(self, rows, size):
        """Images [B, 3, H, W], and masks [B, 1, H, W] where the model takes any."""
        return [torch.zeros(len(rows), 1 if name == "mask" else 3, *size) for name in self.inputs]


class Needs(NamedTuple):
    """Gigabytes that stay between steps, AdamW's moments among them, and a step's peak by images."""

    resting: float
    moments: float
    peaks: dict[int, float]


def count(setting: Setting, numbers: Iterable[int]) -> Needs:
    """What training needs, for each of these numbers of images at once."""
    denoiser, scorer = laid_out(setting), random_scorer(REGISTRY["ImageReward-v1.0"].config, "meta")
    times = denoiser.dynamics(4).model_time(torch.zeros(1, dtype=torch.long))
    network, vae = denoiser.network, denoiser.autoencoder.vae
    if setting.four_bits:
        quantize_to_4bit(network, "meta")
    set_trainable(denoiser, LoRA(rank=MODELS[setting.model].rank()) if setting.lora else None)
    if setting.checkpointing:
        recompute(denoiser, Rewards({"ImageReward": (1.0, scorer)}))
    with FakeTensorMode(allow_non_fake_inputs=True), Count() as counted:
        for module in (network, scorer, *(denoiser.frozen if setting.encoders else [vae])):
            module.to_empty(device="cpu")
        for layer in network.modules():
            if isinstance(layer, Linear4bit):
                for scales in (layer.scales, layer.scales.state2):
                    scales.absmax, scales.code = (
                        torch.empty_like(value, device="cpu") for value in (scales.absmax, scales.code)
                    )
                layer.scales.offset = torch.empty_like(layer.scales.offset, device="cpu")
        moments = sum(value.numel() * 8 for value in trainable_parameters(network).values())
        resting, peaks = counted.alive, {}
        for images in numbers:
            counted.peak = counted.alive
            step(setting, denoiser, scorer, times.repeat(images))
            peaks[images] = (counted.peak + moments) / GB
            network.zero_grad()
    return Needs((resting + moments) / GB, moments / GB, peaks)


def step(setting: Setting, denoiser: Denoiser, scorer, times) -> None:
    """ReFL's step with gradient; or GRPO's last step of drawing, its scoring, and one step of learning."""
    count = len(times)
    noise = torch.randn(count, *denoiser.autoencoder.shape)
    with torch.no_grad():
        given = denoiser.encode([PROMPT] * count)
    grpo = setting.objective == "GRPO"
    guidance = MODELS[setting.model].recipe(setting.objective)["guidance"]

    def predict():
        with torch.autocast("cpu", setting.dtype, enabled=setting.dtype != torch.float32):
            return denoiser.predict(noise, times, given, guidance)

    with torch.set_grad_enabled(not grpo):
        pixels = denoiser.autoencoder.decode(noise - predict())  # the clean image, but for factors
        prompts = scorer.encode_prompts([PROMPT] * count)
        rewards = scorer.score_grad(*prompts, scorer.preprocess.resize(pixels))
    if grpo:
        del pixels, prompts, rewards
        predict().sum().backward()
    else:
        rewards.sum().backward()


def kept(setting: Setting) -> float | None:
    """Megabytes that GRPO keeps of an update's image: its latents, and its prompt's embeddings."""
    if setting.objective != "GRPO":
        return None
    model = MODELS[setting.model]
    latents = model.recipe(setting.objective)["steps"] * 4 * math.prod(laid_out(setting).autoencoder.shape)
    words = sum(math.prod(shape) for shape in model.text.values()) * setting.dtype.itemsize
    return (latents + words) / MB


def row(setting: Setting) -> dict:
    """One image's count, what another adds, and how many at once each card takes."""
    # Of a few images, most is for something else: the gradients of all weights, or, without gradient, the one
    # image that is being decoded.
    few = 1 if setting.lora and setting.objective == "ReFL" else 16
    resting, moments, peaks = count(setting, sorted({1, few, 2 * few}))
    more = (peaks[2 * few] - peaks[few]) / few
    rest = peaks[few] - few * more
    return {
        "objective": setting.objective,
        "model": f"{setting.model}, {setting.side} px",
        "learns": ("LoRA over 4 bits" if setting.four_bits else "LoRA") if setting.lora else "all",
        "checkpointing": setting.checkpointing,
        "encoders": setting.encoders,
        "decoder": str(setting.vae).removeprefix("torch."),
        "resting_gb": resting,
        "moments_gb": moments,
        "peak_gb": peaks[1],
        "another_gb": more,
        "kept_mb": kept(setting),
        "images": {
            card: int((card * (1 - LEFT) - rest) // more) if peaks[1] <= card * (1 - LEFT) else 0
            for card in CARDS
        },
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_option(parser)
    record.refuse_changes(parser.parse_args().allow_changes)
    logging.set_verbosity_error()
    rows, beside = [], []
    for setting in SETTINGS:
        rows.append(row(setting))
        print(table([{key: value for key, value in rows[-1].items() if key != "images"}]), flush=True)
    for setting in MEASURED:
        resting, _, peaks = count(setting, [1])
        name = (
            f"{'LoRA' if setting.lora else 'full'}, {'checkpointing' if setting.checkpointing else 'plain'}"
        )
        beside.append({"setting": name, "activations_gb": peaks[1] - resting})
        print(table(beside[-1:]), flush=True)
    found = {"rows": rows, "float32": beside, "environment": record.environment(torch.device("cpu"))}
    print(record.write("fits", found))


if __name__ == "__main__":
    main()
