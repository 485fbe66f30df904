"""Initial weights of a reward model's training, freezing of layers, and recomputed activations."""

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from imagereward.checkpoints.assembling import assemble
from imagereward.checkpoints.loading import load
from imagereward.config import ScorerConfig
from imagereward.errors import InputError, missing_extra
from imagereward.models import model_class
from imagereward.models.blip import BLIP, BLIPBase
from imagereward.models.imagereward import ImageReward, RewardHead
from imagereward.scoring.scorer import Scorer

HeadInit = Literal["published", "ordinary"]
Checkpointing = Literal["none", "torch", "fairscale", "fairscale-offload"]


def from_nothing(config: ScorerConfig, seed: int) -> Scorer:
    """A scorer with random weights, float32, in eval mode.

    Linear layers and patch embeddings are Xavier-normal, biases 0, norms 1, embeddings normal with variance
    1 / width, and the head "ordinary". So activations keep their scale at any width; BERT's fixed standard
    deviation of 0.02 suits wide models only.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = model_class(config.kind)(config)
        for module in scorer.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_normal_(module.weight.view(len(module.weight), -1))  # a patch is one input
                if isinstance(module.bias, nn.Parameter):
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        for name, value in scorer.named_parameters():
            if name.endswith(("pos_embed", "cls_token")):
                nn.init.normal_(value, std=value.shape[-1] ** -0.5)
        if isinstance(scorer, ImageReward):
            init_head(scorer.mlp, "ordinary")
    return scorer.float().eval()


def init_head(head: RewardHead, how: HeadInit) -> None:
    """Draw new weights for a reward head, in place; biases are 0.

    published  normal(0, 1 / (width + 1)^2), with the head's input width for all layers. The raw scores then
               have a standard deviation of about 1e-9, which takes hundreds of updates to grow
    ordinary   normal(0, 1 / in_features), which keeps the scale of activations
    """
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    width = linear[0].in_features
    for layer in linear:
        nn.init.normal_(layer.weight, std=1 / (width + 1) if how == "published" else layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)


def start_from(name: str, head: HeadInit, device: str | torch.device | None, seed: int) -> ImageReward:
    """A scorer to train, float32: a loaded ImageReward, or a loaded BLIP with a new reward head.

    name    what `imagereward.load` takes
    head    how a new head begins; see `init_head`
    device  default: that of `load`
    seed    seeds a new head

    Training uses raw scores, so the scorer's mean is 0 and its std 1. Raises InputError for another kind of
    scorer.
    """
    start = load(name, device)
    if len(start.adapters):
        raise InputError(
            f"start={name!r} has an adapter; expected a scorer without: all its weights learn here"
        )
    if not isinstance(start, BLIPBase):
        raise InputError(f"start={name!r} is a {start.config.kind}; expected an ImageReward or a BLIP")
    config = replace(start.config, kind="ImageReward", mean=0.0, std=1.0)
    state = start.state_dict()
    if not isinstance(start, ImageReward):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = RewardHead(start.blip.shape.text.width)
            init_head(fresh, head)
        state |= {f"mlp.{key}": value for key, value in fresh.state_dict().items()}
    # Copied, because the loaded tensors are mapped from the checkpoint's file.
    state = {key: value.clone() for key, value in state.items()}
    scorer = assemble(config, state, start.device, torch.float32, name)
    assert isinstance(scorer, ImageReward)
    return scorer


def frozen_names(blip: BLIP, fix_rate: float) -> list[str]:
    """Names of the parameters of `blip` that `fix_rate` (0..1) freezes, as in the original implementation.

    In each encoder, in the order of parameters, all are frozen up to and including the first parameter of
    layer int(depth * fix_rate). A rate of 1 freezes the whole encoder, 0 nothing. The projections, which
    rewards do not use, are always frozen. Raises InputError for a rate outside 0..1.
    """
    if not 0 <= fix_rate <= 1:
        raise InputError(f"fix_rate={fix_rate}: expected a share in [0, 1]")
    frozen = [name for name, _ in blip.named_parameters() if "_proj" in name]
    for encoder, depth, part in (
        ("text_encoder", len(blip.text_encoder.layers), "layer"),
        ("visual_encoder", len(blip.visual_encoder.blocks), "blocks"),
    ):
        last = f"{part}.{int(depth * fix_rate)}."
        for name, _ in blip.get_submodule(encoder).named_parameters() if fix_rate else ():
            frozen.append(f"{encoder}.{name}")
            if last in name:
                break
    return frozen


def freeze(scorer: BLIPBase, fix_rate: float) -> None:
    """Make all parameters trainable but `frozen_names(scorer.blip, fix_rate)`, in place."""
    scorer.requires_grad_(True)
    for name in frozen_names(scorer.blip, fix_rate):
        scorer.blip.get_parameter(name).requires_grad_(False)


def set_checkpointing(scorer: BLIPBase, how: Checkpointing) -> None:
    """Let the backward pass recompute activations: "torch", "fairscale", or "none" to keep them.

    "fairscale-offload" also keeps the layers' inputs in CPU memory. Raises MissingExtraError without
    fairscale.
    """
    if how == "torch":
        scorer.set_grad_checkpointing()
    elif how != "none":
        try:
            from fairscale.nn import checkpoint_wrapper
        except ImportError as error:
            raise missing_extra(f"checkpointing={how!r}", "train", error) from error
        for layers in (scorer.blip.visual_encoder.blocks, scorer.blip.text_encoder.layers):
            for layer in layers:
                checkpoint_wrapper(layer, offload_to_cpu=how == "fairscale-offload")
