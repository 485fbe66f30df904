"""Finding of the modules that an adapter changes, by their paths; and their widths."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from imagereward.adapters.files import PREFIX
from imagereward.adapters.streams import TokenMasks, TokenStream
from imagereward.errors import InputError

NEAREST = 3  # paths that an error proposes


def find_modules(
    model: nn.Module, wanted: Iterable[str], streams: Mapping[str, TokenStream], linear: bool = False
) -> tuple[str, ...]:
    """Full paths of the modules that are meant.

    wanted  paths, patterns with *, and names of streams
    linear  whether linear layers are asked for: a stream's are then those that its `linear` names, and other
            modules are refused

    Raises InputError, with the nearest valid paths, for one that is not there, and for one that no
    forward pass calls: a list of modules, or what torch's attention reads the weights of. Patterns leave
    such modules out.
    """
    there = {path: module for path, module in model.named_modules() if path and not _of_an_adapter(path)}
    called = {path: module for path, module in there.items() if _is_called(path, there)}
    found: list[str] = []
    for each in wanted:
        if each in streams:
            found += _linear_of(there, streams[each]) if linear else streams[each].layers
        elif "*" in each:
            matching = [path for path in called if fnmatch.fnmatchcase(path, each)]
            found += [path for path in matching if not linear or is_linear(there[path])]
            if not matching:
                skipped = [path for path in there if fnmatch.fnmatchcase(path, each)]
                raise InputError(
                    _not_called(skipped[0], there, called, linear)
                    if skipped
                    else _no_module(each, called, streams)
                )
        elif each not in there:
            raise InputError(_no_module(each, called, streams))
        elif linear and not is_linear(there[each]):
            raise InputError(f"modules: {each} is a {_type(there[each])}; LoRA changes linear layers")
        elif each not in called:
            raise InputError(_not_called(each, there, called, linear))
        else:
            found.append(each)
    if not found:
        raise InputError(f"modules={list(wanted)!r}: expected at least one module")
    return tuple(dict.fromkeys(found))


def _is_called(path: str, there: Mapping[str, nn.Module]) -> bool:
    """Whether a module may be called: it has a forward pass, and the one around it does not skip it."""
    if _forward_of(there[path]) is nn.Module.forward:  # a container, such as a ModuleList
        return False
    around = there.get(path.rpartition(".")[0])
    # Its forward pass reads the weights of `out_proj`, and does not call it.
    return not isinstance(around, nn.MultiheadAttention) or (
        _forward_of(around) is not nn.MultiheadAttention.forward
    )


def _forward_of(module: nn.Module) -> Any:
    return getattr(module.forward, "__func__", module.forward)


def _not_called(
    path: str, there: Mapping[str, nn.Module], called: Mapping[str, nn.Module], linear: bool
) -> str:
    """The error for a module that is not called.

    It proposes the first modules within; else the one around; else those with a like path.
    """
    fit = [each for each, module in called.items() if not linear or is_linear(module)]
    within = [each for each in fit if each.startswith(f"{path}.")]
    outermost = [each for each in within if not any(each.startswith(f"{other}.") for other in within)]
    around = [each for each in fit if path.startswith(f"{each}.")][-1:]
    near = outermost or around or difflib.get_close_matches(path, fit, NEAREST, cutoff=0.3)
    return (
        f"modules: {path} is a {_type(there[path])} that no forward pass calls, so an adapter there "
        f"would change nothing; nearest that one calls: {', '.join(near[:NEAREST]) or 'none'}"
    )


def _type(module: nn.Module) -> str:
    return type(module).__name__


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, or one that a LoRA has been put around."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)


def _of_an_adapter(path: str) -> bool:
    return path.startswith(PREFIX) or ".base_layer" in path or ".lora_" in path


def _linear_of(there: Mapping[str, nn.Module], stream: TokenStream) -> list[str]:
    return [
        path
        for path, module in there.items()
        if is_linear(module)
        and path.endswith(stream.linear)
        and any(path.startswith(f"{layer}.") for layer in stream.layers)
    ]


def _no_module(path: str, there: Mapping[str, nn.Module], streams: Mapping[str, TokenStream]) -> str:
    near = difflib.get_close_matches(path, list(there), NEAREST, cutoff=0.3)
    names = f"the streams {', '.join(streams)}, and " if streams else ""
    nearest = ", ".join(near) or "none"
    return f"modules: the model has no module {path!r}; nearest: {nearest}; valid: {names}paths"


def width_of(module: nn.Module, path: str, masks: TokenMasks, given: int) -> int:
    """The width of a module's output: as given, as the module says, or its stream's. Else InputError."""
    if given:
        return given
    for name in ("out_features", "embedding_dim"):
        if isinstance(value := getattr(module, name, None), int):
            return value
    shape: Any = getattr(module, "normalized_shape", None)
    if shape:
        return int(shape[-1])
    stream = masks.stream_of(path)
    if stream is None:
        raise InputError(f"modules: the width of {path} cannot be seen; say width=")
    return masks.streams[stream].width


def check_rank(rank: int, width: int, path: str) -> None:
    """Raises InputError for more directions than the width."""
    if rank > width:
        raise InputError(f"rank={rank}: {path} has a width of {width}; expected at most that")
