"""Scorers from outside this package, by "module:attribute"."""

import inspect
import sys
from pathlib import Path
from typing import Any, cast

import torch

from imagereward.checkpoints.assembling import resolve_device
from imagereward.errors import InputError
from imagereward.lookup import find
from imagereward.precision import resolve_dtype
from imagereward.scoring.api import PairScorer
from imagereward.scoring.functions import FunctionScorer, is_reward_function
from imagereward.scoring.scorer import Scorer

EXPECTED = (
    "expected a PairScorer (or a Scorer), a function or class that makes one when called without arguments, "
    "or a function of (pixels, prompts)"
)


def load_own(reference: str, options: dict[str, Any]) -> Scorer:
    """The scorer that "module:attribute" names, on its device, in evaluation mode and frozen.

    A function or class that makes a scorer is given those of `options` (the arguments of `load` that are not
    None) that it has parameters for. A scorer that is no `Scorer` has the verbs of `PairScorer` alone.
    Raises InputError for an attribute that is not there or is no scorer, and for options that cannot be met.
    """
    found, module = find(reference, "scorer"), reference.partition(":")[0]
    left = dict(options)
    if callable(found) and not isinstance(found, PairScorer):
        if is_reward_function(found):
            found = FunctionScorer(found, reference)
        else:
            found = found(
                **{name: left.pop(name) for name in inspect.signature(found).parameters & left.keys()}
            )
    if not isinstance(found, PairScorer):
        raise InputError(f"scorer={reference!r} is of type {type(found).__name__}; {EXPECTED}")
    device, dtype = left.pop("device", None), left.pop("dtype", None)
    for where in ("download_root", "local_files_only"):  # nothing is fetched
        left.pop(where, None)
    if left:
        raise InputError(f"scorer={reference!r} takes no {', '.join(left)}")
    if isinstance(found, torch.nn.Module):
        found.to(resolve_device(device), None if dtype is None else resolve_dtype(dtype))
        found.eval().requires_grad_(False)
    if isinstance(found, Scorer) and not found.files and (source := sys.modules[module].__file__):
        found.files = {"source": Path(source)}  # bulk scoring then notices that the code has changed
    return cast(Scorer, found)
