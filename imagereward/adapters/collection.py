"""Adapters: the adapters of one model, by name; and `put_on`, for a model that is no scorer."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from imagereward.adapters.base import Adapter
from imagereward.adapters.lora import LoRA
from imagereward.adapters.places import find_modules
from imagereward.adapters.reft import ReFT
from imagereward.adapters.streams import TokenMasks, TokenStream
from imagereward.config import AdapterConfig
from imagereward.errors import CheckpointError, InputError, listing


class Adapters(nn.Module):
    """The adapters that are on a model, in the order in which they were added, which is that of their effect.

    `adapters["mine"]` is one of them; iterating gives their names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries = nn.ModuleList()
        self._masks: TokenMasks | None = None
        # {beginning of the paths of modules: the scorers that use these modules too}
        self.shared: dict[str, str] = {}

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
        directory: Path | None = None,
    ) -> Adapter:
        """Put an adapter on the model, with these saved weights, or a new one with initial ones by `seed`.

        streams    the model's; those marked so are the default of `config.modules`
        directory  that the weights were read from

        Raises InputError for a second adapter of one name, an unknown module, a module whose output other
        scorers share, a rank above the width, and a compiled model.
        """
        if config.name in self:
            raise InputError(
                f"an adapter {config.name!r} is on the model already: give this one another name=, or "
                "remove_adapter() the other"
            )
        if self._masks is None:
            self._masks = TokenMasks(streams)
        config = with_modules(model, config, self._masks)
        self._check_unshared(config)
        adapter = made(model, config, self._masks, seed)
        if not config.weights:  # a saved one has what it was saved with
            adapter.beneath = {each.config.name: each for each in self.all if each.enabled}
        self._masks.attach(model)
        self.entries.append(adapter)
        if getattr(model, "adapters", None) is self:
            del model.adapters  # registered again as the last, so that the model's first parameter is its own
            model.adapters = self
        try:
            if weights is not None:
                adapter.read_from(weights, directory)
        except Exception:
            self.remove(model, config.name)
            raise
        return adapter

    def remove(self, model: nn.Module, name: str) -> None:
        """Take an adapter off the model, which is then as before. InputError if it is not on it."""
        adapter = self[name]
        for each in self.all:
            if each.beneath.get(name) is adapter:
                each.beneath[name] = adapter.digest()
        adapter.detach(model)
        self.entries = nn.ModuleList(each for each in self.all if each is not adapter)
        for each in self.all:
            if isinstance(each, ReFT):
                each.follow(model)
        if not len(self) and self._masks is not None:
            self._masks.detach()
            self._masks = None

    def _check_unshared(self, config: AdapterConfig) -> None:
        for prefix, others in self.shared.items():
            if touches(config, (prefix,)):
                raise InputError(
                    f"the adapter {config.name!r} would change the scores of {others} too, which shares "
                    f"{prefix.rstrip('.')} in an ensemble: give the ensemble this component as NAME+ADAPTER, "
                    "or already loaded, which then shares nothing"
                )

    def check_beneath(self, config: AdapterConfig, source: str) -> None:
        """Raises CheckpointError unless the adapters are on that the one of `source` was made on top of."""
        on = {each.digest() for each in self.all if each.enabled}
        missing = [name for name, digest in config.beneath.items() if digest not in on]
        if missing:
            raise CheckpointError(
                f"{source} was made for {config.base} with other adapters on it, of which these are not on, "
                f"or have other weights: {listing(missing)}. Put them on first"
            )

    def check_uncompiled(self) -> None:
        """Raises InputError if there are adapters, before the model is compiled."""
        if len(self):
            raise InputError(
                f"the adapters {', '.join(self)} are on the model, and a compiled model would not see that "
                "one is taken off: do without compile, or remove them before"
            )

    def check_on(self) -> None:
        """Raises InputError for an adapter that is off, before the model is saved with all of them."""
        if off := [name for name in self if not self[name].enabled]:
            raise InputError(f"the adapters {listing(off)} are off, which no file says: save it with them on")

    def check_ran(self, except_under: tuple[str, ...] = ()) -> None:
        """`Adapter.check_ran` of each."""
        for each in self.all:
            each.check_ran(except_under)

    @contextmanager
    def taken_off(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model's own modules are all that is there, as for saving it."""
        kept = [(each, each.learned()) for each in self.all]  # a LoRA's parameters live in the model's layers
        for each, _ in reversed(kept):
            each.detach(model)
        try:
            yield
        finally:
            for each, learned in kept:
                assert self._masks is not None
                each.attach(model, self._masks)
                each.put_back(learned)
                each.train(each.training)

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


def with_modules(model: nn.Module, config: AdapterConfig, masks: TokenMasks) -> AdapterConfig:
    """The config with the full paths of its modules, or of the model's default ones."""
    wanted = config.modules or tuple(name for name, each in masks.streams.items() if each.default)
    if not wanted:
        raise InputError(f"modules: {type(model).__name__} has no default; say which modules change")
    return replace(config, modules=find_modules(model, wanted, masks.streams, config.kind == "lora"))


def check_free(model: nn.Module, name: str) -> None:
    """Raises InputError for a model with an adapter of this name, and for one that is compiled."""
    for module in model.modules():
        hooked = [getattr(hook, "func", None) for hook in module._forward_hooks.values()]
        owners = [getattr(function, "__self__", None) for function in hooked]
        names = [each.config.name for each in owners if isinstance(each, Adapter)]
        if isinstance(low_rank := getattr(module, "lora_A", None), nn.ModuleDict):
            names += low_rank
        if name in names:
            raise InputError(
                f"an adapter {name!r} is on the model already: give this one another name=, or take the "
                "other off"
            )
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            raise InputError(
                f"the adapter {name!r}: the model is compiled, and would not see it; expected one that is "
                "loaded without compile"
            )


def made(model: nn.Module, config: AdapterConfig, masks: TokenMasks, seed: int) -> Adapter:
    """A new adapter, put on the model; its initial weights depend on `seed` alone.

    config  with full paths of modules
    """
    check_free(model, config.name)
    low_rank = config.kind == "lora"
    parameter = next(model.parameters(), torch.empty(0))
    precision = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter: Adapter = LoRA(config) if low_rank else ReFT.made_for(model, config, masks)
        adapter.streams = tuple(masks.stream_of(path) for path in config.modules)
        adapter.to(parameter.device, precision)
        adapter.hosted_by(model)
        adapter.attach(model, masks)
        adapter.train(model.training)  # after `attach`, which makes LoRA's dropout layers
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

    A forward pass of the model that calls none of the adapter's modules raises InputError, unless the adapter
    is switched off; the first that calls some warns of the others (AdapterUnusedWarning). Raises InputError
    for a second adapter of one name, an unknown module, a rank above the width, and a compiled model.
    """
    masks = TokenMasks({})
    adapter = made(model, with_modules(model, config, masks), masks, seed)
    if weights is not None:
        adapter.read_from(weights)
    adapter.watch(model)
    return adapter
