"""tune_autoencoder and tune_clip: train the autoencoder and the text encoder of a small generator.

Both start from random weights and use the trainer of all objectives. The objective `sft` trains the network
between them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import diffusers
import torch
import torch.nn.functional as F
import transformers
from pydantic import Field, model_validator
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from imagereward.checkpoints.loading import load
from imagereward.errors import InputError
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.config import build
from imagereward.tuning.data.image_pairs import Pairs, open_pairs
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.distributed import is_first_process
from imagereward.tuning.families.autoencoder import KLAutoencoder
from imagereward.tuning.from_scratch.autoencoder import Autoencoder
from imagereward.tuning.from_scratch.contrastive import ContrastiveObjective
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.trainer.accelerate_setup import (
    accelerating,
    join,
    make_accelerator,
    start_trackers,
)
from imagereward.tuning.trainer.checkpoint import latest_state
from imagereward.tuning.trainer.liveness import watched
from imagereward.tuning.trainer.memory import keep_freed_memory
from imagereward.tuning.trainer.plan import part_plan
from imagereward.tuning.trainer.progress import tell
from imagereward.tuning.trainer.run_directory import check_run_directory, create_run_directory
from imagereward.tuning.trainer.trainer import Trainer
from imagereward.tuning.trainer_config import TrainerConfig

# Images on which the scale of the latents is measured.
MEASURED = 256
# Initial log-variance of the posteriors. At a variance of 1 the noise hides the latents' content, and the
# autoencoder learns colours late or never.
FIRST_LOGVAR = -6.0
# Learned queries with which attention pools an image's tokens, beside the text encoder that is trained.
QUERIES = 4


class FromScratchConfig(TrainerConfig):
    """The config keys that the training of an autoencoder and of a text encoder share."""

    output: str = Field(description="a new or empty directory for the result")
    evaluate_every: int = Field(20, ge=1, description="not to be set: nothing is evaluated in this training")
    data: str = Field("shapes", description='a table of {text, image}, or "shapes" for drawn ones')
    encoding: str | None = Field(
        None, description="encoding of the data; default: as a byte order mark says, else UTF-8"
    )
    pairs: int = Field(20_000, ge=1, description='number of drawn pairs, for data="shapes"')
    things: int = Field(4, ge=1, description='most things in a scene, for data="shapes"')
    resolution: int = Field(64, ge=8, description="width and height of the images in pixels")
    architecture: dict[str, Any] = Field(
        description="keyword arguments of AutoencoderKL (diffusers) or CLIPTextConfig (transformers)"
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of images that may be missing or damaged"
    )

    # Keys of `TrainerConfig` without an effect on this training, and the reason.
    unused: ClassVar[dict[str, str]] = {"evaluate_every": "nothing is evaluated in this training"}

    @model_validator(mode="after")
    def _sets_no_key_without_effect(self):
        for key, reason in self.unused.items():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} would have no effect: {reason}; leave it out")
        return self


class AutoencoderConfig(FromScratchConfig):
    """The config of training an AutoencoderKL."""

    objective: Literal["autoencoder"] = Field(
        "autoencoder", description="encode images to latents and decode them"
    )
    kl: float = Field(1e-6, ge=0, description="weight of the KL of the latents to normal(0, 1)")
    kl_from: int = Field(
        0, ge=0, description="index of the last update without KL, whose weight rises over the next 500"
    )


class CLIPTextConfig(FromScratchConfig):
    """The config of training a CLIP's text encoder against a scorer's frozen image encoder."""

    unused: ClassVar[dict[str, str]] = {
        **FromScratchConfig.unused,
        "micro_batch": "a process computes its part of the batch at once, to contrast it",
    }

    objective: Literal["clip"] = Field(
        "clip", description="a text encoder learns to match a frozen image encoder"
    )
    micro_batch: int = Field(
        4, ge=1, description="not to be set: a process computes its part of the batch at once, to contrast it"
    )
    tokenizer: str = Field(description="directory of a CLIPTokenizer")
    tower: str = Field(description="a scorer as load() takes it; its image encoder stays frozen")

    def check_processes(self, ranks: int, sharded: bool) -> None:
        part = -(-self.batch_size // ranks)
        if -(-self.batch_size // part) < ranks:
            raise InputError(
                f"batch_size={self.batch_size}: in parts of {part}, some of {ranks} processes have none; "
                f"expected a multiple of {ranks}"
            )


class CodingModule(nn.Module):
    """An autoencoder's encoding and decoding as one forward pass, which data parallelism can wrap.

    Images [B, 3, H, W] in [-1, 1] and standard normal noise [B, C, h, w] give (decoded images, posterior).
    """

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, images_B_3_H_W, noise):
        posterior = self.vae.encode(images_B_3_H_W).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior


class TowersModule(nn.Module):
    """A text encoder to train, and a scorer's frozen image tower with a trainable pooling.

    Images [B, 3, H, W] in [-1, 1] and tokens of T prompts give (unit image features [B, D], unit text
    features [T, D], log of the scale of similarities).

    scorer  its image tower stays frozen, as in Zhai et al. 2022 (arXiv:2111.07991). A text encoder learns
            only what the tower can tell apart, and a tower from random weights learns colours long before
            shapes
    text    a transformers CLIPTextConfig
    """

    def __init__(self, scorer: Scorer, text: Any):
        super().__init__()
        self._scorer = (scorer,)  # in a tuple, so no submodule: it is frozen, and checkpoints leave it out
        size = scorer.preprocess.size
        width = self._seen(torch.zeros(1, 3, size, size)).shape[-1]
        self.queries = nn.Parameter(torch.randn(QUERIES, width) / width**0.5)
        self.norm = nn.LayerNorm(width)
        self.look = nn.MultiheadAttention(width, QUERIES, batch_first=True)
        self.image_projection = nn.Linear(QUERIES * width, text.projection_dim)
        self.text = CLIPTextModel(text)
        self.text_projection = nn.Linear(text.hidden_size, text.projection_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, images_B_3_H_W, tokens):
        seen = self.norm(self._seen(images_B_3_H_W))
        looked, _ = self.look(self.queries.expand(len(seen), -1, -1), seen, seen, need_weights=False)
        images = self.image_projection(looked.flatten(1))
        texts = self.text_projection(self.text(**tokens).pooler_output)
        return F.normalize(images, dim=-1), F.normalize(texts, dim=-1), self.log_scale

    def _seen(self, images_B_3_H_W) -> torch.Tensor:
        """The tower's tokens [B, N, W] of images in [-1, 1]; N = 1 if it gives one vector for an image."""
        (scorer,) = self._scorer
        pixels = ((images_B_3_H_W + 1) / 2).to(scorer.device)
        with torch.no_grad(), scorer.evaluating():
            seen = scorer.encode_pixels([each.from_pixels(pixels) for each in scorer.processors])
        return (seen if seen.ndim == 3 else seen[:, None]).float().to(images_B_3_H_W.device)


