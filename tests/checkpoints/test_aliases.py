"""Tied weights: one tensor with several names, which options may treat apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import Ran


def tied(value: int) -> dict[str, torch.Tensor]:
    embedding = torch.full((4, 3), float(value))
    return {"embed.weight": embedding, "lm_head.weight": embedding, "bias": torch.full((2,), float(value))}


def averaged(belay: Callable[..., Any], *options: str) -> dict[str, int]:
    for step in (100, 200, 300):
        torch.save(tied(step), f"step_{step}.pt")
    paths = [f"step_{step}.pt" for step in (100, 200, 300)]
    ran = belay("average", *paths, "--unit", "checkpoint", "--half-life", "1000", "-o", "o.safetensors", *options)
    assert ran.code == 0, ran.err
    assert belay("verify", "o.safetensors", *(word for p in paths for word in ("--checkpoints", p))).code == 0
    return {name: round(float(value.flatten()[0])) for name, value in load_file("o.safetensors").items()}


MEAN = 150  # nearly: a half-life that long weighs the ends half


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"embed.weight": MEAN, "bias": MEAN}),
        (["--drop", "embed.weight"], {"lm_head.weight": MEAN, "bias": MEAN}),
        (["--drop", "lm_head.weight"], {"embed.weight": MEAN, "bias": MEAN}),
        (["--drop", "*weight"], {"bias": MEAN}),
        (["--last", "lm_head.weight"], {"embed.weight": MEAN, "lm_head.weight": 300, "bias": MEAN}),
        (["--last", "embed.weight"], {"embed.weight": 300, "lm_head.weight": MEAN, "bias": MEAN}),
        (["--average", "lm_head.weight"], {"embed.weight": 300, "lm_head.weight": MEAN, "bias": 300}),
    ],
)
def test_each_name_has_the_policy_that_it_is_given(
    belay: Callable[..., Ran], options: list[str], expected: dict[str, int]
) -> None:
    found = averaged(belay, *options)
    base = averaged(belay, "--overwrite")["bias"]
    assert found == {name: base if value == MEAN else value for name, value in expected.items()}


def test_a_name_that_stays_tied_is_an_alias(belay: Callable[..., Ran]) -> None:
    averaged(belay)
    with safe_open("o.safetensors", "pt") as file:
        assert file.metadata()["lm_head.weight"] == "embed.weight"


def test_tied_in_one_checkpoint_and_not_in_the_next(belay: Callable[..., Ran]) -> None:
    torch.save(tied(100), "step_100.pt")
    torch.save(tied(200) | {"lm_head.weight": torch.full((4, 3), 7.0)}, "step_200.pt")
    ran = belay("average", "step_100.pt", "step_200.pt", "--unit", "checkpoint", "-o", "o.safetensors")
    assert ran.code == 0
    found = load_file("o.safetensors")
    assert {name: float(value.flatten()[0]) for name, value in found.items()} == {
        "embed.weight": 150,
        "lm_head.weight": 53.5,
        "bias": 150,
    }
    inputs = ("--checkpoints", "step_100.pt", "--checkpoints", "step_200.pt")
    assert belay("verify", "o.safetensors", *inputs).code == 0


def test_an_option_that_speaks_of_nothing(belay: Callable[..., Ran]) -> None:
    torch.save(tied(1), "step_1.pt")
    ran = belay("plan", "step_1.pt", "--drop", "head")
    assert ran.code == 2
    assert "--drop 'head' matches no tensor" in ran.err
    assert not Path("o.safetensors").exists()
