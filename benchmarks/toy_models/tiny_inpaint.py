"""Trains an inpainting model for two cores on Shapes: the tiny Stable Diffusion, shown an image and a mask.

python -m benchmarks.toy_models.tiny_inpaint WORKDIR            trains it; goes on where it stopped
python -m benchmarks.toy_models.tiny_inpaint WORKDIR --adopt    then puts it where tests and benchmarks look
python -m benchmarks.toy_models.tiny_inpaint --sheet FILE       draws what the adopted model paints

Its U-Net takes nine channels: noisy latents, the mask, and the latents of the masked image. The first four
begin with the tiny Stable Diffusion's weights, the others with 0.
"""

import argparse
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline, UNet2DConditionModel
from pydantic import Field
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from benchmarks.lib.paths import TINY_INPAINT, TINY_SD
from benchmarks.toy_models.tiny_sd import forget_origin
from imagereward.shapes.inpainting import InpaintingRow, inpainting_row, measure_inpainting
from imagereward.tuning.config import build
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Request
from imagereward.tuning.data.seeding import noise_for_samples, random_generator, rows_for_samples
from imagereward.tuning.evaluation.evaluate import sample_images
from imagereward.tuning.evaluation.image_grid import make_grid
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.finetune import train_generator
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.recipe import read_recipe

RECIPE = Path(__file__).with_suffix(".toml")
ENCODED_AT_ONCE = 32


def start() -> StableDiffusionInpaintPipeline:
    """The pipeline before training: the tiny Stable Diffusion, its U-Net with five more channels."""
    source = DiffusionPipeline.from_pretrained(TINY_SD, dtype=torch.float32)
    network = UNet2DConditionModel.from_config({**source.unet.config, "in_channels": 9})
    weights = source.unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, first.new_zeros(len(first), 5, *first.shape[2:])], 1)
    network.load_state_dict(weights)
    return StableDiffusionInpaintPipeline(
        source.vae,
        source.text_encoder,
        source.tokenizer,
        network,
        source.scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def request_of(row: InpaintingRow) -> Request:
    """The row as training and evaluation take it."""
    return Request(row.prompt, row.image, row.mask)


def held_out(count: int, seed: int = 7) -> list[Request]:
    """Rows of the test split whose prompts ask for another thing than the mask hides."""
    return [request_of(inpainting_row(i, seed, "test", change=True)) for i in range(count)]


class PaintedConfig(GeneratorConfig):
    """The config of noise prediction on drawn scenes, of which a mask hides one thing."""

    examples: int = Field(12_000, ge=1, description="how many scenes are drawn")
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="share of samples without their prompt")

    def make(self, job: ObjectiveContext) -> "Painted":
        return Painted(self, job.denoiser, job.output)


