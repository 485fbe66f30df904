"""Reward models for text-to-image: load one, score images with it, rank them, push generators with it.

    import imagereward as RM
    model = RM.load("ImageReward-v1.0")
    model.score("a red bicycle", ["a.png", "b.png"])

Everything is imported on first use, so importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from imagereward.version import __version__

if TYPE_CHECKING:
    from imagereward.ensembles import ensemble as ensemble
    from imagereward.loading import load as load
    from imagereward.loading import load_score as load_score
    from imagereward.ranking import Ranking as Ranking
    from imagereward.registry import available_models as available_models
    from imagereward.registry import available_scores as available_scores
    from imagereward.remote import connect as connect
    from imagereward.remote import connect_async as connect_async
    from imagereward.scorer import Scorer as Scorer

_HOMES = {
    "load": "loading",
    "load_score": "loading",
    "ensemble": "ensembles",
    "connect": "remote",
    "connect_async": "remote",
    "available_models": "registry",
    "available_scores": "registry",
    "Scorer": "scorer",
    "Ranking": "ranking",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__():
    return sorted(__all__)
