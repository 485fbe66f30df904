"""evaluate, Measured and Summary: whether an adapter orders images better than its base, by choices."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from imagereward.agreement.intervals import t_interval
from imagereward.errors import InputError
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.personal.choice import Choice, Choices, Kind
from imagereward.tuning.personal.folds import SINGLE, Groups, groups_of

Interval = tuple[float, float, float]  # estimate, low, high
MEASURES: dict[Kind, str] = {
    "rankings": "pairs ranked as chosen",
    "pairs": "pairs ranked as chosen",
    "ratings": "Spearman correlation with the ratings",
    "labels": "pairs of a good and a bad image ranked right",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a scorer agrees with choices, without and with its adapter. Equal scores count half.

    kind            of the choices
    choices, pairs  how many there are; pairs of images of unequal rank, or single images
    measure         name of what base and adapted measure: `MEASURES`
    unit            what the 95 % intervals are over, as in `Groups`
    base, adapted   (estimate, low, high) without and with the adapter
    gain            of adapted - base, in which what both share cancels out
    better          whether the adapter is better than the base and than chance: both intervals say so, and
                    images do not recur
    subsets         {name: (pairs, base, adapted)} for choices with a `subset`
    """

    kind: Kind
    choices: int
    pairs: int
    measure: str
    unit: str
    base: Interval
    adapted: Interval
    gain: Interval
    better: bool
    subsets: dict[str, tuple[int, Interval, Interval]] = field(default_factory=dict)

    @property
    def recurring(self) -> bool:
        """Whether images recur in so many choices that these are no evidence for new images."""
        return self.unit == SINGLE

    @property
    def ahead(self) -> bool:
        """Whether held-out choices put the adapter above base and chance, even if images recur in them."""
        return _is_ahead(self.kind, self.gain, self.adapted)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """A row for all choices, whose subset is "", and one for each subset."""
        found = {"": (self.pairs, self.base, self.adapted), **self.subsets}
        return [
            {"subset": name, "pairs": pairs, "measure": self.measure}
            | dict(zip(("base", "base_low", "base_high"), base))
            | dict(zip(("adapted", "adapted_low", "adapted_high"), after))
            for name, (pairs, base, after) in found.items()
        ]

    def __str__(self) -> str:
        unit = "pairs" if self.kind in ("rankings", "pairs") else "images"
        first = f"{self.choices} choices, {self.pairs} {unit}; {self._how()}"
        return "\n".join([first, *self._figures(), *self._verdict()])

    def _how(self) -> str:
        return f"intervals over {self.unit}"

    def _figures(self) -> list[str]:
        base, adapted, gain = (_shown(each, self.kind) for each in (self.base, self.adapted, self.gain))
        lines = [f"{self.measure}: base {base}, with the adapter {adapted}, difference {gain}"]
        for name, (pairs, *both) in self.subsets.items():
            base, adapted = (_shown(each, self.kind) for each in both)
            lines.append(f"  {name}: {pairs} pairs, base {base}, adapted {adapted}")
        return lines

    def _verdict(self) -> list[str]:
        if self.recurring:
            return [
                "verdict: none about new images: images recur, so the choices say something about these "
                "images alone; choose among other images, best of 8 prompts or more, to learn about new ones"
            ]
        if self.better:
            return ["verdict: better than the base"]
        return [
            "verdict: no better than the base",
            "what it learned is not told apart from chance by these choices: make more, or use the base",
        ]


@dataclass(frozen=True, kw_only=True)
class Summary(Measured):
    """What came of a training, measured on choices that were not learned from.

    how             how choices were held out
    epochs          passes over the choices of the final training
    clamped         distinct prompts with fewer tokens than `positions` asks for
    parameters, bytes, seconds   learned numbers; bytes of the saved file; duration of everything
    """

    how: str
    epochs: int
    clamped: int = 0
    parameters: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def _how(self) -> str:
        return f"{self.how}; {self.epochs} epochs"

    def _figures(self) -> list[str]:
        lines = super()._figures()
        if self.clamped:
            lines.append(f"{self.clamped} prompts are shorter than the positions: fewer tokens were changed")
        return lines


def _shown(found: Interval, kind: Kind) -> str:
    estimate, low, high = found
    if math.isnan(low):
        return (f"{estimate:.3f}" if kind == "ratings" else f"{estimate:.1%}") + " [one group: no interval]"
    if kind == "ratings":
        return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"
    return f"{estimate:.1%} [{low:.1%}, {high:.1%}]"


