"""A scorer from its config and weights: laid out without memory, checked name by name, then filled."""

import torch

from imagereward.config import ScorerConfig
from imagereward.errors import CheckpointError, DeviceError, ImageRewardError, listing
from imagereward.models import model_class
from imagereward.precision import DTYPES, resolve_dtype
from imagereward.scoring.scorer import Scorer

# A buffer that old transformers saved and no model needs.
LEGACY_BUFFER = "embeddings.position_ids"


def assemble(
    config: ScorerConfig,
    state: dict[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    source: str = "state dict",
) -> Scorer:
    """A scorer around given weights: no memory is spent on initial values that would be replaced.

    In float32 on the CPU the parameters *are* the given tensors (mapped from disk, if they are).
    Raises CheckpointError listing missing and unexpected keys and unequal shapes.
    """
    scorer = _laid_out(config)
    expected = scorer.state_dict()
    state = {name: value for name, value in state.items() if not name.endswith(LEGACY_BUFFER)}
    faults = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)}, expected {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ],
        "no floating-point numbers": [
            f"{name} {value.dtype}"
            for name, value in state.items()
            if name in expected and value.dtype not in DTYPES.values()
        ],
    }
    if any(faults.values()):
        raise CheckpointError(
            f"{source} does not fit a scorer of kind {config.kind}:"
            + "".join(f"\n  {len(bad)} {what}: {listing(bad)}" for what, bad in faults.items() if bad)
        )
    for name in state:
        kept = name.startswith(scorer.float32_prefixes) and dtype.itemsize < 4
        state[name] = state[name].to(device, torch.float32 if kept else dtype)
    scorer.load_state_dict(state, assign=True)
    scorer.init_buffers()
    if empty := [name for name, value in scorer.named_buffers() if value.is_meta]:
        raise CheckpointError(
            f"a scorer of kind {config.kind} has buffers that no checkpoint holds and its init_buffers does "
            f"not make: {listing(empty)}"
        )
    return scorer.to(device).eval().requires_grad_(False)


def _laid_out(config: ScorerConfig) -> Scorer:
    """The scorer with shapes but no memory behind them."""
    try:
        with torch.device("meta"):
            return model_class(config.kind)(config)
    except ImageRewardError:
        raise
    except Exception as error:  # the libraries that build towers check shapes in many ways
        raise CheckpointError(
            f"a {config.kind} scorer cannot be built as {config.architecture!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def random_scorer(
    config: ScorerConfig, device: str | torch.device | None = None, dtype=None, seed: int = 0
) -> Scorer:
    """A scorer with random weights: for measuring speed and memory, and for tests; its scores mean nothing.

    Weights are normal with the spread that keeps activations of order one, drawn from `seed`.
    """
    shapes = {name: value.shape for name, value in _laid_out(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator).mul_(
            shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.1
        )
        for name, shape in shapes.items()
    }
    for name, value in state.items():
        if value.ndim == 1 and name.endswith("weight"):
            value.add_(1)
    return assemble(config, state, resolve_device(device), resolve_dtype(dtype), "random weights")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None is the first GPU, else the CPU. DeviceError if it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        count = torch.cuda.device_count()
        present = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        raise DeviceError(f"device {device!r} is not on this machine; present: {present}") from error
    return found
