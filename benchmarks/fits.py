"""What one ReFL step needs in memory at real sizes, counted without running it: `python benchmarks/fits.py`.

Every tensor that a step makes is counted from when its memory is taken to when it is given back, by running
the step on torch's fake tensors, which have shapes and no values. The step is the one that carries gradient,
in bfloat16, with ImageReward at full size. Not counted: a driver's context, kernels' scratch space and
fragmentation, for which a tenth of a card is left. The same count in float32 stands beside the peak that
refl_step.py measured, to show what it is worth. Writes results/fits.json.
"""

import sys
import weakref
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import record
from benchmarks.refl_step import stable_diffusion_15
from benchmarks.tiny_sd import SCHEDULER
from imagereward.loading import random_scorer
from imagereward.registry import REGISTRY
from imagereward.table import table
from imagereward.tuning.adapt import LoRA, learning, let_learn
from imagereward.tuning.denoisers import Condition, open_denoiser
from imagereward.tuning.generator import recompute
from imagereward.tuning.rewards import Rewards

CARDS = (12, 24, 80)
LEFT = 0.1  # of a card, for what is not counted
MODELS = {"SD 1.5": 512, "SDXL": 1024}
GB = 2**30
PROMPT = "an ocean with clouds and birds"


class Count(TorchDispatchMode):
    """Bytes of the tensors made within that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.storages = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self.storages:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage) -> None:
        self.storages.add(storage)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self.alive -= size


def sdxl() -> StableDiffusionXLPipeline:
    """The architecture of SDXL; no tokenizers, which need their files."""
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
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=1024,
        scaling_factor=0.13025,
    )
    small = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    large = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
    )
    encoders = CLIPTextModel(small), CLIPTextModelWithProjection(large)
    return StableDiffusionXLPipeline(vae, *encoders, None, None, unet, DDIMScheduler(**SCHEDULER))


def condition(model: str, images: int, dtype) -> Condition:
    """Such tensors as the text encoders give."""
    if model == "SD 1.5":
        return Condition({"encoder_hidden_states": torch.randn(images, 77, 768, dtype=dtype)})
    return Condition(
        {
            "encoder_hidden_states": torch.randn(images, 77, 2048, dtype=dtype),
            "text_embeds": torch.randn(images, 1280, dtype=dtype),
            "time_ids": torch.randn(images, 6, dtype=dtype),
        }
    )


class Setting(NamedTuple):
    """What is trained and how; `vae` is the precision of the decoder, `dtype` that of the network."""

    model: str
    lora: bool
    checkpointing: bool
    dtype: torch.dtype = torch.bfloat16
    vae: torch.dtype = torch.float32


SETTINGS = [
    Setting("SD 1.5", True, False),
    Setting("SD 1.5", True, True),
    Setting("SD 1.5", False, True),
    Setting("SDXL", True, False),
    Setting("SDXL", True, True),
    Setting("SDXL", True, True, vae=torch.bfloat16),
    Setting("SDXL", False, True, vae=torch.bfloat16),
]
MEASURED = [Setting("SD 1.5", True, on, torch.float32) for on in (False, True)]


def count(setting: Setting, images: int) -> dict[str, float]:
    """Gigabytes that stay between steps, and the peak of a step, both with AdamW's moments."""
    with torch.device("meta"):
        pipeline = stable_diffusion_15() if setting.model == "SD 1.5" else sdxl()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(setting.dtype)
    pipeline.vae.to(setting.vae)
    pipeline.unet.to(setting.dtype if setting.lora else torch.float32)
    denoiser = open_denoiser(pipeline, MODELS[setting.model])
    let_learn(denoiser, LoRA() if setting.lora else None)
    scorer = random_scorer(REGISTRY["ImageReward-v1.0"].config, "cpu")
    if setting.checkpointing:
        recompute(denoiser, Rewards({"ImageReward": (1.0, scorer)}))
    with FakeTensorMode(allow_non_fake_inputs=True), Count() as counted:
        for module in (denoiser.network, *denoiser.frozen, scorer):
            module.to_empty(device="cpu")
        moments = sum(value.numel() * 8 for value in learning(denoiser.network).values())
        given = condition(setting.model, images, setting.dtype)
        noise, times = torch.randn(images, *denoiser.latents.shape), torch.zeros(images, dtype=torch.long)
        counted.peak = resting = counted.alive
        with torch.autocast("cpu", setting.dtype, enabled=setting.dtype != torch.float32):
            prediction = denoiser.predict(noise, times, given)
        pixels = denoiser.latents.decode(noise - prediction)  # the clean image, but for factors
        prompts = scorer.encode_prompts([PROMPT] * images)
        scorer.score_grad(*prompts, scorer.preprocess.resize(pixels)).sum().backward()
    return {"resting_gb": (resting + moments) / GB, "peak_gb": (counted.peak + moments) / GB}


def row(setting: Setting) -> dict:
    """One image's count, what another adds, and how many at once each card takes."""
    one, two = count(setting, 1), count(setting, 2)
    more = two["peak_gb"] - one["peak_gb"]
    return {
        "model": f"{setting.model}, {MODELS[setting.model]} px",
        "learns": "LoRA" if setting.lora else "all",
        "checkpointing": setting.checkpointing,
        "decoder": str(setting.vae).removeprefix("torch."),
        **one,
        "another_gb": more,
        "images": {card: max(0, 1 + int((card * (1 - LEFT) - one["peak_gb"]) // more)) for card in CARDS},
    }


def main() -> None:
    """The command."""
    rows, beside = [], []
    for setting in SETTINGS:
        rows.append(row(setting))
        print(table([{key: value for key, value in rows[-1].items() if key != "images"}]), flush=True)
    for setting in MEASURED:
        found = count(setting, 1)
        name = (
            f"{'LoRA' if setting.lora else 'full'}, {'checkpointing' if setting.checkpointing else 'plain'}"
        )
        beside.append({"setting": name, "activations_gb": found["peak_gb"] - found["resting_gb"]})
        print(table(beside[-1:]), flush=True)
    found = {"rows": rows, "float32": beside, "environment": record.environment(torch.device("cpu"))}
    print(record.write("fits", found))


if __name__ == "__main__":
    main()
