"""Applies `shapes.measure` to images of the tiny generators and to reconstructions of their autoencoder.

python -m benchmarks.toy_models.drawings [MODEL …] [--prompts N] [--guidance G …]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.paths import TINY_FLOW
from benchmarks.training.finetune import MODEL, REWARD, STEPS, THINGS, prompts_of
from imagereward.images.preprocess import Preprocess
from imagereward.shapes.rewards import measured
from imagereward.table import table
from imagereward.tuning.data.image_pairs import ShapesPairs
from imagereward.tuning.evaluation.evaluate import sample_images
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy

MODELS = (MODEL, TINY_FLOW)
ATTRIBUTES = ("count", "colour", "shape", "thing", "background")
BATCH = 64


def found(images_B_3_H_W: torch.Tensor, prompts: Sequence[str], scorer) -> dict[str, float]:
    """Mean measurements over images; of each attribute, over images whose prompt asks for it."""
    each = measured(images_B_3_H_W, prompts)
    row = {
        name: float(np.mean([one.attributes[name] for one in each if name in one.attributes]))
        for name in ATTRIBUTES
    }
    with torch.no_grad():
        rewards = scorer.reward(images_B_3_H_W, list(prompts))
    return {
        **row,
        "faithfulness": float(np.mean([one.faithfulness for one in each])),
        "all right": float(np.mean([one.faithful for one in each])),
        "cleanliness": float(np.mean([one.cleanliness for one in each])),
        "reward": float(rewards.mean()),
    }


def drawings(model: Path, prompts: Sequence[str], guidance: float) -> torch.Tensor:
    """An image of each prompt."""
    denoiser = open_denoiser(str(model))
    policy = Policy(denoiser, denoiser.dynamics(STEPS), guidance)
    return sample_images(policy, prompts, 1, 0, BATCH, None)[:, 0]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", default=MODELS)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0])
    record.add_option(parser)
    options = parser.parse_args()
    record.refuse_changes(options.allow_changes)
    scorer, count = RM.load(REWARD), options.prompts
    truth = ShapesPairs(count, 7, Preprocess(64), THINGS)
    pixels = torch.stack([truth[i]["pixels"] for i in range(count)]).float() / 255
    latents = open_denoiser(str(options.models[0])).autoencoder
    with torch.no_grad():
        seen = torch.cat([latents.decode(latents.encode(part)) for part in pixels.split(BATCH)])
    rows = [
        {"images": "true", **found(pixels, truth.texts, scorer)},
        {"images": "true, another prompt", **found(pixels, np.roll(truth.texts, 1).tolist(), scorer)},
        {"images": "true, through the autoencoder", **found(seen, truth.texts, scorer)},
    ]
    prompts = prompts_of("test", count)
    for model in options.models:
        for guidance in options.guidance:
            name = model.name if guidance == 1 else f"{model.name}, guidance {guidance:g}"
            rows.append({"images": name, **found(drawings(model, prompts, guidance), prompts, scorer)})
    print(table(rows))
    result = {"prompts": count, "steps": STEPS, "rows": rows}
    print(record.write("tiny-drawings", {**result, "environment": record.environment(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
