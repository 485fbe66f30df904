"""Reward functions in the calling conventions of trainers. Any scorer will do, a RemoteScorer too."""

from collections.abc import Callable, Sequence
from typing import Any

from imagereward.errors import InputError
from imagereward.images.reading import listed
from imagereward.scoring.api import PairScorer


def ddpo_reward(scorer: PairScorer) -> Callable[..., tuple[list[float], dict]]:
    """`(images, prompts, metadata) -> (scores, {})`, as ddpo-pytorch and what descends from it call a reward.

    Images are a float tensor [B, 3, H, W] in [0, 1], a uint8 array [B, H, W, 3], or a list of PIL images;
    scores are B floats. A score that fails is the scorer's exception, never a number.
    """

    def reward(images: Any, prompts: Sequence[str], metadata: Any = None) -> tuple[list[float], dict]:
        return scorer.score_pairs(list(prompts), listed(images)), {}

    return _named(reward, scorer)


def flow_grpo_reward(scorer: PairScorer) -> Callable[..., tuple[dict[str, list[float]], dict]]:
    """`(images, prompts, metadata) -> ({"avg": scores, NAME: scores}, {})`: Flow-GRPO's multi_score.

    It trains on "avg" and logs all of them. Other arguments that its loop passes (ref_images, only_strict)
    are for other rewards. Images are as in `ddpo_reward`. Weigh several scorers with `imagereward.ensemble`.
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
) -> Callable[..., list[float]]:
    """`(prompts=, completions=, **columns) -> list[float]`, for TRL's GRPOTrainer and RLOOTrainer.

    `images` and `prompts` name the arguments that hold an image and a text for each completion: columns of
    the data set, fields that a rollout function adds, "prompts" or "completions". A policy that rewrites
    prompts is rewarded for the pictures its rollout drew; one that describes pictures with
    `trl_reward(scorer, images="image", prompts="completions")`. Texts may be conversations: what counts is
    the text of the last message. Where there are lists of images, each has to hold one.
    """

    def reward(**columns: Any) -> list[float]:
        for name in (images, prompts):
            if name not in columns:
                raise InputError(f"the trainer passes no {name!r}; it passes {', '.join(columns)}")
        texts = [_text(value, f"{prompts}[{row}]") for row, value in enumerate(columns[prompts])]
        pictures = [_one(value, f"{images}[{row}]") for row, value in enumerate(columns[images])]
        return scorer.score_pairs(texts, pictures)

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
    """Text, or that of the last message of a conversation."""
    content = value[-1].get("content") if isinstance(value, list) and value else value
    if isinstance(content, list):  # parts: texts and images
        content = " ".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise InputError(f"{where} is {type(value).__name__}; expected text or a list of messages")
    return content
