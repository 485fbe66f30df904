"""Rewards: the weighted sum of scorers and functions that a generator is trained or judged by."""

from collections.abc import Callable, Mapping, Sequence

import torch

from imagereward.errors import InputError, NonFiniteScoreError
from imagereward.rewards.opening import by_shown_name, open_reward
from imagereward.scoring.api import PairScorer
from imagereward.scoring.functions import FunctionScorer
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.data.requests import Row, as_request, prompts_of
from imagereward.tuning.rewards.groups import GroupReward, GroupScorer, find_group_reward

# A scorer, or a function (pixels [B, 3, H, W] in [0, 1], prompts) -> rewards [B]. The function may have a
# parameter `rows`, which gets the requests with their pictures and metadata.
RewardSource = PairScorer | GroupReward | Callable[..., torch.Tensor]


class Rewards:
    """offset + sum_k weight_k * reward_k of images; a part may weigh its rewards row by row (`row_weights`).

    A call with pixels [B, 3, H, W] in [0, 1] and B rows returns (sum [B], {name: unweighted rewards [B]}).

    parts    {name: (weight, scorer, function or GroupReward)}. Functions become a `FunctionScorer`, scorers
             that compare the images of a call a `GroupScorer`. Scorers are frozen in place, so that their
             weights get no gradients
    offset   added to the sum; default 0

    A call raises NonFiniteScoreError for an image or a reward that is not finite, InputError if there is a
    `GroupReward`.
    """

    def __init__(self, parts: Mapping[str, tuple[float, RewardSource]], offset: float = 0.0):
        if not parts:
            raise InputError("no reward: expected at least one scorer or function")
        self.parts = {name: (weight, _part(source, name)) for name, (weight, source) in parts.items()}
        self.offset = offset
        for scorer in self.scorers:
            scorer.requires_grad_(False).eval()

    def __call__(self, pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]):
        check_images(pixels_B_3_H_W, rows)
        if self.of_groups:
            raise InputError(
                f"reward {self.of_groups[0]} is given whole groups of images, and here are none; expected an "
                "objective that draws groups, such as GRPO, or another reward"
            )
        each = {}
        total = pixels_B_3_H_W.new_full((len(rows),), self.offset)
        weights = self.weights_for(rows, (pixels_B_3_H_W.shape[-2], pixels_B_3_H_W.shape[-1]))
        for name, weight in weights.items():
            each[name] = rewards = self.part(name, pixels_B_3_H_W, rows)
            if not isinstance(weight, torch.Tensor) and not weight:
                continue  # computed and logged, not trained on
            bad = (~rewards.isfinite()).nonzero().flatten().tolist()
            if bad:
                raise NonFiniteScoreError(f"reward {name} is not finite for {prompts_of(rows)[bad[0]]!r}")
            weight = weight.to(total) if isinstance(weight, torch.Tensor) else weight
            total = total + weight * rewards.to(pixels_B_3_H_W.device)
        return total, each

    def part(self, name: str, pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """The unweighted rewards [B] of the part `name`; NaN where a server or a function gave none.

        For a `GroupReward` the images are one group, and have one row.
        """
        prompts, part, requests = prompts_of(rows), self.parts[name][1], list(map(as_request, rows))
        if isinstance(part, GroupReward):
            rewards = part.group_rewards(pixels_B_3_H_W, requests[0])
        else:
            rewards = part.pixel_rewards(pixels_B_3_H_W, prompts, requests)
        if not isinstance(rewards, torch.Tensor) or rewards.shape != (len(prompts),):
            got = getattr(rewards, "shape", type(rewards).__name__)
            raise InputError(f"reward {name} gave {got}; expected a tensor [{len(prompts)}]")
        return rewards

    @property
    def weights(self) -> dict[str, float]:
        """{name: weight} of all parts."""
        return {name: weight for name, (weight, _) in self.parts.items()}

    def weights_for(self, rows: Sequence[Row], size: tuple[int, int]) -> dict[str, float | torch.Tensor]:
        """{name: weight}; a tensor [N] float64 for a part whose weight depends on the row.

        rows  of N images
        size  (height, width) of the images in pixels
        """
        asked = list(map(as_request, rows))
        found: dict[str, float | torch.Tensor] = {}
        for name, (weight, part) in self.parts.items():
            factor = part.row_weights(asked, size)
            found[name] = weight if factor is None or not weight else weight * factor
        return found

    @property
    def of_groups(self) -> list[str]:
        """The names of the parts that are given whole groups."""
        return [name for name, (_, part) in self.parts.items() if isinstance(part, GroupReward)]

    def without_groups(self) -> "Rewards | None":
        """The same rewards without those that are given whole groups; None if no others are left."""
        rest = {name: each for name, each in self.parts.items() if name not in self.of_groups}
        return Rewards(rest, self.offset) if rest else None

    @property
    def scorers(self) -> list[Scorer]:
        """The models in this process that the parts score by."""
        found = [_innermost(part) for _, part in self.parts.values()]
        return list({id(part): part for part in found if isinstance(part, Scorer)}.values())

    def check_differentiable(self, size: tuple[int, int], row: Row) -> None:
        """Raises InputError naming a reward whose gradient does not reach the pixels.

        size  (height, width) in pixels of the grey image that is tried
        row   the image's row
        """
        for name, (weight, part) in self.parts.items():
            if not weight:  # computed and logged, not trained on
                continue
            pixels = torch.full((1, 3, *size), 0.5, requires_grad=True)
            device = part.device if isinstance(part, Scorer) else "cpu"
            gradient = None
            if part.differentiable:
                try:
                    rewards, _ = Rewards({name: (weight, part)})(pixels.to(device), [row])
                    (gradient,) = torch.autograd.grad(rewards.sum(), pixels, allow_unused=True)
                except (RuntimeError, NotImplementedError) as error:
                    raise InputError(f"reward {name} is not differentiable: {error}") from error
            if gradient is None:
                raise InputError(
                    f"reward {name} is not differentiable: its gradient does not reach the pixels, which "
                    "ReFL trains by; GRPO takes any reward"
                )


def check_images(pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]) -> None:
    """Raises NonFiniteScoreError, with the prompt, if an image has a pixel that is NaN or infinite."""
    bad = (~pixels_B_3_H_W.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteScoreError(
            f"the image drawn for {prompts_of(rows)[bad[0]]!r} has pixels that are NaN or infinite"
        )


def open_rewards(
    reward: str | Mapping[str, float] | RewardSource | Rewards, device: torch.device | str | None = None
) -> Rewards:
    """`Rewards` from a name, {name: weight}, a scorer, or a function of (pixels, prompts).

    reward  a name is anything that `imagereward.load` takes, "module:name" of a GroupReward, a reward
            server's address, where "#model" after the address chooses a model (default: the server's first),
            or a reward of inpainting, such as "inside(CLIP)" or "boundary" (see
            `imagereward.rewards.opening`). A part has that name, without the user name and the password of
            an address. The components of an ensemble object become parts of their own, so that each is
            logged
    device  device for the scorers; default: that of `load`, or the scorer's own

    Raises InputError for any other type, and for two parts of one name.
    """
    if isinstance(reward, Rewards):
        return reward
    if isinstance(reward, str):
        reward = {reward: 1.0}
    if isinstance(reward, Mapping):
        names = by_shown_name(reward).items()
        return Rewards({shown: (reward[name], _open(name, device)) for shown, name in names})
    if isinstance(reward, GroupReward):
        return Rewards({reward.name: (1.0, reward)})
    if not callable(reward) and not isinstance(reward, PairScorer):
        raise InputError(
            f"reward is a {type(reward).__name__}; expected a name, names, a scorer or a function"
        )
    scorer = reward if isinstance(reward, PairScorer) else FunctionScorer(reward)
    if isinstance(scorer, Scorer) and device is not None:
        scorer.to(device)
    return Rewards(*scorer.summands())


def _innermost(part: PairScorer | GroupReward) -> PairScorer | GroupReward:
    """The scorer that a reward of a region is around; any other reward itself."""
    while isinstance(inner := getattr(part, "scorer", None), PairScorer):
        part = inner
    return part


def _part(source: RewardSource, name: str | None = None) -> PairScorer | GroupReward:
    """The part; a scorer that compares the images of a call becomes a reward of whole groups."""
    if isinstance(source, PairScorer) and source.relative:
        return GroupScorer(source)
    return source if isinstance(source, PairScorer | GroupReward) else FunctionScorer(source, name)


def _open(name: str, device: torch.device | str | None) -> PairScorer | GroupReward:
    return find_group_reward(name) or open_reward(name, device)
