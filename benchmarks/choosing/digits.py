"""The network of the sample run on scikit-learn's digits, trained as `sample_checkpoints/make.py` trains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from evaluate import logits_of
from make import SPLIT_SEED, TRAINING_IMAGES, digits, moved
from model import DigitsNet
from torch import Tensor
from torch.nn.functional import cross_entropy

from choosing.settings import Setting


def train(setting: Setting, seed: int) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Every `setting.every` steps, the step and the state dict, which is that of the model: save it before going on.

    The seed is of the initial weights and the batches. At the constant rate 0.1 and batches of 16 the weights are
    those of make.py with the same seed.
    """
    images, labels = digits()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))[:TRAINING_IMAGES]
    images, labels = images[chosen], labels[chosen]
    torch.manual_seed(seed)
    batches = torch.Generator().manual_seed(seed)
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.rate)
    for step in range(1, setting.steps + 1):
        batch = torch.randint(len(images), (setting.batch,), generator=batches)
        loss = cross_entropy(model(moved(images[batch], batches)), labels[batch].long())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.param_groups[0]["lr"] = setting.rate * setting.factor((step - 1) / setting.steps)
        optimizer.step()
        if step % setting.every == 0:
            yield step, model.state_dict()


def losses(weights: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of each held-out image, nats. -> [797]."""
    return cross_entropy(*logits_of(weights), reduction="none")
