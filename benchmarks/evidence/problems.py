"""What is trained: three small networks, all seeds of one at once.

Every parameter has a first dimension of S seeds, and every operation works on the S networks side by side, so one
training of this kind is S independent trainings: other initial weights, other order of the data, other noise.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """One thing to learn.

    `begin(seeds)` gives the parameters, each [S, …]; `forward(parameters, inputs)` the logits [S, N, classes] for
    inputs [S, N, …]; `batches(seeds)` endless (inputs [S, B, …], labels [S, B]); `held_out`: inputs and labels of the
    validation and of the test set, [N, …] and [N] each. An epoch is the steps in which the data is seen once.
    """

    name: str
    title: str
    begin: Callable[[int], Parameters]
    forward: Callable[[Parameters, Tensor], Tensor]
    batches: Callable[[int], Iterator[Batch]]
    held_out: Callable[[], dict[str, Batch]]
    steps: int
    epoch: int
    seeds: int
    warmup: int  # steps in which the rate rises from zero, for every method
    rates: dict[str, tuple[float, ...]]


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of each network. [S, …, classes], [S, …] -> [S]."""
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(labels.shape[0], -1).mean(1)


@torch.no_grad()
def judge(problem: Problem, parameters: Parameters, which: str) -> tuple[Tensor, Tensor]:
    """Loss [S] and accuracy [S] on the validation or the test set."""
    inputs, labels = problem.held_out()[which]
    seeds = next(iter(parameters.values())).shape[0]
    found = []
    for part, wanted in zip(torch.split(inputs, 400), torch.split(labels, 400), strict=True):
        shape = (seeds, *part.shape)
        logits = problem.forward(parameters, part.expand(shape))
        target = wanted.expand(seeds, *wanted.shape)
        right = (logits.argmax(-1) == target).float().flatten(1).mean(1)
        found.append((losses(logits, target), right, len(part)))
    total = sum(n for *_, n in found)
    return (
        torch.stack([loss * n for loss, _, n in found]).sum(0) / total,
        torch.stack([right * n for _, right, n in found]).sum(0) / total,
    )


def _seeded(seeds: int, make: Callable[[torch.Generator], Parameters]) -> Parameters:
    made = [make(torch.Generator().manual_seed(1000 + seed)) for seed in range(seeds)]
    return {name: torch.stack([one[name] for one in made]) for name in made[0]}


def _linear(generator: torch.Generator, inputs: int, outputs: int, gain: float = 2.0) -> Tensor:
    return torch.randn(inputs, outputs, generator=generator) * math.sqrt(gain / inputs)


# ---- handwritten digits


@cache
def _digits() -> tuple[Tensor, Tensor, dict[str, Batch]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32) / 16
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    held = {"validation": (images[1000:1400], labels[1000:1400]), "test": (images[1400:], labels[1400:])}
    return images[:1000], labels[:1000], held


def _digit_batches(seeds: int, size: int, noise: float) -> Iterator[Batch]:
    images, labels, _ = _digits()
    generators = [torch.Generator().manual_seed(2000 + seed) for seed in range(seeds)]
    taught = []
    for generator in generators:
        wrong = torch.rand(len(labels), generator=generator) < noise
        taught.append(torch.where(wrong, torch.randint(0, 10, labels.shape, generator=generator), labels))
    targets = torch.stack(taught)
    while True:
        orders = torch.stack([torch.randperm(len(labels), generator=generator) for generator in generators])
        for chosen in torch.split(orders, size, dim=1):
            if chosen.shape[1] == size:
                yield images[chosen], targets.gather(1, chosen)


def _dense(generator: torch.Generator) -> Parameters:
    widths = (64, 64, 64, 10)
    made: Parameters = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        made[f"{i}.weight"] = _linear(generator, inputs, outputs)
        made[f"{i}.bias"] = torch.zeros(1, outputs)
    return made


def _dense_forward(p: Parameters, images: Tensor) -> Tensor:
    x = images.flatten(2) - 0.3
    for i in range(3):
        x = torch.baddbmm(p[f"{i}.bias"], x, p[f"{i}.weight"])
        x = torch.relu(x) if i < 2 else x
    return x


def _conv(generator: torch.Generator) -> Parameters:
    def kernel(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, 3, 3, generator=generator) * math.sqrt(2 / (9 * inputs))

    return {
        "0.weight": kernel(12, 1),
        "0.bias": torch.zeros(12),
        "1.weight": kernel(24, 12),
        "1.bias": torch.zeros(24),
        "2.weight": _linear(generator, 24 * 4, 10),
        "2.bias": torch.zeros(1, 10),
    }


def _conv_forward(p: Parameters, images: Tensor) -> Tensor:
    seeds, count = images.shape[:2]
    x = images.transpose(0, 1) - 0.3  # [N, S, 8, 8]: the networks are groups of channels
    for i in range(2):
        weight = p[f"{i}.weight"].flatten(0, 1)
        x = F.conv2d(x, weight, p[f"{i}.bias"].flatten(), padding=1, groups=seeds)
        x = F.max_pool2d(torch.relu(x), 2)
    flat = x.view(count, seeds, -1).transpose(0, 1)
    return torch.baddbmm(p["2.bias"], flat, p["2.weight"])


