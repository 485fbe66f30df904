"""compare: draws the same prompts from the same noise with two generators; rewards, diversity and a page."""

import contextlib
import html
import inspect
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagereward.agreement.intervals import FEW, mean_interval
from imagereward.errors import InputError
from imagereward.images.reading import to_pil
from imagereward.precision import cast
from imagereward.scoring.ranking import thumbnail
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.prompts import read_prompts, read_rows
from imagereward.tuning.data.requests import Row
from imagereward.tuning.evaluation.evaluate import diversity, sample_images
from imagereward.tuning.evaluation.row_figures import row_figures
from imagereward.tuning.export import LORA_FILE
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.guidance import default_guidance
from imagereward.tuning.families.lookup import open_denoiser
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rewards.weighted import Rewards, open_rewards

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The images and rewards of two generators, for M prompts and K seeds.

    prompts    the M prompts
    before     {reward: [M, K]} of the base; "sum" is the weighted sum of several rewards
    after      the same of the tuned generator
    diversity  (base, tuned): mean distance between a prompt's images, see `diversity`; None for one seed
    images     (base, tuned): [M, K, 3, H, W] in [0, 1], on the CPU
    pictures_of  the M rows, whose image and mask the page shows beside what was drawn; empty: none
    """

    prompts: list[str]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    diversity: tuple[float, float] | None
    images: tuple[torch.Tensor, torch.Tensor] = field(repr=False)
    pictures_of: Sequence[Row] = field(default=(), repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each reward, with 95 % intervals over prompts.

        "base" and "tuned" are means, and "base ±" and "tuned ±" half the width of the means' intervals.
        "difference" is tuned - base, and "low" and "high" bound it. "in base deviations" is the difference
        in standard deviations of the base's rewards. "win rate" is in 0..1; see `win_rate`.
        """
        rows = []
        for name, before in self.before.items():
            after = self.after[name]
            low, high = paired_interval(before.mean(1), after.mean(1))
            rows.append(
                {
                    "reward": name,
                    "base": float(before.mean()),
                    "base ±": _half_interval(before),
                    "tuned": float(after.mean()),
                    "tuned ±": _half_interval(after),
                    "difference": float((after - before).mean()),
                    "low": low,
                    "high": high,
                    "in base deviations": float((after - before).mean() / max(before.std(), 1e-12)),
                    "win rate": win_rate(before, after),
                }
            )
        return rows


def paired_interval(before_M: np.ndarray, after_M: np.ndarray) -> tuple[float, float]:
    """(low, high): 95 % interval of the mean of after - before over M prompts, by Student's t.

    (nan, nan) for one prompt. Exact for any number of normally distributed differences; see
    `agreement/intervals.py`.
    """
    _, low, high = mean_interval(np.asarray(after_M, float) - np.asarray(before_M, float))
    return low, high


def _half_interval(rewards_M_K: np.ndarray) -> float:
    _, low, high = mean_interval(rewards_M_K.mean(1))
    return (high - low) / 2


def win_rate(before: np.ndarray, after: np.ndarray) -> float:
    """Share 0..1 of (prompt, seed) where the tuned image has the higher reward; equal rewards count half."""
    return float((after > before).mean() + (after == before).mean() / 2)


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

    Raises InputError for generators with noise of different shapes, for one pipeline as both, for a guidance
    out of range, and for LoRA weights on a base that has adapters already.
    """
    if base is tuned and _is_pipeline(base):
        raise InputError(
            "base and tuned are one and the same pipeline: tune() changes the pipeline that it is given; "
            "expected the base's directory or hub id, or a pipeline loaded from it again"
        )
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise InputError(f"guidance={guidance}: expected a finite number of at least 0")
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
    drawn, shapes = [], []
    for source, adapter in ((base, None), (base, tuned) if _is_lora(tuned) else (tuned, None)):
        with _opened(source, adapter, size, where, dtype, family) as denoiser:
            shapes.append(denoiser.autoencoder.shape)
            if shapes[0] != shapes[-1]:
                raise InputError(
                    f"base and tuned draw from noise of different shapes: {shapes[0]}, {shapes[1]}"
                )
            steps = steps or _own(denoiser.pipeline, "num_inference_steps")
            own = default_guidance(denoiser.pipeline, denoiser.network)
            policy = Policy(denoiser, denoiser.dynamics(steps), own if guidance is None else guidance)
            rows = read_rows(prompts, denoiser.inputs, prompt_column, encoding)[:most]
            drawn.append(sample_images(policy, rows, seeds, seed, batch_size, None))
        del policy, denoiser
    scored = [_scores(judge, images, rows, batch_size, where) for images in drawn]
    features = judge.scorers[0] if judge.scorers else None
    before, after = drawn
    spread = None
    if seeds > 1:
        spread = diversity(before, features, batch_size), diversity(after, features, batch_size)
    return Comparison(texts, scored[0], scored[1], spread, (before, after), rows)


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
            pipeline.load_lora_weights(adapter)
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


_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 60rem;
       color: #1d2430; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
table { border-collapse: collapse } td, th { padding: .2rem .7rem; text-align: right }
tr { border-bottom: 1px solid #d9dee7 }
th:first-child, td:first-child { text-align: left }
.pair { display: inline-flex; gap: .3rem; margin: 0 .8rem .6rem 0; break-inside: avoid }
figure { margin: 0; width: 10rem } img { width: 100%; display: block }
figcaption { font-size: .8rem; color: #4a5568 }
@media (prefers-color-scheme: dark) {
  body { color: #e4e8ef; background: #14181f } figcaption { color: #a8b2c1 } tr { border-color: #333c4a } }
"""


def page(comparison: Comparison, names: tuple[str, str] = ("base", "tuned")) -> str:
    """An HTML page without external files: the numbers, and each pair of images with their rewards.

    names  how the page calls the base and the tuned generator
    """
    rows = comparison.rows()
    heads = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    lines = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows
    )
    spread = comparison.diversity
    words = "<p>Diversity, the mean distance between a prompt's images: "
    words += f"{spread[0]:.3f} before, {spread[1]:.3f} after.</p>" if spread else ""
    sections = "".join(_section(comparison, at, names) for at in range(len(comparison.prompts)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(names[0])} and {html.escape(names[1])}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(names[0])} and {html.escape(names[1])}</h1>
<p>{len(comparison.prompts)} prompts, the same noise for both. Low and high bound the difference's mean with
95 % confidence, over prompts (Student's t); ± is half of such an interval of a mean.</p>
<table><tr>{heads}</tr>{lines}</table>
{words if spread else ""}{sections}</body></html>
"""


def _section(comparison: Comparison, at: int, names: tuple[str, str]) -> str:
    pairs = []
    for seed in range(comparison.images[0].shape[1]):
        figures = "".join(
            f'<figure><img src="{thumbnail(to_pil(images[at, seed]))}" alt="{html.escape(name)}">'
            f"<figcaption>{html.escape(name)}<br>{_rewards(scores, at, seed)}</figcaption></figure>"
            for images, name, scores in zip(
                comparison.images, names, (comparison.before, comparison.after), strict=True
            )
        )
        pairs.append(f'<div class="pair">{figures}</div>')
    if comparison.pictures_of:
        pairs.insert(0, row_figures(comparison.pictures_of[at]))
    return f"<h2>{html.escape(comparison.prompts[at])}</h2>{''.join(pairs)}"


def _rewards(scores: dict[str, np.ndarray], at: int, seed: int) -> str:
    return "<br>".join(f"{html.escape(name)} {values[at, seed]:+.3f}" for name, values in scores.items())


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else html.escape(str(value))