def measured(
    kind: Kind,
    items: Sequence[Choice],
    groups: Groups,
    base: Sequence[Sequence[float]],
    adapted: Sequence[Sequence[float]],
) -> Measured:
    """How often both rows of scores agree with choices, and what the adapter gains.

    groups          the choices' groups; intervals are over them
    base, adapted   for each choice the scores of its images without and with the adapter
    """
    find = _shares if kind in ("rankings", "pairs") else _correlations

    def three(part: Sequence[int]) -> tuple[int, Interval, Interval, Interval]:
        chosen = [items[index] for index in part]
        of = np.unique([groups.of[index] for index in part], return_inverse=True)[1]
        pairs, before = find(kind, chosen, of, [base[index] for index in part])
        after = find(kind, chosen, of, [adapted[index] for index in part])[1]
        low, high = (-1.0, 1.0) if kind == "ratings" else (0.0, 1.0)
        return (
            pairs,
            _interval(before, low, high),
            _interval(after, low, high),
            _interval(after - before, low - high, high - low),
        )

    pairs, before, after, gain = three(range(len(items)))
    subsets = {}
    for name in sorted({choice.subset for choice in items} - {""}):
        subsets[name] = three([index for index, choice in enumerate(items) if choice.subset == name])[:3]
    return Measured(
        kind=kind,
        choices=len(items),
        pairs=pairs,
        measure=MEASURES[kind],
        unit=groups.unit,
        base=before,
        adapted=after,
        gain=gain,
        better=groups.unit != SINGLE and _is_ahead(kind, gain, after),
        subsets=subsets,
    )


def evaluate(scorer: Scorer, choices: Choices, batch_size: int | None = None) -> Measured:
    """How a scorer with its adapters, as they are now, agrees with choices, and what they gain over the base.

    Choices of only ties are left out. Raises InputError for a scorer without adapters, and for fewer than 4
    choices that say something; and what verbs raise.
    """
    if not len(getattr(scorer, "adapters", ())):
        raise InputError(
            f"{scorer.name} has no adapter that could be compared with it: load NAME+ADAPTER, or call "
            "add_adapter()"
        )
    choices = choices.decided
    flat = [(choice.prompt, image) for choice in choices.items for image in choice.images]
    prompts, images = map(list, zip(*flat, strict=True))

    def rows() -> list[list[float]]:
        scores = iter(scorer.score_pairs(prompts, images, batch_size=batch_size))
        return [[next(scores) for _ in choice.images] for choice in choices.items]

    groups, adapted = groups_of(choices.items), rows()
    with scorer.using_adapters():
        base = rows()
    return measured(choices.kind, choices.items, groups, base, adapted)


def _is_ahead(kind: Kind, gain: Interval, adapted: Interval) -> bool:
    """Whether the intervals of the gain and of the adapted scorer are above 0 and above chance."""
    return gain[1] > 0 and adapted[1] > (0.0 if kind == "ratings" else 0.5)


def _interval(values_1P: np.ndarray, lowest: float, highest: float) -> Interval:
    """(estimate, low, high) of a figure in [lowest, highest]; NaN bounds for one group.

    values_1P  [1 + P]: the estimate, and the estimates without each of P groups in turn
    """
    estimate = float(values_1P[0])
    return estimate, *t_interval(estimate, values_1P[1:], bounds=(lowest, highest))


def _shares(kind, items, of, rows) -> tuple[int, np.ndarray]:
    """(pairs, share of pairs that `rows` order as chosen, of all and without each group)."""
    right, pairs = np.zeros((2, max(of) + 1))
    for choice, group, scores in zip(items, of, rows, strict=True):
        for better, worse in choice.decided:
            pairs[group] += 1
            right[group] += (scores[better] > scores[worse]) + (scores[better] == scores[worse]) / 2
    total, count = right.sum(), pairs.sum()
    left = (total - right) / (count - pairs) if len(pairs) > 1 else []
    return int(count), np.array([total / count, *left])


def _correlations(kind, items, of, rows) -> tuple[int, np.ndarray]:
    """(images, agreement of `rows` with ratings or labels, of all and without each group)."""
    statistic: Callable = _spearman if kind == "ratings" else _area
    values, scores = np.array([choice.value for choice in items]), np.array([row[0] for row in rows])
    kept = [np.ones(len(items), bool), *(of != group for group in range(max(of) + 1))]
    found = [statistic(scores[part], values[part]) for part in (kept if max(of) else kept[:1])]
    return len(items), np.array(found)


def _spearman(scores: np.ndarray, values: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(set(scores)) < 2 or len(set(values)) < 2:
        return 0.0
    return float(spearmanr(scores, values).statistic)


def _area(scores: np.ndarray, values: np.ndarray) -> float:
    """Share of pairs of a good and a bad image whose good one scores higher; 1/2 if there are none."""
    from scipy.stats import rankdata

    good, count = values == 1, len(values)
    of_good = int(good.sum())
    if of_good in (0, count):
        return 0.5
    above = rankdata(scores)[good].sum() - of_good * (of_good + 1) / 2
    return float(above / (of_good * (count - of_good)))
