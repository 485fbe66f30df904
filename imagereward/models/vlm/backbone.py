"""Backbone: a transformers image-text-to-text model, with its images encoded apart from its texts.

Shapes: R rows (texts with images), T tokens of a text, D width of the language model, V its vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn

from imagereward.models.vlm.images import STANDS_FOR, stands_for
from imagereward.precision import full_precision


class EncodedImage(NamedTuple):
    """What the language model needs of an image.

    features   [T, D], or [tiles, T, D] where the model keeps the tiles apart
    deepstack  features [T, D] that are added inside the language model; () for most models
    text       what stands for the image in the text
    grid       patches in time, height and width [1, 3], for rotary positions; None for most models
    """

    features: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    text: str
    grid: torch.Tensor | None


class Row(NamedTuple):
    """A text with images.

    ids     the text's tokens
    images  indices of its images, in order
    """

    ids: list[int]
    images: tuple[int, ...]


class Block(NamedTuple):
    """Some tokens of a row: `ids`, their rotary positions [A, T] in A axes, and the images among them."""

    ids: list[int]
    positions: torch.Tensor
    images: tuple[int, ...]

    def cut(self, start: int, end: int | None = None) -> "Block":
        """The tokens from `start` to `end`, with the images: none may lie outside."""
        return Block(self.ids[start:end], self.positions[:, start:end], self.images)


class State(NamedTuple):
    """Keys and values of the tokens so far in R rows.

    cache  transformers' cache
    mask   int64 [R, T]: 0 for padding
    """

    cache: Any
    mask: torch.Tensor


class Backbone(nn.Module):
    """The model, and its processor.

    model      an image-text-to-text model of transformers
    processor  its processor, with a chat template
    positions  "model" or "sequential", see `JudgeConfig`
    """

    def __init__(self, model: Any, processor: Any, positions: str = "model"):
        super().__init__()
        self.model = model
        self.processor = processor
        self.positions = positions
        self.recompute = False  # layers' activations, in the backward pass

    @property
    def text_config(self) -> Any:
        """The config of the language model."""
        return self.model.config.get_text_config()

    @property
    def language_model(self) -> nn.Module:
        """The language model, without its head."""
        inner = self.model.model
        return inner.language_model if hasattr(inner, "language_model") else inner.text_model

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def image_tokens(self) -> set[int]:
        """The tokens in whose places image features stand."""
        config = self.model.config
        return {
            getattr(config, name) for name in ("image_token_id", "image_token_index") if hasattr(config, name)
        }

    def encode(self, batch: Mapping[str, list]) -> list[EncodedImage]:
        """The images of a batch of `VLMImages`. Those whose inputs have one shape are encoded together."""
        names = [name for name in batch if name != STANDS_FOR]
        items = [{name: batch[name][index] for name in names} for index in range(len(batch[STANDS_FOR]))]
        encoded: list[Any] = [None] * len(items)
        for indices in _alike(items):
            outputs = self._encode_alike([items[index] for index in indices])
            for index, (features, deepstack) in zip(indices, outputs, strict=True):
                text = stands_for(batch[STANDS_FOR][index])
                grid = items[index].get("image_grid_thw")
                encoded[index] = EncodedImage(features, deepstack, text, grid)
        return encoded

    def _encode_alike(self, items: list[dict[str, torch.Tensor]]):
        """(features, deepstack) of each image; the inputs' shapes agree beyond the first axis."""
        inputs = {name: torch.cat([item[name] for item in items]) for name in items[0]}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with self._recomputing():
            out = self.model.get_image_features(**inputs, return_dict=True)
        features = out.pooler_output
        if isinstance(features, torch.Tensor):
            features = features.split([len(item["pixel_values"]) for item in items])
        layers = getattr(out, "deepstack_features", None) or ()
        stacked = [layer if isinstance(layer, (list, tuple)) else (layer,) for layer in layers]
        return [(each, tuple(layer[index] for layer in stacked)) for index, each in enumerate(features)]

    def blocks(self, rows: Sequence[Row], images: Sequence[EncodedImage]) -> list[Block]:
        """The whole rows as blocks; rows of equal tokens and image sizes share their rotary positions."""
        found: dict[tuple, Block] = {}
        keys = []
        for row in rows:
            grids = [images[index].grid for index in row.images]
            sizes = [None if grid is None else tuple(grid.flatten().tolist()) for grid in grids]
            keys.append((tuple(row.ids), *sizes))
            if keys[-1] not in found:
                found[keys[-1]] = self._block(row, images)
        return [found[key]._replace(images=row.images) for key, row in zip(keys, rows, strict=True)]

    def _block(self, row: Row, images: Sequence[EncodedImage]) -> Block:
        length = len(row.ids)
        if self.positions == "sequential" or not hasattr(self.model.model, "get_rope_index"):
            axes = 3 if hasattr(self.model.model, "get_rope_index") else 1
            return Block(row.ids, torch.arange(length).expand(axes, length), row.images)
        grids = [images[index].grid for index in row.images]
        positions, _ = self.model.model.get_rope_index(
            input_ids=torch.tensor([row.ids]),
            mm_token_type_ids=torch.tensor(self.processor.create_mm_token_type_ids([row.ids])),
            image_grid_thw=torch.cat([grid.cpu() for grid in grids if grid is not None]),
        )
        return Block(row.ids, positions[:, 0], row.images)

    def extend(
        self,
        state: State | None,
        blocks: Sequence[Block],
        images: Sequence[EncodedImage],
        keep: bool = False,
        recompute: bool = True,
    ) -> tuple[torch.Tensor, State | None]:
        """The last hidden state [R, D] after each block, and the state for what follows.

        state   of the tokens before, in as many rows; None: nothing is before
        blocks  the tokens that follow; shorter ones are padded on the left
        keep    whether the state is needed
        recompute  False: layers keep their activations, whatever `set_recompute` said
        """
        device, width = self.device, max(len(block.ids) for block in blocks)
        padding = self.processor.tokenizer.pad_token_id or 0
        ids = torch.full((len(blocks), width), padding)
        mask = torch.zeros_like(ids)
        positions = torch.zeros(len(blocks[0].positions), len(blocks), width, dtype=torch.long)
        for index, block in enumerate(blocks):
            start = width - len(block.ids)
            ids[index, start:] = torch.tensor(block.ids)
            mask[index, start:] = 1
            positions[:, index, start:] = block.positions
        mask = mask.to(device)
        full = mask if state is None else torch.cat([state.mask, mask], 1)
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": full,
            "position_ids": (positions if len(positions) == 3 else positions[0]).to(device),
            "use_cache": keep or state is not None,
        }
        cache = state.cache if state is not None else self._new_cache() if keep else None
        if cache is not None:
            inputs["cache"] = cache
        if used := [images[place] for block in blocks for place in block.images]:
            inputs["mm_encoder_outputs"] = {"image": self._image_outputs(used)}
            if "token_type_ids" in signature(self.model.model.forward).parameters:  # Gemma's
                types = self.processor.create_mm_token_type_ids(ids.tolist())
                inputs["token_type_ids"] = torch.tensor(types, device=device) * mask
        with self._recomputing() if recompute else nullcontext():
            out = self.model.model(**inputs)
        return out.last_hidden_state[:, -1], State(cache, full) if keep else None

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """A context in which layers keep no activations, if `recompute` is on and gradients are.

        transformers recomputes only layers that are in training mode; what is inside them stays as it is.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [each for each in self.model.modules() if isinstance(each, GradientCheckpointingLayer)]
        changed = [
            each for each in layers if self.recompute and torch.is_grad_enabled() and not each.training
        ]
        for each in changed:
            each.training = True
        try:
            yield
        finally:
            for each in changed:
                each.training = False

    def set_recompute(self, enable: bool) -> None:
        """Let layers recompute their activations in the backward pass, or keep them."""
        self.recompute = enable
        if enable:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.activation_checkpointing_disable()

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.text_config)

    def _image_outputs(self, images: list[EncodedImage]) -> Any:
        """The images as `get_image_features` gives them."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        features = [image.features for image in images]
        outputs = BaseModelOutputWithPooling(
            pooler_output=torch.cat(features) if features[0].ndim == 3 else features  # type: ignore[arg-type]
        )
        if images[0].deepstack:
            outputs["deepstack_features"] = [
                list(layer) for layer in zip(*(image.deepstack for image in images))
            ]
        return outputs

    def logits(self, hidden_R_D: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] of the next token, float32 or float64."""
        logits = full_precision(self.model.get_output_embeddings()(hidden_R_D))
        if (cap := getattr(self.text_config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits


def _alike(items: Sequence[Mapping[str, torch.Tensor]]) -> list[list[int]]:
    """Indices of items whose tensors agree in shape beyond the first axis, in groups."""
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(tuple((name, value.shape[1:]) for name, value in item.items()), []).append(index)
    return list(groups.values())
