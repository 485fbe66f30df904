"""Adapters: the adapters of one model, by name; and `put_on`, for a model that is no scorer."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
from torch import nn

from imagereward.adapters.base import Adapter, find_modules
from imagereward.adapters.lora import LoRA
from imagereward.adapters.reft import ReFT
from imagereward.adapters.streams import TokenMasks, TokenStream
from imagereward.config import AdapterConfig
from imagereward.errors import InputError


class Adapters(nn.Module):
    """The adapters that are on a model, in the order in which they were added, which is that of their effect.

    `adapters["mine"]` is one of them; iterating gives their names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries = nn.ModuleList()
        self._masks: TokenMasks | None = None

    def __iter__(self) -> Iterator[str]:
        return iter([each.config.name for each in self.all])

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __getitem__(self, name: str) -> Adapter:
        for each in self.all:
            if each.config.name == name:
                return each
        raise InputError(f"no adapter {name!r} is on the model; there are: {', '.join(self) or 'none'}")

    @property
    def all(self) -> list[Adapter]:
        """The adapters."""
        return [each for each in self.entries if isinstance(each, Adapter)]

    @property
    def configs(self) -> tuple[AdapterConfig, ...]:
        """Their configs, with their present scales."""
        return tuple(replace(each.config, scale=each.scale) for each in self.all)

    def add(
        self,
        model: nn.Module,
        config: AdapterConfig,
        streams: Mapping[str, TokenStream],
        weights: Mapping[str, torch.Tensor] | None = None,
        seed: int = 0,
    ) -> Adapter:
        """Put a new adapter on the model, with these weights, or with initial ones by `seed`.

        streams  the model's; those marked so are the default of `config.modules`

        Raises InputError for a second adapter of one name, an unknown module, and a rank above the width.
        """
        if config.name in self:
            raise InputError(
                f"an adapter {config.name!r} is on the model already: give this one another name=, or "
                "remove_adapter() the other"
            )
        if self._masks is None:
            self._masks = TokenMasks(streams)
        adapter = made(model, config, self._masks, seed)
        self._masks.attach(model)
        self.entries.append(adapter)
        if getattr(model, "adapters", None) is self:
            del model.adapters  # registered again as the last, so that the model's first parameter is its own
            model.adapters = self
        try:
            if weights is not None:
                adapter.load_weights(weights)
        except Exception:
            self.remove(model, config.name)
            raise
        return adapter

    def remove(self, model: nn.Module, name: str) -> None:
        """Take an adapter off the model, which is then as before. InputError if it is not on it."""
        adapter = self[name]
        adapter.detach(model)
        self.entries = nn.ModuleList(each for each in self.all if each is not adapter)
        assert self._masks is not None
        for each in self.all:
            if isinstance(each, ReFT):  # its hooks may be on a layer that a LoRA took along
                each.detach(model)
                each.attach(model, self._masks)
        if not len(self):
            self._masks.detach()
            self._masks = None

    @contextmanager
    def taken_off(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model's own modules are all that is there, as for saving it."""
        # A LoRA's parameters live in the model, and go with its layers.
        kept = [
            (each, {name: value.clone() for name, value in each.weights().items()}, each.learned())
            for each in self.all
        ]
        learning = [any(value.requires_grad for value in learned) for _, _, learned in kept]
        for each, _, _ in reversed(kept):
            each.detach(model)
        try:
            yield
        finally:
            for (each, weights, _), learn in zip(kept, learning):
                assert self._masks is not None
                each.attach(model, self._masks)
                each.load_weights(weights)
                each.let_learn(learn)

    @contextmanager
    def using(self, *names: str, **scales: float) -> Iterator[None]:
        """A context in which only these adapters have an effect: `names` as they are, `scales` with a scale.

        `using()` switches all off. For all threads; afterwards every adapter is as before.
        """
        chosen = {name: self[name].scale for name in names} | scales
        for name in chosen:
            self[name]  # InputError before anything is changed
        before = [(each, each.enabled, each.scale) for each in self.all]
        try:
            for each, _, scale in before:
                each.enabled = each.config.name in chosen
                each.scale = chosen.get(each.config.name, scale)
            yield
        finally:
            for each, enabled, scale in before:
                each.enabled, each.scale = enabled, scale

    def digest_of(self, prefixes: tuple[str, ...]) -> bytes:
        """SHA-256 of the adapters with modules under one of the prefixes; b"" if there are none.

        They change what those modules compute: an image encoder's features, for example.
        """
        digest, found = hashlib.sha256(), False
        for each in self.all:
            if not touches(each.config, prefixes) or not each.enabled:
                continue
            found = True
            subspaces = getattr(each, "subspaces", None)
            digest.update(
                repr((asdict(replace(each.config, base="", weights={})), each.scale, subspaces)).encode()
            )
            for name, value in sorted(each.weights().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.digest() if found else b""


def touches(config: AdapterConfig, prefixes: tuple[str, ...]) -> bool:
    """Whether the adapter changes a module under one of the prefixes, or one that contains it."""
    return any(
        f"{path}.".startswith(prefix) or prefix.startswith(f"{path}.")
        for path in config.modules
        for prefix in prefixes
    )


def made(model: nn.Module, config: AdapterConfig, masks: TokenMasks, seed: int) -> Adapter:
    """A new adapter, put on the model; its initial weights depend on `seed` alone."""
    low_rank = config.kind == "lora"
    wanted = config.modules or tuple(name for name, each in masks.streams.items() if each.default)
    if not wanted:
        raise InputError(f"modules: {type(model).__name__} has no default; say which modules change")
    config = replace(config, modules=find_modules(model, wanted, masks.streams, low_rank))
    parameter = next(model.parameters(), torch.empty(0))
    precision = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter: Adapter = LoRA(config) if low_rank else ReFT.made_for(model, config, masks)
        adapter.to(parameter.device, precision).train(model.training)
        adapter.hosted_by(model)
        adapter.attach(model, masks)
    return adapter


def put_on(
    model: nn.Module,
    config: AdapterConfig,
    weights: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> Adapter:
    """Put an adapter on any torch model; `adapter.detach(model)` takes it off.

    Call the model within `token_mask(mask)` where rows are padded. The adapter's parameters are the
    adapter's, not the model's: give `adapter.learned()` to the optimizer after `adapter.let_learn()`.
    """
    adapter = made(model, config, TokenMasks({}), seed)
    if weights is not None:
        adapter.load_weights(weights)
    return adapter