class Painted(Objective):
    """The squared error of the network's prediction, at one random time for every sample."""

    def __init__(self, config: PaintedConfig, denoiser: Denoiser, output: Path):
        self.config = config
        path = output.parent / f"painted-{config.seed}-{config.examples}.safetensors"
        if not path.is_file():
            save_file(_encoded(denoiser, config.examples, config.seed), path)
        self.cached = load_file(path)
        self.texts = [_row(i, config.seed).prompt for i in range(config.examples)]
        self.words = lru_cache(maxsize=None)(lambda prompt: denoiser.text([prompt]))

    @property
    def prompts(self) -> list[str]:
        """The prompts of all rows."""
        return self.texts

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[Chunk]]:
        """One step of the optimizer, with this process's chunks."""
        yield plan.mine

    def loss(self, policy: Policy, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The chunk's mean squared error."""
        denoiser, dynamics, seed = policy.denoiser, policy.dynamics, self.config.seed
        sources = [random_generator(seed, "time", sample) for sample in chunk.samples]
        time = torch.cat([dynamics.draw_times(1, source) for source in sources]).to(policy.device)
        dropped = [float(torch.rand((), generator=source)) < self.config.prompt_dropout for source in sources]
        rows = rows_for_samples(chunk.samples, len(self.texts), seed)
        texts = ["" if drop else self.texts[row] for drop, row in zip(dropped, rows, strict=True)]
        words = Condition.cat([Condition(self.words(text)) for text in texts]).tensors
        clean, channels = (self.cached[name][rows].float() for name in ("latents", "channels"))
        noise = noise_for_samples(chunk.samples, denoiser.autoencoder.shape, seed, "painted")
        noisy = dynamics.add_noise(clean, noise, time)
        prediction = denoiser.predict(noisy, time, Condition(words | {"channels": channels}))
        loss = (prediction - dynamics.target(clean, noise, time)).square().mean()
        return loss, {"error": loss.detach()}

    def prompts_in(self, chunk: Chunk) -> list[str]:
        """The chunk's prompts."""
        return [self.texts[row] for row in rows_for_samples(chunk.samples, len(self.texts), self.config.seed)]


def _row(index: int, seed: int) -> InpaintingRow:
    return inpainting_row(index, seed, "train")


def _encoded(denoiser: Denoiser, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Latents [N, C, h, w] of the images and the channels that the U-Net is shown, float16."""
    parts: dict[str, list[torch.Tensor]] = {"latents": [], "channels": []}
    for at in tqdm(range(0, count, ENCODED_AT_ONCE), "latents", unit="batch"):
        rows = [_row(i, seed) for i in range(at, min(at + ENCODED_AT_ONCE, count))]
        pixels = np.stack([np.asarray(row.image) for row in rows])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        parts["latents"].append(denoiser.autoencoder.encode(images).half())
        parts["channels"].append(
            denoiser.encode([request_of(row) for row in rows]).tensors["channels"].half()
        )
    return {name: torch.cat(each).contiguous() for name, each in parts.items()}


def make(work: Path) -> Path:
    """Train the U-Net, or continue; returns the directory of the pipeline."""
    beginning, tuned = work / "start", work / "tiny-inpaint"
    if not (beginning / "model_index.json").is_file():
        start().save_pretrained(beginning)
    if not (tuned / "model_index.json").is_file():
        changes = [f"model={beginning}", f"output={tuned}"]
        changes += ["resume=true"] if (tuned / "run.json").is_file() else []
        config = build(PaintedConfig, read_recipe(RECIPE, changes), str(RECIPE))
        train_generator(config, prompts=held_out(config.evaluation.count))
    return tuned


def adopt(pipeline: Path) -> None:
    """The U-Net in half precision, beside the tiny Stable Diffusion's parts."""
    made = StableDiffusionInpaintPipeline.from_pretrained(pipeline, dtype=torch.float16)
    made.unet.save_pretrained(TINY_INPAINT / "unet")
    made.save_config(TINY_INPAINT)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(TINY_SD / part, TINY_INPAINT / part, dirs_exist_ok=True)
    forget_origin(TINY_INPAINT)


def painted(model: Path, rows: list[Request], seeds: int = 1) -> torch.Tensor:
    """Images [M, seeds, 3, 64, 64] of M rows in [0, 1], painted in 20 steps without guidance."""
    denoiser = open_denoiser(str(model))
    return sample_images(Policy(denoiser, denoiser.dynamics(20)), rows, seeds, 0, 32, None)


def describe(path: Path, model: Path = TINY_INPAINT, shown: int = 12) -> dict[str, float]:
    """Draw two painted images of held-out rows as a sheet; returns mean measurements of 64 rows."""
    rows = held_out(64)
    images = painted(model, rows, seeds=2)
    found = [
        measure_inpainting(image, row.prompt, row.image, row.mask)
        for row, drawn in zip(rows, images, strict=True)
        for image in drawn
    ]
    sheet(path, rows[:shown], [("painted", images[:shown, 0]), ("painted", images[:shown, 1])])
    return {
        "faithfulness": float(np.mean([each.faithfulness for each in found])),
        "faithful": float(np.mean([each.faithful for each in found])),
        "outside": float(np.mean([each.outside for each in found])),
    }


def sheet(path: Path, rows: list[Request], columns: list[tuple[str, torch.Tensor]]) -> None:
    """Draw rows as a picture: original, mask, and columns of (heading, images [M, 3, H, W])."""
    cells: list[Any] = []
    for row, *images in zip(rows, *(images for _, images in columns), strict=True):
        cells.append([_tensor(row.image), _tensor(row.mask.convert("RGB")), *images])
    headings = ["original", "mask", *(heading for heading, _ in columns)]
    make_grid(cells, [row.prompt for row in rows], headings).save(path)


def _tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--adopt", action="store_true")
    parser.add_argument("--sheet", type=Path, help="the picture to write")
    parser.add_argument(
        "--model", type=Path, default=TINY_INPAINT, help="the pipeline that --sheet draws with"
    )
    arguments = parser.parse_args()
    if arguments.work is not None:
        tuned = make(arguments.work)
        if arguments.adopt:
            adopt(tuned)
    if arguments.sheet is not None:
        print(describe(arguments.sheet, arguments.model))


if __name__ == "__main__":
    main()
