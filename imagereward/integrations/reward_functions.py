"""Wraps any scorer, local or remote, as a reward function for ddpo-pytorch, Flow-GRPO and TRL."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from imagereward.errors import InputError, NonFiniteScoreError, listing
from imagereward.images.reading import listed
from imagereward.scoring.api import PairScorer


def ddpo_reward(scorer: PairScorer) -> Callable[..., tuple[list[float], dict]]:
    """`(images, prompts, metadata) -> (scores, {})`, as ddpo-pytorch and what descends from it call a reward.

    Images are a float tensor [B, 3, H, W] in [0, 1], a uint8 array [B, H, W, 3], or a list of PIL images;
    scores are B floats. If scoring fails, the function raises the scorer's exception, and NonFiniteScoreError
    if a judge gave images no score (NaN), since these trainers would average over it.
    """

    def reward(images: Any, prompts: Sequence[str], metadata: Any = None) -> tuple[list[float], dict]:
        scores = scorer.score_pairs(list(prompts), listed(images))
        if bad := [row for row, score in enumerate(scores) if not math.isfinite(score)]:
            raise NonFiniteScoreError(
                f"{scorer.name} gave no score to {len(bad)} of {len(scores)} images: images "
                f"{listing(bad)}; ddpo-pytorch and Flow-GRPO cannot leave images out"
            )
        return scores, {}

    return _named(reward, scorer)


def flow_grpo_reward(scorer: PairScorer) -> Callable[..., tuple[dict[str, list[float]], dict]]:
    """`(images, prompts, metadata) -> ({"avg": scores, NAME: scores}, {})`: Flow-GRPO's multi_score.

    Flow-GRPO's loop trains on "avg" and logs all entries. Further arguments of that loop (ref_images,
    only_strict) are ignored. Images are as in `ddpo_reward`. To weight several scorers, pass an
    `imagereward.ensemble`.
    """
    score = ddpo_reward(scorer)

    def reward(
        images: Any, prompts: Sequence[str], metadata: Any = None, **others: Any
    ) -> tuple[dict[str, list[float]], dict]:
        scores, _ = score(images, prompts)
        return {scorer.name: scores, "avg": scores}, {}

    return _named(reward, scorer)


def trl_reward(
    scorer: PairScorer, images: str = "images", prompts: str = "prompts"
) -> Callable[..., list[float | None]]:
    """`(prompts=, completions=, **columns) -> list[float | None]`, for TRL's GRPOTrainer and RLOOTrainer.

    images    the argument with an image, or a list of one image, for each completion: a column of the data
              set or a field that a rollout function adds
    prompts   the argument with a text for each completion: "prompts", "completions" or a column. Of a
              conversation, the last message is scored

    A policy that rewrites prompts uses the images of its rollout; a policy that describes images uses
    `trl_reward(scorer, images="image", prompts="completions")`. Where a judge gave no score (NaN), the reward
    is None, with which TRL sums the rewards of the other functions; it warns if there is none, and counts 0.
    Raises InputError for a missing argument.
    """

    def reward(**columns: Any) -> list[float | None]:
        for name in (images, prompts):
            if name not in columns:
                raise InputError(f"the trainer passes no {name!r}; it passes {', '.join(columns)}")
        texts = [_text(value, f"{prompts}[{row}]") for row, value in enumerate(columns[prompts])]
        pictures = [_one(value, f"{images}[{row}]") for row, value in enumerate(columns[images])]
        return [score if math.isfinite(score) else None for score in scorer.score_pairs(texts, pictures)]

    return _named(reward, scorer)


def _named(reward: Callable, scorer: PairScorer) -> Callable:
    """Trainers log a reward under its function's name."""
    reward.__name__ = scorer.name
    return reward


def _one(images: Any, where: str) -> Any:
    if not isinstance(images, (list, tuple)):
        return images
    if len(images) != 1:
        raise InputError(f"{where} holds {len(images)} images; expected one to score")
    return images[0]


def _text(value: Any, where: str) -> str:
    """A text, or the text of a conversation's last message."""
    content = value[-1].get("content") if isinstance(value, list) and value else value
    if isinstance(content, list):  # parts: texts and images
        content = " ".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise InputError(f"{where} is {type(value).__name__}; expected text or a list of messages")
    return content
