"""GroupReward: a reward that is given all images of a group at once; PairwiseJudge, GroupScorer: kinds of it.

G images of one row are a group; P pairs of them are compared.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from imagereward.errors import InputError
from imagereward.lookup import find, is_reference
from imagereward.models.judge_names import is_judge
from imagereward.scoring.api import PairScorer
from imagereward.tuning.data.requests import Request


class GroupReward(ABC):
    """A reward that needs to see all images of a group, such as a judge that compares them.

    A subclass defines `group_rewards`. Objectives that draw groups, such as GRPO, take it wherever they take
    a reward: as an object, or as "module:name" of an object or of a class that needs no arguments. Their
    groups then stay whole: one process draws all images of a group. `RewardPool` keeps the images until the
    group is complete. Objectives without groups refuse it, evaluations leave it out.

    name         in logs and messages; default: the class's name
    takes_turns  whether only one group at a time may be judged, as by a model in this process, to save memory
    """

    name: str
    takes_turns = False
    differentiable = False

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.name = vars(cls).get("name", cls.__name__)

    @abstractmethod
    def group_rewards(self, pixels_G_3_H_W: torch.Tensor, row: Request) -> torch.Tensor:
        """Rewards [G] of a group of G images, in their order; NaN where there is none.

        pixels_G_3_H_W  images in [0, 1]
        row             the group's row: prompt, pictures and metadata

        It is called in a thread, without gradient. Any exception but InputError, and any NaN, makes the group
        be asked again, as often as `scoring.retries` says; the newest answer counts.
        """

    def row_weights(self, rows: Sequence[Any], size: tuple[int, int]) -> torch.Tensor | None:
        """As `PairScorer.row_weights`: None, 1 for all rows."""
        return None


class GroupScorer(GroupReward):
    """A scorer whose scores depend on the other images of a call (`PairScorer.relative`), such as
    "compare:MODEL", as a reward of groups: every call is about one whole group.
    """

    def __init__(self, scorer: PairScorer):
        self.scorer, self.name, self.takes_turns = scorer, scorer.name, scorer.takes_turns

    def group_rewards(self, pixels_G_3_H_W: torch.Tensor, row: Request) -> torch.Tensor:
        """The scorer's scores [G] of the group."""
        count = len(pixels_G_3_H_W)
        return self.scorer.pixel_rewards(pixels_G_3_H_W, [row.prompt] * count, [row] * count)

    def row_weights(self, rows: Sequence[Any], size: tuple[int, int]) -> torch.Tensor | None:
        """The scorer's."""
        return self.scorer.row_weights(rows, size)


class PairwiseJudge(GroupReward):
    """A judge of pairs, whose reward is an image's win rate within its group; see `win_rates`.

    A subclass defines `compare`. All G (G - 1) / 2 pairs of a group are compared, each once.

    Wang et al. 2025, arXiv:2508.20751 (Pref-GRPO).
    """

    @abstractmethod
    def compare(
        self, row: Request, first_P_3_H_W: torch.Tensor, second_P_3_H_W: torch.Tensor
    ) -> torch.Tensor:
        """Verdicts [P]: 1 where the first image of a pair is better, 0 where the second is, 0.5 for a tie.

        NaN is a verdict that could not be read; it counts as a tie. If no verdict of a group can be read, the
        group has no rewards, and is asked again.
        """

    def group_rewards(self, pixels_G_3_H_W: torch.Tensor, row: Request) -> torch.Tensor:
        """Win rates [G] of a group; NaN if no verdict could be read."""
        count = len(pixels_G_3_H_W)
        pairs_P_2 = torch.combinations(torch.arange(count), 2)
        first, second = (pixels_G_3_H_W[places] for places in pairs_P_2.T)
        verdicts_P = self.compare(row, first, second)
        if not isinstance(verdicts_P, torch.Tensor) or verdicts_P.shape != (len(pairs_P_2),):
            got = getattr(verdicts_P, "shape", type(verdicts_P).__name__)
            raise InputError(f"{self.name}.compare gave {got}; expected a tensor [{len(pairs_P_2)}]")
        verdicts_P = verdicts_P.detach().float().cpu()
        if verdicts_P.isnan().all():
            return torch.full((count,), torch.nan)
        return win_rates(verdicts_P, pairs_P_2, count)


def win_rates(verdicts_P: torch.Tensor, pairs_P_2: torch.Tensor, count: int) -> torch.Tensor:
    """Share of its comparisons that each image won, [count] float32, 0..1; NaN for one without comparisons.

    verdicts_P  1: the first image of the pair won, 0: the second, 0.5: a tie; NaN: unknown, half a win for
                both, as a tie
    pairs_P_2   indices of the two images of each comparison, 0..count - 1. A pair may be compared in both
                orders, which evens out a preference for a place
    count       number of images

    Raises InputError for another verdict, for an index out of range and for an image compared with itself.
    """
    if pairs_P_2.shape != (len(verdicts_P), 2):
        raise InputError(
            f"pairs {list(pairs_P_2.shape)}: expected [{len(verdicts_P)}, 2], one row for each verdict"
        )
    known = verdicts_P[~verdicts_P.isnan()]
    wrong = known[(known != 0) & (known != 0.5) & (known != 1)]
    if len(wrong):
        raise InputError(f"a verdict is {wrong[0]:g}; expected 1, 0.5, 0 or NaN")
    first_P, second_P = pairs_P_2.T
    if len(pairs_P_2) and not (int(pairs_P_2.min()) >= 0 and int(pairs_P_2.max()) < count):
        raise InputError(f"a pair names an image beyond 0..{count - 1}")
    if (first_P == second_P).any():
        raise InputError("a pair compares an image with itself; expected two images")
    points = torch.where(verdicts_P.isnan(), 0.5, verdicts_P).double()
    zeros = torch.zeros(count, dtype=torch.float64)
    won = zeros.index_add(0, first_P, points).index_add(0, second_P, 1 - points)
    ones = torch.ones(len(points), dtype=torch.float64)
    compared = zeros.index_add(0, first_P, ones).index_add(0, second_P, ones)
    return (won / compared).float()


def find_group_reward(name: str) -> GroupReward | None:
    """The GroupReward that "module:name" is, or whose class it is; None for anything else.

    Raises InputError for a module or an attribute that is not there.
    """
    if not is_reference(name) or is_judge(name):
        return None
    found: Any = find(name, "scorer")
    if isinstance(found, type) and issubclass(found, GroupReward):
        found = found()
    return found if isinstance(found, GroupReward) else None
