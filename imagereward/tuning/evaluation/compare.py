"""compare: draws the same prompts from the same noise with two generators, and scores their images."""

import contextlib
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from imagereward.agreement.intervals import FEW
from imagereward.errors import InputError
from imagereward.precision import cast
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.prompts import read_prompts, read_rows
from imagereward.tuning.data.requests import Row
from imagereward.tuning.evaluation.comparison import Comparison
from imagereward.tuning.evaluation.evaluate import diversity, sample_images
from imagereward.tuning.export import LORA_FILE
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.guidance import default_guidance
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Hybrid, Policy
from imagereward.tuning.rewards.weighted import Rewards, open_rewards

log = logging.getLogger(__name__)


def compare(
    base: Any,
    tuned: Any,
    prompts: str | os.PathLike | Sequence[Row],
    rewards: Rewards | dict[str, float] | str,
    *,
    most: int | None = None,
    seeds: int = 2,
    steps: int | None = None,
    guidance: float | None = None,
    resolution: int | str | Sequence[int] | None = None,
    batch_size: int = 4,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    family: str | None = None,
    prompt_column: str | None = None,
    encoding: str | None = None,
    tuned_share: float = 1.0,
) -> Comparison:
    """Draw every prompt with both pipelines from the same noise, and score all images.

    base, tuned   diffusers pipelines, or directories or hub ids of pipelines; `tuned` may also be a directory
                  of LoRA weights for the base
    prompts       rows, or a file of prompts; `prompt_column` and `encoding` as in `read_prompts`
    rewards       what `open_rewards` takes
    most          number of prompts, from the first; default: all
    seeds         images for each prompt, at least 1; with 2 or more, diversity is measured
    steps         denoising steps; default: the base pipeline's
    guidance      classifier-free guidance scale, 0 or more; 1 and below is none. Default: each pipeline's own
    resolution    pixels: one number for a square, (height, width) or "768x1152"; default: the pipelines' own
    batch_size    images that are drawn or scored at once
    seed          decides the noise
    device        default: the GPU if there is one
    dtype         number format of weights that are read from files; the autoencoder's are float32
    family        "module:name" of a Denoiser of your own; default: decided by the pipeline
    tuned_share   share of the steps, 0..1, that `tuned` takes when it draws, from the first; the base's
                  network takes the others, with the tuned's encoded prompts. Below 1, with a `tuned` that is
                  no LoRA, both generators are in memory

    Raises InputError for generators with noise of different shapes, for one pipeline as both, for a guidance
    or a share out of range, for rewards of whole groups, and for LoRA weights on a base that has adapters
    already.
    """
    _check_sources(base, tuned)
    _check_numbers(guidance, tuned_share, most=most, seeds=seeds, steps=steps, batch_size=batch_size)
    size = None if resolution is None else ImageSize.of(resolution)
    texts = read_prompts(prompts, prompt_column, encoding)[:most]
    if len(texts) < FEW:
        log.warning(
            "%d prompts: intervals are right only if the differences are about normal; expected %d or more",
            len(texts),
            FEW,
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    judge = open_rewards(rewards, where)
    if judge.of_groups:
        raise InputError(
            f"reward {judge.of_groups[0]} compares images of one generator; expected another reward"
        )
    sources = ((base, None), (base, tuned) if _is_lora(tuned) else (tuned, None))
    drawn, first = [], None
    with contextlib.ExitStack() as kept:
        for source, adapter in sources:
            with contextlib.ExitStack() as opened:
                denoiser = opened.enter_context(_opened(source, adapter, size, where, dtype, family))
                if first is not None and first.shape != denoiser.autoencoder.shape:
                    raise InputError(
                        f"base and tuned draw from noise of different shapes: {first.shape}, "
                        f"{denoiser.autoencoder.shape}; expected generators with the same latents (one "
                        "autoencoder, one resolution=)"
                    )
                steps = steps or _own(denoiser.pipeline, "num_inference_steps")
                own = default_guidance(denoiser.pipeline, denoiser.network)
                policy = Policy(denoiser, denoiser.dynamics(steps), own if guidance is None else guidance)
                if first is not None and tuned_share < 1:
                    policy.hybrid = Hybrid(tuned_share, _as_base(policy, first.network, adapter))
                rows = read_rows(prompts, denoiser.inputs, prompt_column, encoding)[:most]
                drawn.append(sample_images(policy, rows, seeds, seed, batch_size, None))
                needed = first is None and tuned_share < 1 and sources[1][1] is None
                first = first or _First(denoiser.autoencoder.shape, denoiser.network if needed else None)
                if needed:
                    kept.push(opened.pop_all())
            del policy, denoiser
    scored = [_scores(judge, images, rows, batch_size, where) for images in drawn]
    features = judge.scorers[0] if judge.scorers else None
    before, after = drawn
    spread = None
    if seeds > 1:
        spread = diversity(before, features, batch_size), diversity(after, features, batch_size)
    return Comparison(texts, scored[0], scored[1], spread, (before, after), rows)


class _First(NamedTuple):
    """Of the base: the shape of its latents; its network, if the tuned generator's last steps need it."""

    shape: tuple[int, int, int]
    network: Any


def _check_sources(base: Any, tuned: Any) -> None:
    """Raises InputError for one pipeline as both generators."""
    if base is tuned and _is_pipeline(base):
        raise InputError(
            "base and tuned are one and the same pipeline: tune() changes the pipeline that it is given; "
            "expected the base's directory or hub id, or a pipeline loaded from it again"
        )


def _check_numbers(guidance: float | None, tuned_share: float, **counts: int | None) -> None:
    """Raises InputError for a guidance or a share out of range, and a count below 1; None is the default."""
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise InputError(f"guidance={guidance}: expected a finite number of at least 0")
    if not 0 <= tuned_share <= 1:
        raise InputError(f"tuned_share={tuned_share}: expected a number from 0 to 1")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: expected at least 1")


def _as_base(policy: Policy, network: Any, adapter: Any) -> Callable[[], contextlib.AbstractContextManager]:
    """Makes a context in which the policy predicts as the base: without its adapter, or by the network."""

    @contextlib.contextmanager
    def as_base() -> Iterator[None]:
        own = policy.module
        try:
            if adapter is not None:
                policy.denoiser.network.disable_adapters()
            else:
                policy.module = network
            yield
        finally:
            policy.module = own
            if adapter is not None:
                policy.denoiser.network.enable_adapters()

    return as_base


def _own(pipeline: Any, name: str) -> Any:
    """The default value of an argument of the pipeline's call."""
    return inspect.signature(pipeline.__call__).parameters[name].default


def _is_pipeline(source: Any) -> bool:
    return hasattr(source, "components")


def _is_lora(source: Any) -> bool:
    return not _is_pipeline(source) and Path(source).expanduser().joinpath(LORA_FILE).is_file()


@contextlib.contextmanager
def _opened(
    source: Any, adapter: Any, size: ImageSize | None, device, dtype, family: str | None
) -> Iterator[Denoiser]:
    """A context with the denoiser on the device; afterwards a given pipeline has its own weights again."""
    denoiser = open_denoiser(source, size, dtype, family)
    pipeline, vae, parts = denoiser.pipeline, denoiser.autoencoder.vae, (denoiser.network, *denoiser.frozen)
    if adapter is not None and any(getattr(part, "peft_config", None) for part in parts):
        raise InputError(
            f"the base has adapters already, beside which {adapter} would be loaded: expected a base without "
            "any, as after pipeline.unload_lora_weights()"
        )
    own = vae.dtype
    try:
        if adapter is not None:
            pipeline.load_lora_weights(str(Path(adapter).expanduser()))
        for part in parts:
            part.to(device)
        cast(vae, torch.promote_types(own, torch.float32))  # SDXL's autoencoder overflows in float16
        denoiser.network.requires_grad_(False).eval()
        yield denoiser
    finally:
        cast(vae, own)
        if adapter is not None:
            pipeline.unload_lora_weights()


def _scores(judge: Rewards, images, rows, batch_size: int, device) -> dict[str, np.ndarray]:
    """{reward: [M, K]}; with several rewards, also "sum": their weighted sum."""
    seeds, flat = images.shape[1], images.flatten(0, 1)
    asked = [row for row in rows for _ in range(seeds)]
    found: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for at in range(0, len(asked), batch_size):
            total, each = judge(flat[at : at + batch_size].to(device), asked[at : at + batch_size])
            for name, values in (each | ({"sum": total} if len(each) > 1 else {})).items():
                found.setdefault(name, []).append(values.float().cpu())
    return {name: torch.cat(values).view(-1, seeds).numpy() for name, values in found.items()}
