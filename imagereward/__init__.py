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
    from imagereward.checkpoints.loading import load as load
    from imagereward.checkpoints.loading import load_score as load_score
    from imagereward.checkpoints.registry import available_models as available_models
    from imagereward.checkpoints.registry import available_scores as available_scores
    from imagereward.ensembles import ensemble as ensemble
    from imagereward.remote.client import connect as connect
    from imagereward.remote.client import connect_async as connect_async
    from imagereward.scoring.ranking import Ranking as Ranking
    from imagereward.scoring.scorer import Scorer as Scorer
    from imagereward.tuning import evaluate as evaluate
    from imagereward.tuning import personalise as personalise

_HOMES = {
    "load": "checkpoints.loading",
    "load_score": "checkpoints.loading",
    "ensemble": "ensembles",
    "connect": "remote.client",
    "connect_async": "remote.client",
    "available_models": "checkpoints.registry",
    "available_scores": "checkpoints.registry",
    "Scorer": "scoring.scorer",
    "Ranking": "scoring.ranking",
    "personalise": "tuning",
    "evaluate": "tuning",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__():
    return sorted(__all__)
