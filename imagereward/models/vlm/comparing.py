"""PairwiseJudge: a vision-language model that is shown two images at a time, in both orders."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from imagereward.errors import InputError
from imagereward.images.reading import ImageLike, load_pixels
from imagereward.models.vlm.asking.turns import Turns
from imagereward.models.vlm.backbone import EncodedImage
from imagereward.models.vlm.scorer import VLMScorer
from imagereward.models.vlm.tournament import METHODS, Outcome, schedule, strengths
from imagereward.scoring.adapted import check_ran
from imagereward.scoring.api import PairScorer
from imagereward.scoring.questions import Rows, Scored


class Comparison(NamedTuple):
    """The verdict on images a and b.

    margin  log odds that a is better, averaged over both orders: exactly the negative for (b, a)
    bias    log odds in favour of the image that is shown first, whichever it is
    """

    margin: float
    bias: float

    @property
    def probability(self) -> float:
        """The probability that a is better."""
        return 1 / (1 + math.exp(-self.margin)) if self.margin > -700 else 0.0


class PairwiseJudge(PairScorer):
    """Scores of an image relative to the other images of its prompt, from comparisons of pairs.

    judge    a judge with read-out "answer" and a template that compares
    method   "bradley-terry": log odds against the prompt's average image, of mean 0, with
             P(i better than j) = sigmoid(s_i - s_j) (Bradley and Terry 1952, Biometrika 39); "win-rate": mean
             probability, 0 to 1, of being better than the images that it was compared with
    budget   most comparisons of a prompt's N images, at least N - 1, each in both orders; None: all pairs

    A score holds only among the images that one call has for a prompt. Raises InputError for another method,
    for a budget that is too low, and for a prompt with a single image. `bias` is the mean position bias of
    the last call, in log odds for the image that is shown first.
    """

    relative = True
    takes_turns = True

    def __init__(self, judge: VLMScorer, method: str = "bradley-terry", budget: int | None = None):
        if not judge.judge.template.compares:
            raise InputError(
                f"template {judge.judge.template.name!r} shows one image; a comparison needs {{image}} and "
                f"{{image_b}}"
            )
        if method not in METHODS:
            raise InputError(f"method={method!r}: expected one of {', '.join(METHODS)}")
        self.judge = judge
        self.name = judge.name
        self.method, self.budget = method, budget
        self.bias = math.nan
        turns: Turns = judge.turns
        template = judge.judge.template
        self._first = turns.answer_ids(template.answers)
        self._second = turns.answer_ids(template.against)
        if not self._second or set(self._first) & set(self._second):
            raise InputError(
                f"template {template.name!r}: answers={template.answers} and against={template.against}; "
                "expected different answers for the first and the second image"
            )

    def compare(self, prompt: str, a: ImageLike, b: ImageLike) -> Comparison:
        """Which of two images is better for the prompt; both orders are asked."""
        self.judge._warn_truncated(*self.judge.reading([prompt]))
        (found,) = self._comparisons(self._encoded([a, b]), [(prompt, 0, 1)])
        check_ran(self.judge, encoded=True)
        self.bias = found.bias
        return found

    def _scored(self, rows: Rows, batch_size: int | None) -> Scored:
        if not rows.prompts or not rows.images:
            raise InputError(f"nothing to score: {len(rows.prompts)} prompts and {len(rows.images)} images")
        tokens, truncated = self.judge.reading(rows.prompts)
        self.judge._warn_truncated(tokens, truncated)
        groups = _groups(rows)
        encoded = self._encoded(rows.images, batch_size)
        pairs = {prompt: schedule(len(places), self.budget) for prompt, places in groups.items()}
        asked = []
        for prompt, places in groups.items():
            images = list(places)
            asked += [(prompt, images[a], images[b]) for a, b in pairs[prompt]]
        found = self._comparisons(encoded, asked)
        check_ran(self.judge, encoded=True)
        self.bias = sum(each.bias for each in found) / len(found)
        verdicts = iter(found)
        scores = torch.empty(len(rows.pairs_P_2), device="cpu")
        for prompt, places in groups.items():
            outcomes = [Outcome(*pair, next(verdicts).probability) for pair in pairs[prompt]]
            for those, strength in zip(places.values(), strengths(len(places), outcomes, self.method)):
                scores[those] = float(strength)
        return Scored(scores, tokens, truncated)

    def _encoded(self, images: Sequence[ImageLike], batch_size: int | None = None) -> list[EncodedImage]:
        """Every image, encoded once."""
        size, encoded, waiting = self.judge._batch_size(batch_size), [], []
        with torch.inference_mode(), self.judge.evaluating():
            for (item,) in load_pixels(images, self.judge.processors):
                waiting.append(item)
                if len(waiting) == size:
                    encoded += self.judge.encode_pixels([self.judge.processor.collate(waiting)])
                    waiting = []
            if waiting:
                encoded += self.judge.encode_pixels([self.judge.processor.collate(waiting)])
        return encoded

    def _comparisons(
        self, images: Sequence[EncodedImage], asked: Sequence[tuple[str, int, int]]
    ) -> list[Comparison]:
        """The verdicts on (prompt, index of image a, index of image b); prompts are cut as for one image."""
        turns: Any = self.judge.turns
        prompts = self.judge.encode_prompts([prompt for prompt, _, _ in asked])
        orders = [(prompt, pair) for prompt, (_, a, b) in zip(prompts, asked) for pair in ((a, b), (b, a))]
        rows = [turns.row(prompt, images, pair) for prompt, pair in orders]
        self.judge.check_length(rows)
        with torch.inference_mode(), self.judge.evaluating():
            logs = self.judge.log_probabilities(rows, images, [*self._first, *self._second]).double()
        first, second = logs.split([len(self._first), len(self._second)], 1)
        odds = (first.logsumexp(1) - second.logsumexp(1)).view(-1, 2)  # for the image that is shown first
        return [
            Comparison(float((ahead - behind) / 2), float((ahead + behind) / 2))
            for ahead, behind in odds.tolist()
        ]


def _groups(rows: Rows) -> dict[str, dict[int, list[int]]]:
    """{prompt: {index of an image: its rows}}; InputError for a prompt with one image."""
    groups: dict[str, dict[int, list[int]]] = {}
    for row, (image, prompt) in enumerate(rows.pairs_P_2.tolist()):
        groups.setdefault(rows.prompts[prompt], {}).setdefault(image, []).append(row)
    if alone := [prompt for prompt, places in groups.items() if len(places) == 1]:
        raise InputError(
            f"one image for {alone[0][:60]!r}: a comparing judge needs all images of a prompt in one call, "
            "two or more; a judge such as vqa:MODEL scores an image alone"
        )
    return groups
