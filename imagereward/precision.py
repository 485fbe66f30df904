"""Floating-point precision: names of dtypes, casts of modules, and float32 for sensitive steps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from imagereward.errors import InputError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp64": "float64"}


def on_cpu() -> AbstractContextManager:
    """A context in which new tensors are on the CPU by default, whatever torch's default device is."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """The tensor as float32; float64, which gradient checks need, stays."""
    return x if x.dtype == torch.float64 else x.float()


Exact = list[tuple[torch.Tensor, torch.Tensor]]


def cast(module: torch.nn.Module, dtype: torch.dtype) -> Exact:
    """Cast a module's floating-point tensors to `dtype`; returns their values before, for `unrounded`.

    Does nothing if all have that dtype, since diffusers warns of every cast. To float16, layers that
    transformers keeps in float32 when it loads a model in float16 become float32: T5's `wo`, which overflows.
    """
    if all(value.dtype == dtype or not value.is_floating_point() for value in module.state_dict().values()):
        return []
    before: Exact = [(value, value.data) for value in module.parameters()]
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    exempt = [name for name, _ in module.named_parameters() if kept & set(name.split("."))]
    parameters = dict(module.named_parameters())
    originals = {name: parameters[name].data for name in exempt}
    module.to(dtype=dtype)
    for name, value in originals.items():
        parameters[name].data = value.float()
    return before


@contextmanager
def unrounded(exact: Exact) -> Iterator[None]:
    """A context in which parameters have their values from before `cast`."""
    now = [value.data for value, _ in exact]
    for value, before in exact:
        value.data = before
    try:
        yield
    finally:
        for (value, _), rounded in zip(exact, now, strict=True):
            value.data = rounded


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The torch dtype of a name in `DTYPES` or `SHORT`; None is float32. InputError for other names."""
    if dtype is None:
        return torch.float32
    wanted = DTYPES.get(SHORT.get(name := dtype.lower(), name)) if isinstance(dtype, str) else dtype
    if wanted is None or wanted not in DTYPES.values():
        raise InputError(f"dtype={dtype!r}: expected one of {', '.join([*DTYPES, *SHORT])}")
    return wanted
