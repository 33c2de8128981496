"""One training run: its checkpoints, their averages in every setting that shares the run, and the losses of these."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from belay_cli import Best, Rule, averages
from choosing import digits, text
from choosing.candidates import candidates, lag
from choosing.settings import BYTES, DIGITS, Setting

QUARTERS = 4
WAYS = list(combinations(range(QUARTERS), QUARTERS // 2))  # the quarters that choose; the other ones report
BEST_OF = (1, 3, 5)  # checkpoints
UNIT = 1e-4  # nats: losses are kept as whole numbers of it

Losses = Callable[[Mapping[str, Tensor]], Tensor]
_PROBLEMS = {"digits": (digits.train, digits.losses), "bytes": (text.train, text.losses)}


def judge(work: tuple[Setting, list[Setting], int]) -> tuple[int, dict[str, Any], float]:
    """A run, the settings that take checkpoints of it, and a seed -> the seed, results by setting, and seconds.

    A result has the mean lag of each candidate in steps, and its loss on each quarter of the held-out data in UNITs.
    `best` has the same of the mean of the N best checkpoints by each way to choose.
    """
    run, settings, seed = work
    began = time.perf_counter()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train, losses = _PROBLEMS[run.problem]

    def quarters(weights: Mapping[str, Tensor]) -> list[int]:
        each = losses(weights)
        order = torch.randperm(len(each), generator=torch.Generator().manual_seed(seed))
        size = len(each) // QUARTERS
        means = each[order[: size * QUARTERS]].view(QUARTERS, size).double().mean(1)
        return [min(round(float(mean) / UNIT), 10**6) for mean in means]

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for step, state in train(run, seed):
            paths[step] = Path(folder) / f"step-{step:05d}.safetensors"
            save_file(dict(state), paths[step], {"format": "pt", "step": str(step)})
        for setting in settings:
            ticks = [step for step in paths if (setting.steps - step) % setting.every == 0]  # to the last step
            series = [paths[step] for step in ticks]
            rules = candidates(ticks)
            found[setting.name] = {
                "checkpoints": len(ticks),
                "span": ticks[-1] - ticks[0],
                "lags": {label: round(lag(rule, ticks), 1) for label, rule in rules.items()},
                "losses": _judged(series, rules, quarters),
                "best": _best(series, quarters) if setting in (DIGITS, BYTES) or setting.schedule == "linear" else {},
            }
    return seed, found, time.perf_counter() - began


def _judged(series: Sequence[Path], rules: Mapping[str, Rule], quarters: Callable[..., list[int]]) -> dict[str, Any]:
    made = averages(series, list(rules.values()), at_once=len(rules))
    return {label: quarters(state) for label, (_, state) in zip(rules, made, strict=True)}


def _best(series: Sequence[Path], quarters: Callable[..., list[int]]) -> dict[str, Any]:
    seen = [quarters(load_file(path)) for path in series]
    rules: dict[str, Rule] = {}
    for way in WAYS:
        scores = tuple(float(sum(one[q] for q in way)) for one in seen)
        rules |= {f"{n} by {way[0]}{way[1]}": Best(best=n, scores=scores, mode="min") for n in BEST_OF}
    return _judged(series, rules, quarters)
