"""Adapter: what ReFT and LoRA have in common; finding modules by their paths, and their widths."""

import difflib
import fnmatch
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagereward.adapters.files import PREFIX, save_adapter, weights_hashes
from imagereward.adapters.streams import TokenMasks, TokenStream
from imagereward.config import AdapterConfig
from imagereward.errors import CheckpointError, InputError, listing
from imagereward.uploading import push


class Adapter(nn.Module):
    """A change to a model that can be switched off, scaled and taken off. `ReFT` and `LoRA` are the two.

    config   its settings, with the paths of its modules
    enabled  whether it has an effect
    scale    the delta is multiplied by it

    Its parameters are frozen until `let_learn`.
    """

    def __init__(self, config: AdapterConfig):
        super().__init__()
        self.config = config
        self._enabled, self._scale = True, float(config.scale)
        self._host: weakref.ref[nn.Module] | None = None

    @property
    def enabled(self) -> bool:
        """Whether the adapter has an effect."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        """Switch it on or off."""
        self._enabled = bool(value)
        self._strength_changed()

    @property
    def scale(self) -> float:
        """The delta is multiplied by it; 1 is as trained."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        """Set its strength."""
        self._scale = float(value)
        self._strength_changed()

    def _strength_changed(self) -> None:
        """Called when `enabled` or `scale` has changed."""

    def hosted_by(self, model: nn.Module) -> None:
        """Remember the model, without owning it, for its name and hashes when the adapter is saved."""
        self._host = weakref.ref(model)

    def attach(self, model: nn.Module, masks: TokenMasks) -> None:
        """Put the adapter on a model whose modules its config names."""
        raise NotImplementedError

    def detach(self, model: nn.Module) -> None:
        """Take it off the model, which is then as before."""
        raise NotImplementedError

    def weights(self) -> dict[str, torch.Tensor]:
        """Its tensors by name: what is learned and saved."""
        return dict(self.state_dict())

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take these values. CheckpointError, listing names, for others than `weights` has, and for NaN."""
        own = self.weights()
        wrong = [
            f"{name} {tuple(weights[name].shape) if name in weights else 'missing'}"
            for name, value in own.items()
            if name not in weights or weights[name].shape != value.shape
        ]
        wrong += [f"{name} unexpected" for name in weights if name not in own]
        wrong += [f"{name} not finite" for name, value in weights.items() if not value.isfinite().all()]
        if wrong:
            raise CheckpointError(
                f"the weights do not fit the adapter {self.config.name!r}: {listing(wrong)}"
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])

    def learned(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return list(self.parameters())

    def let_learn(self, learn: bool = True) -> None:
        """Let gradients reach its parameters, or freeze them."""
        for parameter in self.learned():
            parameter.requires_grad_(learn)

    def described(self) -> AdapterConfig:
        """The config with the present scale, and the base's name and hashes: what is saved."""
        host = None if self._host is None else self._host()
        if host is None:
            raise InputError(
                f"the model that the adapter {self.config.name!r} is on is gone, whose hash belongs into "
                "the file: call hosted_by(model) with the model, or save before"
            )
        base = self.config.base or getattr(host, "name", type(host).__name__)
        return replace(self.config, scale=self.scale, base=str(base), weights=weights_hashes(host))

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write `config.json` and `adapter.safetensors`, which `load(..., adapter=directory)` reads."""
        return save_adapter(self.described(), self.weights(), directory)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = ""
    ) -> str:
        """Upload the files of `save_pretrained` to a hub repository, created if missing; returns its URL."""
        text = message or f"{self.config.name}, an adapter for {self.config.base}, saved by imagereward"
        return push(self, repo_id, private, token, text)


def find_modules(
    model: nn.Module, wanted: Iterable[str], streams: Mapping[str, TokenStream], linear: bool = False
) -> tuple[str, ...]:
    """Full paths of the modules that are meant.

    wanted  paths, patterns with *, and names of streams
    linear  whether linear layers are asked for: a stream's are then those that its `linear` names, and other
            modules are refused

    Raises InputError, with the nearest valid paths, for one that is not there.
    """
    there = {path: module for path, module in model.named_modules() if not _of_an_adapter(path)}
    found: list[str] = []
    for each in wanted:
        if each in streams:
            found += _linear_of(there, streams[each]) if linear else streams[each].layers
        elif "*" in each:
            matching = [path for path in there if path and fnmatch.fnmatchcase(path, each)]
            found += [path for path in matching if not linear or is_linear(there[path])]
            if not matching:
                raise InputError(_no_module(each, there, streams))
        elif each in there and each:
            if linear and not is_linear(there[each]):
                raise InputError(
                    f"modules: {each} is a {type(there[each]).__name__}; LoRA changes linear layers"
                )
            found.append(each)
        else:
            raise InputError(_no_module(each, there, streams))
    if not found:
        raise InputError(f"modules={list(wanted)!r}: expected at least one module")
    return tuple(dict.fromkeys(found))


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
    near = difflib.get_close_matches(path, list(there), 3, cutoff=0.3)
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
