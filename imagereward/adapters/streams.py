"""TokenStream: a sequence of tokens that passes through a model's layers, and which of them are real.

A scorer describes its streams ("text", "image"); hooks on the modules that get a mask of tokens note it, and
adapters in the stream's modules read it in the same forward pass.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Of each thread: {(id of the masks, stream): mask}, and the mask that is given.
_noted = threading.local()


@dataclass(frozen=True)
class TokenStream:
    """Tokens [B, T, width] on their way through `layers`.

    prefixes  beginnings of the paths of modules in the stream
    layers    paths of its layers, first to last
    width     of the hidden states
    linear    endings of the names of linear layers, within the layers, that LoRA changes by default
    default   whether adapters that name no modules change its layers
    sources   path of a module -> a function of its arguments (args, kwargs) that gives the mask [B, T] of its
              input's real tokens; empty: all tokens are real
    continues whether a pass may have the tokens that follow those of earlier passes; masks have both
    allows    positions that ReFT may ask for here: "any"; "first", where a row goes on after what is read; or
              "all", where the tokens of several rows follow each other
    """

    prefixes: tuple[str, ...]
    layers: tuple[str, ...]
    width: int
    linear: tuple[str, ...] = ()
    default: bool = True
    sources: Mapping[str, Callable[[tuple, dict], torch.Tensor]] = field(default_factory=dict)
    continues: bool = False
    allows: Literal["any", "first", "all"] = "any"

    def holds(self, path: str) -> bool:
        """Whether the module at `path` is in this stream."""
        return f"{path}.".startswith(self.prefixes)


class TokenMasks:
    """Notes the masks of a model's streams while the model runs."""

    def __init__(self, streams: Mapping[str, TokenStream]):
        self.streams = dict(streams)
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Hook the sources; does nothing if they are hooked."""
        if self._handles:
            return
        for name, stream in self.streams.items():
            for path, mask_of in stream.sources.items():
                hook = partial(self._note, name, mask_of)
                self._handles.append(
                    model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
                )

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def stream_of(self, path: str) -> str | None:
        """The name of the stream that a module is in; None for a module of no known stream."""
        return next((name for name, stream in self.streams.items() if stream.holds(path)), None)

    def mask(self, stream: str | None) -> torch.Tensor | None:
        """The mask [B, T] of the stream's tokens in this forward pass; None: all tokens are real."""
        given = getattr(_noted, "given", None)
        if given is not None:
            return given
        if stream is None or not self.streams[stream].sources:
            return None
        return getattr(_noted, "masks", {}).get((id(self), stream))

    def _note(self, name: str, mask_of: Callable, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not hasattr(_noted, "masks"):
            _noted.masks = {}
        _noted.masks[id(self), name] = mask_of(args, kwargs)


@contextmanager
def token_mask(mask_B_T: torch.Tensor) -> Iterator[None]:
    """A context in which adapters of any model take this for the mask of real tokens (1 or true).

    For models that are no scorers of this package: their modules are called within it.
    """
    before: Any = getattr(_noted, "given", None)
    _noted.given = mask_B_T
    try:
        yield
    finally:
        _noted.given = before
