"""BLIP's text encoder: a BERT in which every layer can also attend to an image.

Parameter names are those of the released checkpoints. Three things make it fast without changing
a number: padded positions are never computed beyond the longest prompt at hand, an image's keys
and values are projected once for all the prompts it meets in a call, and the last layer computes only the
first token when nothing else is asked for.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from imagereward.config import whole_number
from imagereward.errors import InputError


@dataclass(frozen=True)
class TextShape:
    """The encoder's shape; the defaults are the released one (a BERT-base, 30,522 + 2 words)."""

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    dropout: float = 0.1
    eps: float = 1e-12

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "heads", "mlp_width", "max_positions"):
            whole_number(name, getattr(self, name), 1)
        if self.width % self.heads:
            raise InputError(f"width={self.width} cannot be split among heads={self.heads}")


class Attention(nn.Module):
    """Multi-head attention, output projection, residual and LayerNorm, in BERT's order."""

    def __init__(self, shape: TextShape, source_width: int):
        super().__init__()
        self.heads = shape.heads
        projections = {
            "query": nn.Linear(shape.width, shape.width),
            "key": nn.Linear(source_width, shape.width),
            "value": nn.Linear(source_width, shape.width),
        }
        self.add_module("self", nn.ModuleDict(projections))
        self.output = _output(shape.width, shape)

    def keys_values(self, source_B_N_W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the attended states: two tensors [B, heads, N, width / heads]."""
        project = self._projections()
        return self._split(project["key"](source_B_N_W)), self._split(project["value"](source_B_N_W))

    def forward(self, x_B_T_D, keys, values, mask_B_1_1_N=None, dropout: float = 0.0):
        query = self._split(self._projections()["query"](x_B_T_D))
        mixed = F.scaled_dot_product_attention(query, keys, values, mask_B_1_1_N, dropout)
        return _add_and_norm(self.output, mixed.transpose(1, 2).flatten(2), x_B_T_D, dropout)

    def _projections(self) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.get_submodule("self"))

    def _split(self, x_B_N_D: torch.Tensor) -> torch.Tensor:
        return x_B_N_D.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Self-attention, attention to the image where there is one, feed-forward."""

    def __init__(self, shape: TextShape, image_width: int):
        super().__init__()
        self.attention = Attention(shape, shape.width)
        self.crossattention = Attention(shape, image_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(shape.width, shape.mlp_width)})
        self.output = _output(shape.mlp_width, shape)

    def forward(self, x_P_T_D, mask_P_1_1_T, image_I_N_W, image_index, first_only: bool, dropout: float):
        keys_values = self.attention.keys_values(x_P_T_D)
        if first_only:
            x_P_T_D = x_P_T_D[:, :1]
        x_P_T_D = self.attention(x_P_T_D, *keys_values, mask_P_1_1_T, dropout)
        if image_I_N_W is not None:
            x_P_T_D = self._look(x_P_T_D, image_I_N_W, image_index, dropout)
        hidden = F.gelu(self.intermediate["dense"](x_P_T_D))
        return _add_and_norm(self.output, hidden, x_P_T_D, dropout)

    def _look(self, x_P_T_D, image_I_N_W, image_index_P, dropout: float):
        keys, values = self.crossattention.keys_values(image_I_N_W)
        if image_index_P is not None:
            return self.crossattention(x_P_T_D, keys[image_index_P], values[image_index_P], None, dropout)
        # Consecutive rows share an image: let all their tokens query it at once, copying nothing.
        rows = x_P_T_D.reshape(image_I_N_W.shape[0], -1, x_P_T_D.shape[-1])
        return self.crossattention(rows, keys, values, None, dropout).view_as(x_P_T_D)


class TextEncoder(nn.Module):
    """Prompts, alone or looking at images, to hidden states."""

    def __init__(self, shape: TextShape, image_width: int):
        super().__init__()
        self.dropout = shape.dropout
        self.grad_checkpointing = False
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(shape.vocab_size, shape.width, padding_idx=0),
                "position_embeddings": nn.Embedding(shape.max_positions, shape.width),
                "LayerNorm": nn.LayerNorm(shape.width, eps=shape.eps),
            }
        )
        layers = nn.ModuleList(Layer(shape, image_width) for _ in range(shape.depth))
        self.encoder = nn.ModuleDict({"layer": layers})

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, first to last."""
        return cast(nn.ModuleList, self.encoder["layer"])

    def forward(
        self,
        ids_P_T: torch.Tensor,
        mask_P_T: torch.Tensor,
        image_I_N_W: torch.Tensor | None = None,
        image_index_P: torch.Tensor | None = None,
        first_only: bool = False,
    ) -> torch.Tensor:
        """Hidden states [P, T, width] of the last layer, or [P, 1, width] with `first_only`.

        mask is 1 on tokens and 0 on padding. Row p attends to image `image_index[p]`; without an
        index P must be a multiple of I, and rows p belong to image `p // (P / I)`.
        """
        embed = self.embeddings
        positions = torch.arange(ids_P_T.shape[1], device=ids_P_T.device)
        x = embed["word_embeddings"](ids_P_T) + embed["position_embeddings"](positions)
        # An argument, not the layers' mode, so that recomputing them for the backward pass, which may
        # come after the mode has changed, repeats what the forward pass did.
        dropout = self.dropout if self.training else 0.0
        x = F.dropout(embed["LayerNorm"](x), dropout)
        mask = mask_P_T[:, None, None, :].bool()
        for depth, layer in enumerate(self.layers, 1):
            last = first_only and depth == len(self.layers)
            arguments = (x, mask, image_I_N_W, image_index_P, last, dropout)
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return x


def _output(width_in: int, shape: TextShape) -> nn.ModuleDict:
    norm = nn.LayerNorm(shape.width, eps=shape.eps)
    return nn.ModuleDict({"dense": nn.Linear(width_in, shape.width), "LayerNorm": norm})


def _add_and_norm(output: nn.ModuleDict, x, residual, dropout: float):
    return output["LayerNorm"](F.dropout(output["dense"](x), dropout) + residual)
