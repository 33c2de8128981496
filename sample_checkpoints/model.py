"""The network of the sample run, shared by the maker and the evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 96


class DigitsNet(nn.Module):
    """Two hidden layers with LayerNorm on 8×8 images. images: [N, 8, 8] uint8 or float, 0 to 16 -> logits [N, 10].

    LayerNorm, not BatchNorm: it keeps no running statistics, which would have to be estimated again for
    averaged weights. The one buffer is an integer, as such runs have them: a count, which no average may touch.
    """

    images_seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(64, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.hidden2 = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """Logits; counts the images while training."""
        if self.training:
            self.images_seen += len(images)
        x = images.flatten(1).float() / 16
        x = torch.relu(self.norm1(self.hidden1(x)))
        x = torch.relu(self.norm2(self.hidden2(x)))
        logits: Tensor = self.head(x)
        return logits
