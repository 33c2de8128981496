"""A byte-level language model of 120 k parameters on the sources of Python's standard library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from choosing.settings import Setting

CONTEXT = 64  # bytes
WIDTH, LAYERS, HEADS = 64, 2, 4
VOCABULARY = 128  # ASCII
FIRST = 1000  # steps at the constant rate before the checkpoints and the schedule begin
WARM_UP = 100  # steps in which the rate rises to the constant one
PIECES = 400  # of held-out text, each of CONTEXT + 1 bytes


class Block(nn.Module):
    """Causal attention and an MLP, LayerNorm before each. [N, T, WIDTH] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """With both residuals."""
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, WIDTH))
        return x + torch.as_tensor(self.down(gelu(self.up(self.norm2(x)))))


class BytesNet(nn.Module):
    """bytes: [N, T] int64, T at most CONTEXT -> logits of the next ones [N, T, VOCABULARY]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits."""
        x = self.embedding(seen) + self.position.weight[: seen.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def train(setting: Setting, seed: int) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """After FIRST steps every `setting.every`, the step and the state dict of the model: save it before going on.

    AdamW without weight decay, the gradient's norm held to 1. The seed is of the initial weights and the batches.
    """
    text = texts()[0]
    torch.manual_seed(seed)
    batches = torch.Generator().manual_seed(seed)
    model = BytesNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.rate, weight_decay=0.0)
    for step in range(1, setting.steps + 1):
        starts = torch.randint(len(text) - CONTEXT, (setting.batch,), generator=batches)
        loss = _losses(model, text[starts[:, None] + torch.arange(CONTEXT + 1)]).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = max(0.0, (step - 1 - FIRST) / (setting.steps - FIRST))
        optimizer.param_groups[0]["lr"] = setting.rate * min(1.0, step / WARM_UP) * setting.factor(done)
        optimizer.step()
        if step > FIRST and step % setting.every == 0:
            yield step, model.state_dict()


def losses(weights: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of each held-out piece, nats a byte. -> [PIECES]."""
    model = BytesNet()
    model.load_state_dict(weights)
    text = texts()[1]
    starts = torch.randint(len(text) - CONTEXT, (PIECES,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return _losses(model, text[starts[:, None] + torch.arange(CONTEXT + 1)]).mean(1)


def _losses(model: BytesNet, pieces: Tensor) -> Tensor:
    """[N, CONTEXT + 1] -> nats, [N, CONTEXT]."""
    return cross_entropy(model(pieces[:, :-1]).transpose(1, 2), pieces[:, 1:], reduction="none")


@cache
def texts() -> tuple[Tensor, Tensor]:
    """The text to train on, and that of every tenth module, held out; int64, a byte each."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = modules[::10]
    return _source([module for module in modules if module not in held_out]), _source(held_out)


def _source(modules: list[Path]) -> Tensor:
    text = "\n".join(module.read_text("ascii", "ignore") for module in modules)
    return torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8).long()
