"""LoRA: low-rank updates of linear layers, by peft (Hu et al. 2021, arXiv:2106.09685)."""

import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from imagereward.adapters.base import Adapter
from imagereward.adapters.places import check_rank
from imagereward.adapters.streams import TokenMasks
from imagereward.config import AdapterConfig
from imagereward.errors import InputError, missing_extra
from imagereward.precision import full_precision

PARTS = ("lora_A", "lora_B")


class LoRA(Adapter):
    """W x becomes W x + scale * (alpha / rank) B A x, in every linear layer of the config.

    A and B are float32, or float64 on a model in float64. peft puts its own layers in the places of the
    linear ones; `detach` puts these back.
    """

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        self._layers: tuple[tuple[str, nn.Module], ...] = ()  # in a tuple: they belong to the model
        self._waiting: dict[str, RemovableHandle] = {}  # hooks on layers that have not run

    def attach(self, model: nn.Module, masks: TokenMasks) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise missing_extra("an adapter of kind 'lora'", "train", error) from error
        config = self.config
        if hasattr(nn.ModuleDict(), config.name):
            raise InputError(f"the adapter {config.name!r}: peft takes no such name; give another, name=")
        for path in config.modules:
            layer = model.get_submodule(path)
            check_rank(config.rank, min(int(layer.in_features), int(layer.out_features)), path)  # type: ignore[arg-type]
        learning = {id(value): value.requires_grad for value in model.parameters()}
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha or config.rank,
            lora_dropout=config.dropout,
            target_modules=f"({'|'.join(map(re.escape, config.modules))})",  # a list would match endings too
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are what is meant
            inject_adapter_in_model(lora, model, config.name)  # freezes everything else
        for value in model.parameters():
            value.requires_grad_(learning.get(id(value), False))
        self._layers = tuple((path, model.get_submodule(path)) for path in config.modules)
        for path, layer in self._layers:
            for part in PARTS:  # peft makes them in the base's precision, in which small steps would be lost
                weight = getattr(layer, part)[config.name].weight
                weight.data = full_precision(weight.data)
            if path not in self._ran:
                self._waiting[path] = layer.register_forward_pre_hook(partial(self._runs, path))
        self._activate()
        self._strength_changed()

    def detach(self, model: nn.Module) -> None:
        super().detach(model)
        while self._waiting:
            self._waiting.popitem()[1].remove()
        for path, layer in self._layers:
            learning = [(value, value.requires_grad) for value in layer.parameters()]
            layer.delete_adapter(self.config.name)  # type: ignore[operator]
            for value, learn in learning:  # peft lets the others learn
                value.requires_grad_(learn)
            if not layer.lora_A:
                parent, _, name = path.rpartition(".")
                model.get_submodule(parent).add_module(name, layer.base_layer)  # type: ignore[arg-type]
            else:
                _use_all(layer)
        self._layers = ()
        kept: dict = getattr(model, "peft_config", {})
        kept.pop(self.config.name, None)
        if not kept and hasattr(model, "peft_config"):
            del model.peft_config

    def _runs(self, path: str, *_: Any) -> None:
        """A hook for a layer's first call."""
        self._ran.add(path)
        if (hook := self._waiting.pop(path, None)) is not None:  # another thread may be here too
            hook.remove()

    def train(self, mode: bool = True) -> "LoRA":
        super().train(mode)
        for _, layer in self._layers:
            layer.lora_dropout.train(mode)  # type: ignore[union-attr, operator]
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.data for name, value in self._named()}

    def learned(self) -> list[nn.Parameter]:
        return [value for _, value in self._named()]

    def put_back(self, learned: list[nn.Parameter]) -> None:
        places = [(layer, part) for _, layer in self._layers for part in PARTS]
        for (layer, part), value in zip(places, learned, strict=True):
            getattr(layer, part)[self.config.name].weight = value

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, layer in self._layers:
            for part in PARTS:
                yield f"{path}.{part}.weight", getattr(layer, part)[self.config.name].weight

    def _activate(self) -> None:
        """peft computes with the adapters that are active in a layer: all of them, by their scales."""
        for _, layer in self._layers:
            _use_all(layer)

    def _strength_changed(self) -> None:
        for _, layer in self._layers:
            layer.set_scale(self.config.name, self.scale if self.enabled else 0.0)  # type: ignore[operator]


def _use_all(layer: nn.Module) -> None:
    """Activate all adapters of a layer, without a change to which of them learn."""
    learning = [(value, value.requires_grad) for value in layer.parameters()]
    layer.set_adapter(list(layer.lora_A))  # type: ignore[operator, arg-type]
    for value, learn in learning:
        value.requires_grad_(learn)
