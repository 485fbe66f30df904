"""What is pushed up: any scorers and functions, weighted, frozen, and logged one by one."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch

import imagereward
from imagereward.ensembles import Ensemble
from imagereward.errors import InputError, NonFiniteScoreError, RemoteError
from imagereward.images.reading import to_pil
from imagereward.lookup import lookup
from imagereward.remote.client import RemoteScorer
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.data.requests import Row, as_request, prompts_of

# (pixels [B, 3, H, W] in [0, 1], prompts) -> rewards [B]; one with a parameter `rows` is given them as well.
RewardFunction = Callable[..., torch.Tensor]
RewardSource = Scorer | RemoteScorer | RewardFunction


class Rewards:
    """A weighted sum of rewards: `(pixels, rows) -> (sum [B], {name: its own [B]})`.

    `parts` are scorers, here or behind a server, or functions of (pixels, prompts), which get the rows, with
    their pictures and metadata, if they have a parameter `rows`. Scorers are frozen, in place: no gradient
    and no memory gathers in them. `offset` is added to the sum.
    """

    def __init__(self, parts: Mapping[str, tuple[float, RewardSource]], offset: float = 0.0):
        if not parts:
            raise InputError("no reward: expected at least one scorer or function")
        self.parts, self.offset = dict(parts), offset
        for scorer in self.scorers:
            scorer.requires_grad_(False).eval()

    def __call__(self, pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]):
        check_images(pixels_B_3_H_W, rows)
        each = {}
        total = pixels_B_3_H_W.new_full((len(rows),), self.offset)
        for name, (weight, _) in self.parts.items():
            rewards = self.part(name, pixels_B_3_H_W, rows)
            bad = (~rewards.isfinite()).nonzero().flatten().tolist()
            if bad:
                raise NonFiniteScoreError(f"reward {name} is not finite for {prompts_of(rows)[bad[0]]!r}")
            each[name] = rewards
            total = total + weight * rewards.to(pixels_B_3_H_W.device)
        return total, each

    def part(self, name: str, pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """One of them [B], unweighted; NaN where a server or a function has none for an image."""
        part, prompts = self.parts[name][1], prompts_of(rows)
        if isinstance(part, Scorer):
            rewards = part.reward(pixels_B_3_H_W, prompts)
        elif isinstance(part, RemoteScorer):
            rewards = _asked(part, pixels_B_3_H_W, prompts)
        elif _takes_rows(part):
            rewards = part(pixels_B_3_H_W, prompts, rows=[as_request(row) for row in rows])
        else:
            rewards = part(pixels_B_3_H_W, prompts)
        if not isinstance(rewards, torch.Tensor) or rewards.shape != (len(prompts),):
            got = getattr(rewards, "shape", type(rewards).__name__)
            raise InputError(f"reward {name} gave {got}; expected a tensor [{len(prompts)}]")
        return rewards

    @property
    def weights(self) -> dict[str, float]:
        """Every part's weight."""
        return {name: weight for name, (weight, _) in self.parts.items()}

    @property
    def scorers(self) -> list[Scorer]:
        """Those of the parts that are scorers."""
        return [part for _, part in self.parts.values() if isinstance(part, Scorer)]

    def check_differentiable(self, size: tuple[int, int], row: Row) -> None:
        """Raises InputError naming a reward whose gradient does not reach the pixels of an image of `row`."""
        for name, part in self.parts.items():
            pixels = torch.full((1, 3, *size), 0.5, requires_grad=True)
            device = part[1].device if isinstance(part[1], Scorer) else "cpu"
            try:
                rewards, _ = Rewards({name: part})(pixels.to(device), [row])
                (gradient,) = torch.autograd.grad(rewards.sum(), pixels, allow_unused=True)
            except (RuntimeError, NotImplementedError) as error:
                raise InputError(f"reward {name} is not differentiable: {error}") from error
            if gradient is None:
                raise InputError(
                    f"reward {name} is not differentiable: its gradient does not reach the pixels, which "
                    "ReFL trains by; GRPO takes any reward"
                )


def check_images(pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]) -> None:
    """Raises NonFiniteScoreError naming the prompt of an image that is not finite."""
    bad = (~pixels_B_3_H_W.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteScoreError(f"what was drawn for {prompts_of(rows)[bad[0]]!r} is not finite")


def open_rewards(
    what: str | Mapping[str, float] | RewardSource | Rewards, device: torch.device | str | None = None
) -> Rewards:
    """Rewards from a name, names with weights, a scorer, or a function.

    A name is what `imagereward.load` takes, "module:function" for a function of (pixels, prompts), or a
    reward server's address, with "#model" for another than its first. A scorer is moved to the device.
    """
    if isinstance(what, Rewards):
        return what
    if isinstance(what, str):
        what = {what: 1.0}
    if isinstance(what, Mapping):
        return Rewards({name: (weight, _open(name, device)) for name, weight in what.items()})
    if isinstance(what, Scorer) and device is not None:
        what.to(device)
    if isinstance(what, Ensemble):
        return _parts_of(what)
    if isinstance(what, Scorer | RemoteScorer):
        return Rewards({what.name: (1.0, what)})
    if callable(what):
        return Rewards({getattr(what, "__name__", type(what).__name__): (1.0, what)})
    raise InputError(f"reward is a {type(what).__name__}; expected a name, names, a scorer or a function")


def _parts_of(ensemble: Ensemble) -> Rewards:
    """Its components one by one, so that each is logged; their sum is the ensemble's score."""
    parts, offset = {}, 0.0
    for name, scorer, weight, (mean, std) in zip(
        ensemble.names, ensemble.scorers, ensemble.weights, ensemble.shifts, strict=True
    ):
        parts[name] = (weight / std, scorer)
        offset -= weight * mean / std
    return Rewards(parts, offset)


def _open(name: str, device) -> RewardSource:
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        return imagereward.connect(url, model or None)
    if ":" not in name or "/" in name or "\\" in name:
        return imagereward.load(name, device)
    try:
        found = lookup(name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"reward {name}: {error}") from error
    if not callable(found):
        raise InputError(f"reward {name} is no function")
    return found


def _takes_rows(function: RewardFunction) -> bool:
    try:
        return "rows" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in, without one
        return False


def _asked(scorer: RemoteScorer, pixels_B_3_H_W: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    try:
        return torch.tensor(scorer.score_pairs(prompts, [to_pil(image) for image in pixels_B_3_H_W]))
    except RemoteError as error:
        if error.scores is None or len(error.scores) != len(prompts):
            raise
        scores = torch.as_tensor(error.scores, dtype=torch.float32)
        if not scores.isfinite().any():
            raise
        return scores
