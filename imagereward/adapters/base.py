"""Adapter: what ReFT and LoRA have in common."""

import hashlib
import os
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from imagereward.adapters.files import Upload, save_adapter, weights_hashes
from imagereward.adapters.streams import TokenMasks
from imagereward.config import AdapterConfig
from imagereward.errors import AdapterUnusedWarning, CheckpointError, InputError, listing
from imagereward.uploading import push


class _Host:
    """A reference to the model that an adapter is on; a copy's adapter is on the copy."""

    def __init__(self, model: nn.Module):
        self.model = weakref.ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Host":
        model = self.model()
        return self if model is None else _Host(memo.get(id(model), model))


class Adapter(nn.Module):
    """A change to a model that can be switched off, scaled and taken off. `ReFT` and `LoRA` are the two.

    config   its settings, with the paths of its modules
    enabled  whether it has an effect
    scale    the delta is multiplied by it
    streams  name of the stream of tokens ("text", "image") that each module is in; None: of no known one
    beneath  {name: the adapter, or its `digest` when it was taken off} of those that were on the model, and
             enabled, when this one was added as a new one: it learns what they leave

    Its parameters are frozen until `let_learn`.
    """

    def __init__(self, config: AdapterConfig):
        super().__init__()
        self.config = config
        self._enabled, self._scale = True, float(config.scale)
        self.streams: tuple[str | None, ...] = ()
        self.label = ""  # at the end of the scorer's name, such as "+my-taste"
        self.beneath: dict[str, Adapter | str] = {}
        self._host: _Host | None = None
        self._ran: set[str] = set()
        self._of_file = ""  # the digest of the weights that a file had, until they change
        self._directory: Path | None = None
        self._watch: RemovableHandle | None = None

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
        self._host = _Host(model)

    def attach(self, model: nn.Module, masks: TokenMasks) -> None:
        """Put the adapter on a model whose modules its config names."""
        raise NotImplementedError

    def detach(self, model: nn.Module) -> None:
        """Take it off the model, which is then as before."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def put_back(self, learned: list[nn.Parameter]) -> None:
        """After `detach` and `attach`: have the earlier parameters again, which an optimizer may hold.

        Nothing to do for an adapter that owns its parameters, as all but LoRA do.
        """

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
        self._of_file = ""

    def read_from(self, weights: Mapping[str, torch.Tensor], directory: Path | None = None) -> None:
        """`load_weights` of a saved adapter, which keeps its `digest` in a model of another number format.

        directory  that it was read from; `push_to_hub` uploads the card that lies there
        """
        self.load_weights(weights)
        self._of_file = self._digest(weights)
        self._directory = directory

    def digest(self) -> str:
        """SHA-256 of its weights and of the settings that decide its effect; of neither name nor scale."""
        return self._of_file or self._digest(self.weights())

    def _digest(self, weights: Mapping[str, torch.Tensor]) -> str:
        plain = replace(self.config, name="default", scale=1.0, base="", weights={}, beneath={})
        digest = hashlib.sha256(repr(asdict(plain)).encode())
        for name, value in sorted(weights.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def learned(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return list(self.parameters())

    def let_learn(self, learn: bool = True) -> None:
        """Let gradients reach its parameters, or freeze them."""
        if learn:
            self._of_file = ""
        for parameter in self.learned():
            parameter.requires_grad_(learn)

    @property
    def never_ran(self) -> tuple[str, ...]:
        """Paths of the modules that no forward pass has called since the adapter was put on."""
        return tuple(path for path in self.config.modules if path not in self._ran)

    def check_ran(self, except_under: tuple[str, ...] = ()) -> None:
        """Raises InputError, naming the modules that no forward pass has called: it changes nothing there.

        To be called after a whole forward pass of the model.

        except_under  beginnings of paths of modules that had nothing to do in it
        """
        idle = [path for path in self.never_ran if not f"{path}.".startswith(except_under)]
        if idle:
            raise InputError(
                f"modules: the model did not call {listing(idle)}, so the adapter {self.config.name!r} "
                "changes nothing there: name modules that the model calls when it runs, such as its layers"
            )

    def watch(self, model: nn.Module) -> None:
        """Look after the model's forward passes whether they called the adapter's modules; see `put_on`."""
        self._watch = model.register_forward_hook(self._after_pass)

    def _after_pass(self, *_: Any) -> None:
        idle = self.never_ran
        if len(idle) == len(self.config.modules):
            if self.enabled:
                self.check_ran()
            return
        if self._watch is not None:
            self._watch.remove()
        if idle:
            warnings.warn(
                f"the adapter {self.config.name!r} changed nothing at {listing(idle)}: the model's forward "
                "pass did not call them",
                AdapterUnusedWarning,
                stacklevel=2,
            )

    def described(self) -> AdapterConfig:
        """The config with the present scale, the base's name and hashes, and the digests of the adapters that
        were on it: what is saved.
        """
        host = None if self._host is None else self._host.model()
        if host is None:
            raise InputError(
                f"the model that the adapter {self.config.name!r} is on is gone, whose hash belongs into "
                "the file: call hosted_by(model) with the model, or save before"
            )
        base = self.config.base or getattr(host, "name", type(host).__name__)
        beneath = {
            name: each if isinstance(each, str) else each.digest() for name, each in self.beneath.items()
        }
        return replace(
            self.config,
            scale=self.scale,
            base=str(base),
            weights=weights_hashes(host),
            beneath=self.config.beneath | beneath,
        )

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write `config.json` and `adapter.safetensors`, which `load(..., adapter=directory)` reads."""
        self._directory = save_adapter(self.described(), self.weights(), directory)
        return self._directory

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = ""
    ) -> str:
        """Upload the files of `save_pretrained` to a hub repository, created if missing; returns its URL.

        If the adapter was saved to a directory, or read from one, with the weights that it has now, the card
        and the summary that lie there go along; the card then loads the adapter from the repository.
        """
        config, weights = self.described(), self.weights()
        text = message or f"{config.name}, an adapter for {config.base}, saved by imagereward"
        return push(Upload(config, weights, self._directory, repo_id), repo_id, private, token, text)
