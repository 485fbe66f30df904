"""RewardHead: linear layers on a hidden state, in float32, that give a score or its mean and deviation."""

import torch
from torch import nn

from imagereward.models.vlm.asking.settings import HeadConfig
from imagereward.precision import full_precision


class RewardHead(nn.Module):
    """Outputs float32 [R, C] from hidden states [R, width]; C is 1, or 2 for mean and log standard deviation.

    The layers are `layers.0`, `layers.3`, `layers.5` and so on: after the first linear layer come ReLU and
    dropout, after the others ReLU. These are the places of HPSv3's head (arXiv:2508.03789).
    """

    def __init__(self, width: int, config: HeadConfig):
        super().__init__()
        layers: list[nn.Module] = []
        for index, hidden in enumerate(config.hidden):
            layers += [nn.Linear(width, hidden, dtype=torch.float32), nn.ReLU()]
            if index == 0:
                layers.append(nn.Dropout(config.dropout))
            width = hidden
        layers.append(nn.Linear(width, config.outputs, bias=config.bias, dtype=torch.float32))
        self.layers = nn.Sequential(*layers)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def forward(self, hidden_R_D: torch.Tensor) -> torch.Tensor:
        """float32 [R, C], whatever the dtype of the hidden states, and under autocast too."""
        with torch.autocast(hidden_R_D.device.type, enabled=False):
            return self.layers(full_precision(hidden_R_D))
