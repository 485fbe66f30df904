"""assemble: builds a scorer from its config and a state dict, and checks names, shapes and dtypes."""

from dataclasses import replace

import torch

from imagereward.adapters.files import PREFIX
from imagereward.config import ScorerConfig
from imagereward.errors import CheckpointError, DeviceError, ImageRewardError, listing
from imagereward.models import model_class
from imagereward.precision import DTYPES, resolve_dtype
from imagereward.scoring.scorer import Scorer

# Suffix of a buffer that old versions of transformers saved; no model needs it.
LEGACY_BUFFER = "embeddings.position_ids"


def assemble(
    config: ScorerConfig,
    state: dict[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    source: str = "state dict",
) -> Scorer:
    """A scorer with the given weights, in eval mode and frozen.

    config  the scorer's kind, architecture, preprocessing and score
    state   the weights by name; its tensors are replaced by those on `device`
    device  device of the scorer
    dtype   number format of the weights; those under the scorer's `float32_prefixes` stay float32
    source  name of the weights in error messages

    The scorer is first built on the meta device, so initial values take no memory. In float32 on the CPU its
    parameters are the given tensors themselves, mapped from disk if the tensors are. Raises CheckpointError
    listing missing and unexpected names, other shapes, and tensors that are not floating-point.
    """
    scorer = _laid_out(replace(config, adapters=()))
    expected = scorer.state_dict()
    adapters = [(each, _taken(state, f"{PREFIX}{each.name}.")) for each in config.adapters]
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
    scorer.to(device).eval().requires_grad_(False)
    for adapter, weights in adapters:
        scorer.adapters.add(scorer, adapter, scorer.token_streams(), weights)
    scorer.config = config
    return scorer


def _taken(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, without it; they are removed from `state`."""
    return {name[len(prefix) :]: state.pop(name) for name in list(state) if name.startswith(prefix)}


def _laid_out(config: ScorerConfig) -> Scorer:
    """The scorer on the meta device: tensors have shapes, but no memory."""
    try:
        with torch.device("meta"):
            return model_class(config.kind)(config)
    except ImageRewardError:
        raise
    except Exception as error:  # libraries that build towers raise many kinds for a wrong architecture
        raise CheckpointError(
            f"a {config.kind} scorer cannot be built as {config.architecture!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def random_scorer(
    config: ScorerConfig, device: str | torch.device | None = None, dtype=None, seed: int = 0
) -> Scorer:
    """A scorer with random weights, for tests and for measuring speed and memory; its scores mean nothing.

    seed  seeds the weights, which are normal; matrices have variance 1 / inputs, so that activations are of
          order 1

    `device` and `dtype` default to those of `load`.
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
    """The torch device; None stands for the first CUDA GPU, or the CPU without one, also beside an Apple GPU.

    Raises DeviceError, listing the devices present, for a device that this machine lacks.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        count = torch.cuda.device_count()
        apple = ["mps"] if torch.backends.mps.is_available() else []
        present = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count)), *apple])
        raise DeviceError(f"device {device!r} is not on this machine; present: {present}") from error
    return found
