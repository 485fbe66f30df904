"""ReFT: interventions on the hidden states that modules give, at chosen positions, by forward hooks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from imagereward.adapters.base import Adapter
from imagereward.adapters.interventions import INTERVENTIONS, Intervention
from imagereward.adapters.places import check_rank, width_of
from imagereward.adapters.positions import check_allowed, parse_positions, selected
from imagereward.adapters.streams import TokenMasks
from imagereward.config import AdapterConfig
from imagereward.errors import InputError


class ReFT(Adapter):
    """h -> h + scale * delta(h) at the positions of the config, for every module of the config.

    widths  width of each module's output, in the order of `config.modules`
    """

    def __init__(self, config: AdapterConfig, widths: list[int]):
        super().__init__(config)
        self.positions = parse_positions(config.positions)
        kind = INTERVENTIONS[config.kind]
        groups = self.positions.groups[:1] if config.shared else self.positions.groups
        for width, path in zip(widths, config.modules, strict=True):
            check_rank(config.rank, width, path)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    group: kind(width, config.rank, config.activation, config.bias, config.dropout)
                    for group in groups
                }
            )
            for width in widths
        )
        self.subspaces: dict[str, float] | None = None
        self._hooks: dict[str, RemovableHandle] = {}  # by path; they do not keep the modules alive
        self._masks: TokenMasks | None = None
        self.requires_grad_(False)

    @classmethod
    def made_for(cls, model: nn.Module, config: AdapterConfig, masks: TokenMasks) -> "ReFT":
        """A new adapter with the widths of the model's modules.

        Raises InputError for positions that a module's stream does not allow, and for a rank above a width.
        """
        for path in config.modules:
            if (stream := masks.stream_of(path)) is not None:
                check_allowed(config.positions, masks.streams[stream].allows, path)
        widths = [width_of(model.get_submodule(p), p, masks, config.width) for p in config.modules]
        return cls(config, widths)

    def attach(self, model: nn.Module, masks: TokenMasks) -> None:
        self._masks = masks
        for path in self.config.modules:
            self._hook(model, path)

    def detach(self, model: nn.Module) -> None:
        super().detach(model)
        while self._hooks:
            self._hooks.popitem()[1].remove()

    def follow(self, model: nn.Module) -> None:
        """Hook the modules in the places of those that have left the model, as a LoRA's layers do."""
        present = {id(module._forward_hooks) for module in model.modules()}
        for path, handle in list(self._hooks.items()):
            if id(handle.hooks_dict_ref()) not in present:
                handle.remove()
                self._hook(model, path)

    def _hook(self, model: nn.Module, path: str) -> None:
        module, index = model.get_submodule(path), self.config.modules.index(path)
        own = next(module.parameters(), None)
        if own is not None and not own.is_meta:  # a model may be divided over devices
            self.layers[index].to(own.device)
        hook = partial(self._changed, index, path)
        self._hooks[path] = module.register_forward_hook(hook, with_kwargs=False)

    @contextmanager
    def using(self, **weights: float) -> Iterator[None]:
        """A context in which only these subspaces have an effect, each with its weight.

        Directions of two subspaces that overlap add their weights. InputError for an unknown name.
        """
        for name in weights:
            if name not in self.config.subspaces:
                known = ", ".join(self.config.subspaces) or "none"
                raise InputError(
                    f"the adapter {self.config.name!r} has no subspace {name!r}; it has: {known}"
                )
        before, self.subspaces = self.subspaces, dict(weights)
        try:
            yield
        finally:
            self.subspaces = before

    def _row_weights(self, like: torch.Tensor) -> torch.Tensor | None:
        if self.subspaces is None:
            return None
        weights = like.new_zeros(self.config.rank, dtype=torch.float32)
        for name, weight in self.subspaces.items():
            weights[list(self.config.subspaces[name])] += weight
        return weights

    def _changed(self, index: int, path: str, module: nn.Module, args: tuple, output: Any) -> Any:
        """The hook: the module's output with the deltas added at the selected positions."""
        self._ran.add(path)
        if not self.enabled:
            return None
        h = output[0] if isinstance(output, tuple) else output
        if not isinstance(h, torch.Tensor) or h.ndim not in (2, 3):
            raise InputError(
                f"modules: the output of {path} is no tensor [rows, tokens, width] or [rows, width]"
            )
        changed = self._with_deltas(index, path, h)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _with_deltas(self, index: int, path: str, h: torch.Tensor) -> torch.Tensor:
        interventions = cast(Mapping[str, Intervention], self.layers[index])
        weights = self._row_weights(h)
        deltas = {group: self.scale * each(h, weights) for group, each in cast(Any, interventions).items()}
        if h.ndim == 2:  # one state a row: no positions, so the first group's alone
            return (h + next(iter(deltas.values()))).to(h.dtype)
        assert self._masks is not None
        stream = self._masks.stream_of(path)
        mask = self._masks.mask(stream)
        if mask is None:
            mask = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        result = h
        for group, where in selected(self.positions, mask.to(h.device)).items():
            delta = deltas.get(group, next(iter(deltas.values())))
            if stream is not None and self._masks.streams[stream].continues:
                where = where[:, -h.shape[1] :]  # the tokens before passed earlier
            result = torch.where(_as_output(where, h, path)[..., None], (h + delta).to(h.dtype), result)
        return result


def _as_output(where_B_T: torch.Tensor, h: torch.Tensor, path: str) -> torch.Tensor:
    """The selection in the shape of an output whose rows are the mask's, of all tokens or of the first alone.

    The rows may be grouped: [B, T] as [B / k, k T].
    """
    rows, tokens = h.shape[:2]
    for kept in (where_B_T, where_B_T[:, :1]):
        if kept.shape[1] and kept.numel() == rows * tokens:
            return kept.reshape(rows, tokens)
    raise InputError(
        f"modules: the output of {path} is {tuple(h.shape)} where the prompts' tokens are "
        f"{tuple(where_B_T.shape)}; expected a state for each token"
    )
