"""The six ReFT interventions: what is added to a hidden state h [..., d] by a few directions, rank r of them.

LoReFT, DiReFT and NodiReFT: Wu et al., "ReFT: Representation Finetuning for Language Models", 2024
(arXiv:2404.03592). NoReFT, ConsReFT and LobiReFT are variants of the public library that belongs to it. Rows
of R are orthonormal; those of W2 are free.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from imagereward.precision import full_precision

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class OrthonormalRows(nn.Module):
    """Parametrization of a matrix [r, d], r <= d, whose rows stay orthonormal: the Q of a QR decomposition.

    torch's own `orthogonal` keeps a second matrix [d, d] for each, or encodes signs in entries that weight
    decay turns to 0, and the rows with them. This one does not depend on the scale of what is learned.
    """

    def forward(self, free_r_d: torch.Tensor) -> torch.Tensor:
        """The orthonormal rows, in float32, or float64 for float64."""
        with torch.autocast(free_r_d.device.type, enabled=False):
            q, r = torch.linalg.qr(full_precision(free_r_d).mT)
            signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
            return (q * signs).mT

    def right_inverse(self, rows_r_d: torch.Tensor) -> torch.Tensor:
        """What `forward` maps to these rows, if they are orthonormal: they themselves."""
        return rows_r_d


class Intervention(nn.Module):
    """Base of the six: h -> delta, with delta = up^T low(h); `low` [..., r] is what a subclass defines.

    width       d, of the hidden state
    rank        r, number of directions, at most d
    activation  of `ACTIVATIONS`
    bias        whether `W h + b` has its b
    dropout     share of the delta's entries set to 0 in training, 0 to 1

    A new intervention's delta is 0 for every h, with two exceptions: ConsReFT (R^T (b - R h) is 0 for every h
    with no b), and LoReFT and NoReFT with an activation other than "none".
    """

    orthonormal = True

    def __init__(self, width: int, rank: int, activation: str, bias: bool, dropout: float):
        super().__init__()
        self.up = nn.Linear(width, rank, bias=False)
        nn.init.orthogonal_(self.up.weight)
        if self.orthonormal:
            parametrize.register_parametrization(self.up, "weight", OrthonormalRows())
        self.act = ACTIVATIONS[activation]
        self.dropout = dropout
        self._learned(width, rank, bias)

    def _learned(self, width: int, rank: int, bias: bool) -> None:
        self.source = nn.Linear(width, rank, bias=bias)
        nn.init.zeros_(self.source.weight)
        if bias:
            nn.init.zeros_(self.source.bias)

    def low(self, h: torch.Tensor, up_r_d: torch.Tensor) -> torch.Tensor:
        """Coordinates [..., r] of the delta along the rows of `up_r_d`."""
        raise NotImplementedError

    def forward(self, h: torch.Tensor, weights_r: torch.Tensor | None = None) -> torch.Tensor:
        """The delta of hidden states [..., d], in float32 or better.

        weights_r  weight of each direction, to use some rows alone (subspaces); default: 1
        """
        with torch.autocast(h.device.type, enabled=False):
            up = full_precision(self.up.weight)
            h = h.to(torch.promote_types(full_precision(h).dtype, up.dtype))
            up = up.to(h.dtype)
            low = self.low(h, up)
            if weights_r is not None:
                low = low * weights_r.to(low)
            return F.dropout(low @ up, self.dropout, self.training)

    def _sourced(self, h: torch.Tensor) -> torch.Tensor:
        bias = self.source.bias
        return self.act(
            F.linear(h, self.source.weight.to(h.dtype), None if bias is None else bias.to(h.dtype))
        )


class LoReFT(Intervention):
    """R^T (act(W h + b) - R h)."""

    def _learned(self, width: int, rank: int, bias: bool) -> None:
        super()._learned(width, rank, bias)
        with torch.no_grad():
            self.source.weight.copy_(self.up.weight)  # so that the delta is 0 at the start

    def low(self, h, up_r_d):
        return self._sourced(h) - F.linear(h, up_r_d)


class NoReFT(LoReFT):
    """W2^T (act(W1 h + b) - W2 h)."""

    orthonormal = False


class DiReFT(Intervention):
    """R^T act(W h + b)."""

    def low(self, h, up_r_d):
        return self._sourced(h)


class NodiReFT(DiReFT):
    """W2^T act(W1 h + b)."""

    orthonormal = False


class LobiReFT(Intervention):
    """R^T b."""

    def _learned(self, width: int, rank: int, bias: bool) -> None:
        self.bias = nn.Parameter(torch.zeros(rank))

    def low(self, h, up_r_d):
        return self.bias.to(h.dtype).expand(*h.shape[:-1], -1)


class ConsReFT(LobiReFT):
    """R^T (b - R h)."""

    def low(self, h, up_r_d):
        return self.bias.to(h.dtype) - F.linear(h, up_r_d)


INTERVENTIONS: dict[str, type[Intervention]] = {
    each.__name__.lower(): each for each in (LoReFT, NoReFT, ConsReFT, LobiReFT, DiReFT, NodiReFT)
}
