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
    """The user's scorer, on its device, in eval mode and frozen.

    reference  "module:attribute": a PairScorer, a function or class that makes one, or a function of
               (pixels, prompts)
    options    the arguments of `load` that are not None; a function or class that makes a scorer gets those
               for which it has parameters

    A scorer that is not a `Scorer` has the verbs of `PairScorer`, without `reward`. Raises InputError for a
    missing attribute, an attribute that is no scorer, and options that nothing takes.
    """
    found, module = find(reference, "scorer"), reference.partition(":")[0]
    left = dict(options)
    device, dtype = left.pop("device", None), left.pop("dtype", None)
    if callable(found) and not isinstance(found, PairScorer):
        if is_reward_function(found):
            found = FunctionScorer(found, reference)
        else:
            takes_dtype = "dtype" in inspect.signature(found).parameters
            found = _made(found, left, device, dtype)
            dtype = None if takes_dtype else dtype  # what it made has its dtype
    if not isinstance(found, PairScorer):
        raise InputError(f"scorer={reference!r} is of type {type(found).__name__}; {EXPECTED}")
    for where in ("download_root", "local_files_only"):  # they have no effect: nothing is downloaded
        left.pop(where, None)
    if left:
        raise InputError(f"scorer={reference!r} takes no {', '.join(left)}")
    if isinstance(found, torch.nn.Module):
        _move(found, resolve_device(device), None if dtype is None else resolve_dtype(dtype))
        found.eval().requires_grad_(False)
    if source := getattr(sys.modules[module], "__file__", None):
        found.files = {**found.files, "source": Path(source)}  # lets bulk scoring notice changed code
    return cast(Scorer, found)


def _made(make: Any, left: dict[str, Any], device: Any, dtype: Any) -> Any:
    """What `make` returns, given the options for which it has parameters; these leave `left`."""
    parameters = inspect.signature(make).parameters
    given = {name: left.pop(name) for name in parameters & left.keys()}
    for name, value in {"device": device, "dtype": dtype}.items():
        if name in parameters and value is not None:
            given[name] = value
    if "device" in parameters and parameters["device"].default is inspect.Parameter.empty:
        given.setdefault("device", resolve_device(device))
    return make(**given)


def _move(module: torch.nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Cast a user's module, but for weights that a `Scorer` keeps in float32, and put it on the device."""
    narrow = dtype is not None and dtype.itemsize < 4
    prefixes = module.float32_prefixes if narrow and isinstance(module, Scorer) else ()
    exact = {name: value.data for name, value in module.named_parameters() if name.startswith(prefixes)}
    module.to(device, dtype)
    for name, value in module.named_parameters():
        if name in exact:
            value.data = exact[name].to(device)
