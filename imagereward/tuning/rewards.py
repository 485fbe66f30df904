"""What is pushed up: any scorers and functions, weighted, frozen, and logged one by one."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

import torch

import imagereward
from imagereward.errors import InputError, NonFiniteScoreError
from imagereward.scorer import Scorer

# (pixels [B, 3, H, W] in [0, 1], prompts) -> rewards [B].
Reward = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]


class Rewards:
    """A weighted sum of rewards: `(pixels, prompts) -> (sum [B], {name: its own [B]})`.

    `parts` are scorers, or functions of (pixels, prompts). Scorers are frozen, in place: no gradient and no
    memory gathers in them.
    """

    def __init__(self, parts: Mapping[str, tuple[float, Scorer | Reward]]):
        if not parts:
            raise InputError("no reward: expected at least one scorer or function")
        self.parts = dict(parts)
        for scorer in self.scorers:
            scorer.requires_grad_(False).eval()

    def __call__(self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str]):
        prompts, each = list(prompts), {}
        total = pixels_B_3_H_W.new_zeros(len(prompts))
        for name, (weight, part) in self.parts.items():
            rewards = (
                part.reward(pixels_B_3_H_W, prompts)
                if isinstance(part, Scorer)
                else part(pixels_B_3_H_W, prompts)
            )
            if not isinstance(rewards, torch.Tensor) or rewards.shape != (len(prompts),):
                got = getattr(rewards, "shape", type(rewards).__name__)
                raise InputError(f"reward {name} gave {got}; expected a tensor [{len(prompts)}]")
            bad = (~rewards.isfinite()).nonzero().flatten().tolist()
            if bad:
                raise NonFiniteScoreError(f"reward {name} is not finite for {prompts[bad[0]]!r}")
            each[name] = rewards
            total = total + weight * rewards.to(pixels_B_3_H_W.device)
        return total, each

    @property
    def scorers(self) -> list[Scorer]:
        """Those of the parts that are scorers."""
        return [part for _, part in self.parts.values() if isinstance(part, Scorer)]

    def check_differentiable(self, size: int) -> None:
        """Raises InputError naming a reward whose gradient does not reach the pixels."""
        for name, part in self.parts.items():
            pixels = torch.full((1, 3, size, size), 0.5, requires_grad=True)
            device = part[1].device if isinstance(part[1], Scorer) else "cpu"
            try:
                rewards, _ = Rewards({name: part})(pixels.to(device), ["a picture"])
                (gradient,) = torch.autograd.grad(rewards.sum(), pixels, allow_unused=True)
            except (RuntimeError, NotImplementedError) as error:
                raise InputError(f"reward {name} is not differentiable: {error}") from error
            if gradient is None:
                raise InputError(
                    f"reward {name} is not differentiable: its gradient does not reach the pixels, which "
                    "ReFL trains by; GRPO takes any reward"
                )


def open_rewards(
    what: str | Mapping[str, float] | Scorer | Reward | Rewards, device: torch.device | str | None = None
) -> Rewards:
    """Rewards from a name, names with weights, a scorer, or a function.

    A name is what `imagereward.load` takes, or "module:function" for a function of (pixels, prompts).
    """
    if isinstance(what, Rewards):
        return what
    if isinstance(what, str):
        what = {what: 1.0}
    if isinstance(what, Mapping):
        return Rewards({name: (weight, _open(name, device)) for name, weight in what.items()})
    if isinstance(what, Scorer):
        return Rewards({what.name: (1.0, what)})
    if callable(what):
        return Rewards({getattr(what, "__name__", type(what).__name__): (1.0, what)})
    raise InputError(f"reward is a {type(what).__name__}; expected a name, names, a scorer or a function")


def _open(name: str, device) -> Scorer | Reward:
    module, colon, function = name.partition(":")
    if not colon or "/" in name or "\\" in name:
        return imagereward.load(name, device)
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"reward {name}: {error}") from error
    if not callable(found):
        raise InputError(f"reward {name} is no function")
    return found
