"""Trains a Stable Diffusion for two cores on Shapes, from random weights: its parts, then the U-Net.

python -m benchmarks.toy_models.tiny_sd WORKDIR            trains what is missing; goes on where it stopped
python -m benchmarks.toy_models.tiny_sd WORKDIR --parts    of that, the autoencoder and the text encoder alone
python -m benchmarks.toy_models.tiny_sd WORKDIR --adopt    then puts it where tests and benchmarks look

The U-Net learns on the adopted autoencoder and text encoder, if there are any.
"""

import argparse
import json
import re
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.lib.paths import TINY_SD
from imagereward import shapes
from imagereward.tuning import run_recipe

# Generators first learn prompts for a single thing, whose colour and shape the words cannot confuse.
SINGLE = ("pairs.things=1", "pairs.pairs=12000", "schedule=constant", "updates=2000")
MAX_LENGTH = 24
WORD_END = "</w>"
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "addition_embed_type": "text",  # what the words say as a whole reaches every layer at once
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
# Stable Diffusion's noise, but for more of it at the end: in latents as small and plain as these its own last
# step still shows colours and places, which are then not learned from words (Lin et al. 2023,
# arXiv:2305.08891).
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}


def make_tokenizer(directory: Path) -> CLIPTokenizer:
    """A CLIPTokenizer in which every word of Shapes is one token."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = merges_of([word for word in shapes.vocabulary() if not word.startswith("##")])
    tokens = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True, exist_ok=True)
    files = directory / "vocab.json", directory / "merges.txt"
    files[0].write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    files[1].write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    tokenizer = CLIPTokenizer(*map(str, files), model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(directory)
    return tokenizer


def merges_of(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one token (Sennrich et al. 2016, arXiv:1508.07909).

    tokenizers' own trainer breaks ties by chance, and networks would see other numbers in every process.
    """
    split = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for parts in split for pair in pairwise(parts)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = [_merged(parts, best) for parts in split]
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def assemble(
    vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet
) -> StableDiffusionPipeline:
    """A pipeline of these parts."""
    return StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, DDIMScheduler(**SCHEDULER), None, None, requires_safety_checker=False
    )


def make_parts(work: Path) -> None:
    """Train the autoencoder and the text encoder, and adopt them, in half precision."""
    make_tokenizer(work / "tokenizer").save_pretrained(TINY_SD / "tokenizer")
    train("tiny/autoencoder", work / "vae", "config.json")
    train("tiny/clip", work / "text", "config.json", f"tokenizer={work / 'tokenizer'}")
    AutoencoderKL.from_pretrained(work / "vae").half().save_pretrained(TINY_SD / "vae")
    CLIPTextModel.from_pretrained(work / "text").half().save_pretrained(TINY_SD / "text_encoder")


def make(work: Path) -> Path:
    """Train the U-Net on the adopted parts, or continue; returns the directory of the pipeline."""
    start, single, tuned = work / "start", work / "single", work / "tiny-sd"
    if not (start / "model_index.json").is_file():
        torch.manual_seed(1)
        parts = (
            AutoencoderKL.from_pretrained(TINY_SD / "vae"),
            CLIPTextModel.from_pretrained(TINY_SD / "text_encoder"),
        )
        tokenizer = CLIPTokenizer.from_pretrained(TINY_SD / "tokenizer")
        network = UNet2DConditionModel(**UNET)
        assemble(*(part.float() for part in parts), tokenizer, network).save_pretrained(start)
    train("tiny/sft", single, "model_index.json", f"model={start}", *SINGLE)
    train("tiny/sft", tuned, "model_index.json", f"model={single}")
    return tuned


def train(recipe: str, output: Path, sign: str, *overrides: str) -> None:
    """Run a recipe, or the rest of it, unless `sign` says that it is done; keep how long it took."""
    if (output / sign).is_file():
        return
    resume = ["resume=true"] if (output / "run.json").is_file() else []
    began = time.monotonic()
    run_recipe(recipe, [f"output={output}", *overrides, *resume])
    with open(output.parent / "times.jsonl", "a") as file:
        file.write(json.dumps({"recipe": recipe, "seconds": round(time.monotonic() - began)}) + "\n")


def adopt(pipeline: Path) -> None:
    """The U-Net in half precision, beside the parts that it was trained on."""
    made = StableDiffusionPipeline.from_pretrained(pipeline, dtype=torch.float16)
    made.unet.save_pretrained(TINY_SD / "unet")
    made.scheduler.save_pretrained(TINY_SD / "scheduler")
    made.save_config(TINY_SD)
    forget_origin(TINY_SD)


def forget_origin(directory: Path) -> None:
    """Remove local paths from the configs of the pipeline's parts."""
    for path in [directory / "model_index.json", *directory.glob("*/*config.json")]:
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None):
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__)[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--adopt", action="store_true")
    arguments = parser.parse_args()
    if not (TINY_SD / "vae").is_dir():
        make_parts(arguments.work)
    if arguments.parts:
        return
    tuned = make(arguments.work)
    if arguments.adopt:
        adopt(tuned)


if __name__ == "__main__":
    main()