# ---- the source of the standard library, byte by byte

_CONTEXT, _WIDTH, _HEADS, _LAYERS = 64, 64, 4, 2


@cache
def _source() -> tuple[Tensor, Tensor, int]:
    """Training and held-out bytes, as indices of the bytes that occur, and how many of these there are."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(path.read_bytes() for path in files)[:3_000_000]
    found = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    used = torch.unique(found)
    found = torch.searchsorted(used, found)
    cut = len(found) * 9 // 10
    return found[:cut], found[cut:], len(used)


def _source_batches(seeds: int, size: int) -> Iterator[Batch]:
    train, *_ = _source()
    generators = [torch.Generator().manual_seed(3000 + seed) for seed in range(seeds)]
    window = torch.arange(_CONTEXT + 1)
    while True:
        starts = torch.stack([torch.randint(0, len(train) - _CONTEXT - 1, (size,), generator=g) for g in generators])
        found = train[starts[..., None] + window]
        yield found[..., :-1], found[..., 1:]


@cache
def _source_held_out() -> dict[str, Batch]:
    _, held, _ = _source()
    rows = held[: len(held) // (_CONTEXT + 1) * (_CONTEXT + 1)].view(-1, _CONTEXT + 1)
    picked = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:300]]
    parts = {"validation": picked[:100], "test": picked[100:]}
    return {name: (part[:, :-1], part[:, 1:]) for name, part in parts.items()}


def _transformer(generator: torch.Generator) -> Parameters:
    *_, symbols = _source()
    made = {
        "bytes": torch.randn(symbols, _WIDTH, generator=generator) * 0.1,
        "places": torch.randn(_CONTEXT, _WIDTH, generator=generator) * 0.1,
        "out": _linear(generator, _WIDTH, symbols, 1.0),
        "norm": torch.ones(1, _WIDTH),
    }
    for i in range(_LAYERS):
        made |= {
            f"{i}.norm": torch.ones(1, _WIDTH),
            f"{i}.attention": _linear(generator, _WIDTH, 3 * _WIDTH, 1.0),
            f"{i}.project": _linear(generator, _WIDTH, _WIDTH, 1.0 / _LAYERS),
            f"{i}.norm2": torch.ones(1, _WIDTH),
            f"{i}.up": _linear(generator, _WIDTH, 4 * _WIDTH),
            f"{i}.down": _linear(generator, 4 * _WIDTH, _WIDTH, 1.0 / _LAYERS),
        }
    return made


def _norm(x: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],)) * scale


def _transformer_forward(p: Parameters, tokens: Tensor) -> Tensor:
    seeds, count, length = tokens.shape
    symbols = p["bytes"].shape[1]
    offset = (torch.arange(seeds) * symbols).view(-1, 1, 1)
    x = F.embedding(tokens + offset, p["bytes"].flatten(0, 1)) + p["places"][:, None]
    x = x.reshape(seeds, count * length, _WIDTH)
    for i in range(_LAYERS):
        qkv = torch.bmm(_norm(x, p[f"{i}.norm"]), p[f"{i}.attention"])
        q, k, v = qkv.view(seeds * count, length, 3, _HEADS, _WIDTH // _HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + torch.bmm(mixed.transpose(1, 2).reshape(seeds, -1, _WIDTH), p[f"{i}.project"])
        x = x + torch.bmm(torch.relu(torch.bmm(_norm(x, p[f"{i}.norm2"]), p[f"{i}.up"])), p[f"{i}.down"])
    return torch.bmm(_norm(x, p["norm"]), p["out"]).view(seeds, count, length, symbols)


_SGD = tuple(2.0**i for i in range(-4, 4))
_ADAMW = tuple(0.001 * 2**i for i in range(8))


def _digit_problem(name: str, title: str, noise: float) -> Problem:
    return Problem(
        name,
        title,
        lambda seeds: _seeded(seeds, _dense),
        _dense_forward,
        lambda seeds: _digit_batches(seeds, 16, noise),
        lambda: _digits()[2],
        steps=2000,
        epoch=62,
        seeds=8,
        warmup=0,
        rates={"SGD": _SGD, "AdamW": _ADAMW},
    )


PROBLEMS = {
    one.name: one
    for one in (
        _digit_problem("digits", "handwritten digits, dense network", 0.0),
        _digit_problem("noisy", "handwritten digits, 20 % of the labels wrong, dense network", 0.2),
        Problem(
            "conv",
            "handwritten digits, 20 % of the labels wrong, convolutional network",
            lambda seeds: _seeded(seeds, _conv),
            _conv_forward,
            lambda seeds: _digit_batches(seeds, 16, 0.2),
            lambda: _digits()[2],
            steps=800,
            epoch=62,
            seeds=8,
            warmup=0,
            rates={"SGD": _SGD, "AdamW": _ADAMW},
        ),
        Problem(
            "bytes",
            "source code of the standard library, byte-level transformer",
            lambda seeds: _seeded(seeds, _transformer),
            _transformer_forward,
            lambda seeds: _source_batches(seeds, 8),
            _source_held_out,
            steps=500,
            epoch=100,
            seeds=5,
            warmup=50,
            rates={"AdamW": tuple(0.002 * 2**i for i in range(6))},
        ),
    )
}