class Training:
    """A module on its device, with the attributes that the trainer needs (see `Learner`)."""

    def __init__(self, module: nn.Module, device: torch.device):
        self.module, self.device = module.to(device), device
        self.snapshots: dict[str, Snapshot] = {}


def tune_autoencoder(values: dict[str, Any], source: str) -> Any:
    """Train an AutoencoderKL with a recipe's values; saved in `output`, and returned.

    Its scaling_factor is 1 / (standard deviation of the latents of MEASURED images). `source` names the
    recipe in error messages. Raises ProcessLostError in all other processes if one of several ends too early.
    """
    config = build(AutoencoderConfig, values, source)
    with _together(config.output):
        return _autoencoder(config)


def _autoencoder(config: AutoencoderConfig) -> Any:
    torch.manual_seed(config.seed)
    vae: Any = diffusers.AutoencoderKL(**config.architecture)
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    nn.init.constant_(last.bias.data[vae.config.latent_channels :], FIRST_LOGVAR)
    pairs = _pairs(config)
    objective = Autoencoder(
        pairs,
        latent_shape=KLAutoencoder(vae, ImageSize.of(config.resolution)).shape,
        kl=config.kl,
        kl_from=config.kl_from,
        seed=config.seed,
    )
    vae.requires_grad_(True)
    output = _train(config, CodingModule(vae), objective)
    vae.eval()
    few = range(min(MEASURED, len(pairs)))
    pixels = torch.stack([pairs[i]["pixels"] for i in few])
    with torch.no_grad():
        means = [
            vae.encode(part.to(vae.device).float() / 127.5 - 1).latent_dist.mean
            for part in pixels.split(config.micro_batch)
        ]
    vae.register_to_config(scaling_factor=1 / float(torch.cat(means).std()))
    if is_first_process():
        vae.save_pretrained(output)
        _tell_result("diffusers", "AutoencoderKL", str(output))
    return vae


def tune_clip(values: dict[str, Any], source: str) -> CLIPTextModel:
    """Train a CLIP's text encoder with a recipe's values; saved in `output`, and returned.

    `source` names the recipe in error messages. Raises ProcessLostError as `tune_autoencoder` does.
    """
    config = build(CLIPTextConfig, values, source)
    with _together(config.output):
        return _text_encoder(config)


def _text_encoder(config: CLIPTextConfig) -> CLIPTextModel:
    tokenizer = CLIPTokenizer.from_pretrained(str(Path(config.tokenizer).expanduser()))
    torch.manual_seed(config.seed)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text: Any = transformers.CLIPTextConfig(**config.architecture, **ids, eos_token_id=tokenizer.eos_token_id)
    towers = TowersModule(load(config.tower), text)
    objective = ContrastiveObjective(_pairs(config), tokenizer, seed=config.seed)
    output = _train(config, towers, objective)
    if is_first_process():
        towers.text.save_pretrained(output)
        _tell_result("transformers", "CLIPTextModel", str(output))
    return towers.text


@contextmanager
def _together(output: str) -> Iterator[None]:
    """A context in which the processes of the launcher have found each other and watch each other."""
    with accelerating():
        rank, ranks = join()
        with watched(rank, ranks, lambda: latest_state(Path(output).expanduser())):
            yield


def _tell_result(library: str, class_name: str, output: str) -> None:
    tell(
        f"the result is in {output}; to load it:\n"
        f"    from {library} import {class_name}\n\n    model = {class_name}.from_pretrained({output!r})"
    )


def _pairs(config: FromScratchConfig) -> Pairs:
    return open_pairs(
        config.data,
        ImageSize.of(config.resolution),
        config.max_bad_share,
        count=config.pairs,
        seed=config.seed,
        things=config.things,
        encoding=config.encoding,
    )


def _train(config: FromScratchConfig, module: nn.Module, objective) -> Path:
    """Train the module, in place; with `ema` it ends with the averaged weights. Returns the directory."""
    values = config.model_dump(exclude={"resume"})
    output = check_run_directory(config.output, values, config.resume)
    accelerator = make_accelerator(config, output)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if accelerator.is_main_process:
        create_run_directory(output, values)
        count = len(objective.pairs)
        device, ranks = str(accelerator.device), accelerator.num_processes
        tell(part_plan(config, module, config.data, count, config.output, device, ranks))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config)
    loop = Trainer(Training(module, accelerator.device), objective, config, output, accelerator)
    loop.run()
    loop.settle()
    return output
