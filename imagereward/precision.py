"""In what precision numbers are kept and computed."""

import torch

from imagereward.errors import InputError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """float32, unless it is float64, which gradient checks need."""
    return x if x.dtype == torch.float64 else x.float()


def cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Keep a module's floats in `dtype`; diffusers warns of every cast, also of one that changes nothing."""
    if any(value.is_floating_point() and value.dtype != dtype for value in module.state_dict().values()):
        module.to(dtype=dtype)


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype of that name; None is float32. InputError if it is none of `DTYPES`."""
    if dtype is None:
        return torch.float32
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted is None or wanted not in DTYPES.values():
        raise InputError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    return wanted
