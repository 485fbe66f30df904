"""Summary: whether an adapter learned anything beyond the base and beyond chance, by held-out choices."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from imagereward.agreement.intervals import ratio_interval, t_interval
from imagereward.tuning.personal.choices import Choice, Kind

Interval = tuple[float, float, float]  # estimate, low, high
MEASURES: dict[Kind, str] = {
    "rankings": "pairs ranked as chosen",
    "pairs": "pairs ranked as chosen",
    "ratings": "Spearman correlation with the ratings",
    "labels": "pairs of a good and a bad image ranked right",
}


@dataclass(frozen=True)
class Summary:
    """What came of a training. Intervals are 95 %, over prompts, of choices that were not learned from.

    kind            of the choices
    choices, pairs  how many there are; pairs of images of unequal rank, or single images
    measure         name of what base and adapted measure: `MEASURES`
    base, adapted   (estimate, low, high) without and with the adapter
    gain            of adapted - base, in which what both share cancels out
    better          whether the adapter is better than the base and than chance: both intervals say so
    subsets         {name: (pairs, base, adapted)} for choices with a `subset`
    how             how choices were held out
    epochs          passes over the choices of the final training
    clamped         choices whose prompt has fewer tokens than `positions` asks for
    parameters, bytes, seconds   learned numbers; bytes of the saved file; duration of everything
    """

    kind: Kind
    choices: int
    pairs: int
    measure: str
    base: Interval
    adapted: Interval
    gain: Interval
    better: bool
    how: str
    epochs: int
    clamped: int = 0
    parameters: int = 0
    bytes: int = 0
    seconds: float = 0.0
    subsets: dict[str, tuple[int, Interval, Interval]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for summary.json."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "better than the base" if self.better else "no better than the base"
        unit = "pairs" if self.kind in ("rankings", "pairs") else "images"
        lines = [
            f"{self.choices} choices, {self.pairs} {unit}; {self.how}; {self.epochs} epochs",
            f"{self.measure}: base {_shown(self.base, self.kind)}, with the adapter "
            f"{_shown(self.adapted, self.kind)}, difference {_shown(self.gain, self.kind)}",
        ]
        lines += [
            f"  {name}: {pairs} pairs, base {_shown(base, self.kind)}, adapted {_shown(adapted, self.kind)}"
            for name, (pairs, base, adapted) in self.subsets.items()
        ]
        if self.clamped:
            lines.append(f"{self.clamped} prompts are shorter than the positions: fewer tokens were changed")
        lines.append(f"verdict: {verdict}")
        if not self.better:
            lines.append(
                "what it learned is not told apart from chance by the choices that were held out: make more "
                "choices, or use the base"
            )
        return "\n".join(lines)


def _shown(found: Interval, kind: Kind) -> str:
    estimate, low, high = found
    if kind == "ratings":
        return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"
    return f"{estimate:.1%} [{low:.1%}, {high:.1%}]"


def measured(
    kind: Kind,
    items: Sequence[Choice],
    groups: Sequence[int],
    base: Sequence[Sequence[float]],
    adapted: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """The keys pairs, measure, base, adapted, gain, better and subsets of a `Summary`.

    items           choices that were held out
    groups          number of each choice's group; intervals are over groups
    base, adapted   for each choice the scores of its images without and with the adapter
    """
    find = _compared if kind in ("rankings", "pairs") else _correlated
    pairs, before, after, gain = find(kind, items, groups, base, adapted)
    chance = 0.0 if kind == "ratings" else 0.5
    found = {
        "pairs": pairs,
        "measure": MEASURES[kind],
        "base": before,
        "adapted": after,
        "gain": gain,
        "better": bool(gain[1] > 0 and after[1] > chance),
    }
    subsets = {}
    for name in sorted({choice.subset for choice in items} - {""}):
        part = [index for index, choice in enumerate(items) if choice.subset == name]
        rows = [[values[index] for index in part] for values in (items, groups, base, adapted)]
        pairs, before, after, _ = find(kind, *rows)
        subsets[name] = (pairs, before, after)
    return {**found, "subsets": subsets}


def _compared(kind, items, groups, base, adapted) -> tuple[int, Interval, Interval, Interval]:
    count = max(groups, default=-1) + 1
    right, pairs = np.zeros((2, count)), np.zeros(count)
    for choice, group, rows in zip(items, groups, zip(base, adapted)):
        decided = choice.decided
        pairs[group] += len(decided)
        for which, scores in enumerate(rows):
            right[which, group] += sum(scores[better] > scores[worse] for better, worse in decided)
    before, after = (ratio_interval(each, pairs, bounds=(0.0, 1.0)) for each in right)
    return int(pairs.sum()), before, after, ratio_interval(right[1] - right[0], pairs, bounds=(-1.0, 1.0))


def _correlated(kind, items, groups, base, adapted) -> tuple[int, Interval, Interval, Interval]:
    statistic = _spearman if kind == "ratings" else _area
    values = np.array([choice.value for choice in items])
    before, after = (np.array([row[0] for row in rows]) for rows in (base, adapted))
    parts = np.array(groups)

    def interval(find: Callable[[np.ndarray], float]) -> Interval:
        names = np.unique(parts)
        left_out = [find(parts != name) for name in names]
        estimate = find(np.ones(len(parts), bool))
        return (estimate, *t_interval(estimate, left_out))

    return (
        len(items),
        interval(lambda kept: statistic(before[kept], values[kept])),
        interval(lambda kept: statistic(after[kept], values[kept])),
        interval(lambda kept: statistic(after[kept], values[kept]) - statistic(before[kept], values[kept])),
    )


def _spearman(scores: np.ndarray, values: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(set(scores)) < 2 or len(set(values)) < 2:
        return 0.0
    return float(spearmanr(scores, values).statistic)


def _area(scores: np.ndarray, values: np.ndarray) -> float:
    """Share of pairs of a good and a bad image whose good one scores higher; 1/2 if there are none."""
    good, bad = scores[values == 1], scores[values == 0]
    if not len(good) or not len(bad):
        return 0.5
    return float((good[:, None] > bad[None, :]).mean())
