"""Trains a flow model for two cores: a small SD3 transformer on parts of the tiny Stable Diffusion.

python -m benchmarks.toy_models.tiny_flow WORKDIR            trains it on Shapes; goes on where it stopped
python -m benchmarks.toy_models.tiny_flow WORKDIR --adopt    then puts it where tests and benchmarks look

The model has no T5 encoder, and was trained with one empty T5 token: pass max_sequence_length=1 to diffusers.
"""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from benchmarks.lib.paths import TINY_FLOW, TINY_SD
from benchmarks.toy_models.tiny_sd import SINGLE, forget_origin, train
from imagereward.tuning.families.registry import open_denoiser

TRANSFORMER = {
    "patch_size": 2,
    "num_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "caption_projection_dim": 192,
    "qk_norm": "rms_norm",
}


def start(parts: Path) -> StableDiffusion3Pipeline:
    """The pipeline with a transformer of random weights and the parts of a tiny Stable Diffusion."""
    source = open_denoiser(str(parts)).pipeline
    encoder, tokenizer, vae = with_projection(source.text_encoder), source.tokenizer, source.vae
    vae.register_to_config(shift_factor=0.0)  # SD3's pipeline adds it
    width = encoder.config.hidden_size
    torch.manual_seed(1)
    network = SD3Transformer2DModel(
        **TRANSFORMER,
        sample_size=source.unet.config.sample_size,
        pos_embed_max_size=source.unet.config.sample_size // TRANSFORMER["patch_size"],
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        joint_attention_dim=2 * width,
        pooled_projection_dim=2 * width,
    )
    room = type(tokenizer).from_pretrained(parts / "tokenizer", model_max_length=1)
    return StableDiffusion3Pipeline(
        network,
        FlowMatchEulerDiscreteScheduler(shift=3.0),  # SD3's own
        vae,
        *(encoder, tokenizer),
        *(encoder, tokenizer),  # SD3 has two of them
        *(None, room),
    )


def with_projection(encoder) -> CLIPTextModelWithProjection:
    """The text encoder with an identity projection: its pooled embedding is that of the last word."""
    config = encoder.config
    config.projection_dim = config.hidden_size
    made = CLIPTextModelWithProjection(config)
    learned = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    made.text_model.load_state_dict(learned)
    torch.nn.init.eye_(made.text_projection.weight)
    return made


def make(work: Path, parts: Path = TINY_SD) -> Path:
    """Train the model, or continue its training; returns the directory of the pipeline."""
    beginning, single, tuned = work / "start-flow", work / "single-flow", work / "tiny-flow"
    if not (beginning / "model_index.json").is_file():
        start(parts).save_pretrained(beginning)
    train("tiny/flow", single, "model_index.json", f"model={beginning}", *SINGLE)
    train("tiny/flow", tuned, "model_index.json", f"model={single}")
    return tuned


def adopt(pipeline: Path) -> None:
    """Copy the pipeline's files in half precision to where tests and benchmarks read them."""
    made = open_denoiser(pipeline, dtype=torch.float16).pipeline
    made.vae.half()
    shutil.rmtree(TINY_FLOW, ignore_errors=True)
    made.save_pretrained(TINY_FLOW)
    forget_origin(TINY_FLOW)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--parts", type=Path, default=TINY_SD, help="a tiny Stable Diffusion's directory")
    parser.add_argument("--adopt", action="store_true")
    arguments = parser.parse_args()
    tuned = make(arguments.work, arguments.parts)
    if arguments.adopt:
        adopt(tuned)


if __name__ == "__main__":
    main()
