"""Make the sample run: train a small network on scikit-learn's digits and save 20 checkpoints.

    python sample_checkpoints/make.py

Writes run/step-0100.safetensors … run/step-2000.safetensors and held_out.pt beside this file. Plain SGD at a
constant learning rate. Every image is moved by up to one pixel, anew each time in training and once if held out:
the network cannot learn its images by heart, so the gradient noise never dies down, and that is the case that
averaging is for. Nothing else in this folder needs scikit-learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from model import DigitsNet
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

HERE = Path(__file__).resolve().parent

TRAINING_IMAGES = 1000  # of 1,797; the others are held out
SPLIT_SEED = 0  # the split stays the same whatever --seed is, so that runs are evaluated alike
LEARNING_RATE = 0.1
BATCH = 16
STEPS = 2000
EVERY = 100  # steps between checkpoints


def main() -> None:
    """Write held_out.pt and the run."""
    parser = argparse.ArgumentParser(description="Make the sample run.")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR", help="default: beside this file")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the batches; default 0")
    parser.add_argument("--checkpoints", type=int, default=STEPS // EVERY, metavar="N", help="only the first N")
    options = parser.parse_args()

    # One thread and deterministic kernels: every sum has one order, so a machine repeats the weights to the bit.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    images, labels = digits()
    split = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(images), generator=split)
    training, held_out = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    run = options.out / "run"
    run.mkdir(parents=True, exist_ok=True)
    torch.save({"images": moved(images[held_out], split), "labels": labels[held_out]}, options.out / "held_out.pt")
    for step, model in islice(train(images[training], labels[training], options.seed), options.checkpoints):
        save_file(model.state_dict(), run / f"step-{step:04d}.safetensors", {"format": "pt", "step": str(step)})


def digits() -> tuple[Tensor, Tensor]:
    """images: [1797, 8, 8] uint8, 0 to 16; labels: [1797] uint8."""
    data = load_digits()
    return torch.from_numpy(data.images).to(torch.uint8), torch.from_numpy(data.target).to(torch.uint8)


def train(images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[int, DigitsNet]]:
    """The model every EVERY steps, with the step. It is one model throughout: save it before going on."""
    torch.manual_seed(seed)  # the initial weights
    batches = torch.Generator().manual_seed(seed)
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(images), (BATCH,), generator=batches)
        loss = cross_entropy(model(moved(images[batch], batches)), labels[batch].long())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % EVERY == 0:
            yield step, model


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by −1, 0 or 1 pixels down and across, background behind it. [N, 8, 8] -> [N, 8, 8]."""
    count, size = len(images), images.shape[-1]
    wider = pad(images, (1, 1, 1, 1))
    top, left = torch.randint(3, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(size), left + torch.arange(size)
    return wider[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


if __name__ == "__main__":
    main()
