"""token_streams: where adapters may change a vision-language model, and where they do by default.

By default they change the last quarter of the language model's layers. The score is read at the last token,
whose states have seen image and prompt by then; a backward pass reaches no further down than the adapter, and
the image tower is left alone, so that images are encoded once.
"""

from typing import Any

import torch
from torch import nn

from imagereward.adapters.collection import Adapters
from imagereward.adapters.reft import ReFT
from imagereward.adapters.streams import TokenStream

LATE = 4  # one of so many layers, from the last, changes by default
TOWERS = ("visual", "vision_tower", "vision_model")
LANGUAGE = ("language_model", "text_model")
LINEAR_OF_TEXT = ("q_proj", "v_proj")
LINEAR_OF_IMAGES = ("fc1", "fc2", "up_proj", "down_proj")


def token_streams(model: Any, path: str, writes: bool) -> dict[str, TokenStream]:
    """The streams "text", "image" and "late", the last quarter of the layers of "text".

    model   an image-text-to-text model of transformers
    path    of `model.model` in the scorer
    writes  whether the model goes on from a row, token by token: its last tokens then are not known
    """
    inner = model.model
    language, tower = (_first(inner, names) for names in (LANGUAGE, TOWERS))
    layers = _layers(inner, language, path)
    late = layers[-max(1, len(layers) // LATE) :]
    prefixes, width = (f"{path}.{language}.",), model.config.get_text_config().hidden_size
    text = {"width": width, "linear": LINEAR_OF_TEXT, "sources": {path: real_tokens}, "continues": True}
    text["allows"] = "first" if writes else "any"
    vision = model.config.vision_config
    # Qwen's towers have the patches of all images in one axis, and its configs two widths.
    packed = hasattr(inner, "get_rope_index")
    return {
        "text": TokenStream(prefixes, layers, default=False, **text),
        "late": TokenStream(prefixes, late, **text),
        "image": TokenStream(
            (f"{path}.{tower}.",),
            _layers(inner, tower, path),
            getattr(vision, "embed_dim", None) or vision.hidden_size,
            LINEAR_OF_IMAGES,
            default=False,
            allows="all" if packed else "any",
        ),
    }


def image_prefixes(model: Any, path: str) -> tuple[str, ...]:
    """Beginnings of the names of the weights by which images are encoded: all but the language model's."""
    inner = model.model
    parts = [name for name, _ in inner.named_children() if name not in LANGUAGE]
    parts += [name for name, _ in inner.named_parameters(recurse=False)]
    return tuple(f"{path}.{name}" for name in parts)


def real_tokens(args: tuple, kwargs: dict) -> torch.Tensor:
    """The mask [B, T] of real tokens, those of earlier passes included."""
    return kwargs["attention_mask"]


def at_positions(adapters: Adapters, last: bool = False) -> bool:
    """Whether an adapter changes tokens by their positions in a row; `last`: by those of its last ones."""
    found = [each.positions for each in adapters.all if isinstance(each, ReFT) and each.enabled]
    return any(each.last or not last for each in found)


def _first(model: nn.Module, names: tuple[str, ...]) -> str:
    return next(name for name in names if hasattr(model, name))


def _layers(inner: nn.Module, part: str, path: str) -> tuple[str, ...]:
    """The paths of the layers of a part: the entries of its longest list of modules."""
    lists = [
        (name, module)
        for name, module in inner.get_submodule(part).named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    name, found = max(lists, key=lambda each: len(each[1]))
    return tuple(f"{path}.{part}.{name}.{index}" for index in range(len(found)))
