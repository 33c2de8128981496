"""What is tried: lists of values, a grid by default, its edges, and the halving around the best."""

from __future__ import annotations

from typing import Any

import pytest

from belay_cli.errors import UsageError
from belay_cli.sweeping.grid import Candidate, Grid, at_edges, candidate, refined


def labels(method: str | None = None, /, checkpoints: int = 20, **values: Any) -> list[str]:
    return [one.label for one in Grid.typed(method, values).candidates(checkpoints)]


def test_the_default_grid_has_methods_and_lags_and_both_baselines() -> None:
    found = labels()
    assert found[:2] == ["last checkpoint", "uniform"]
    assert {label.split()[0] for label in found[1:]} == {"uniform", "ema", "belay", "wsm", "power"}
    assert "ema --half-life 10%" in found
    assert "wsm --window 5" in found
    assert len(set(found)) == len(found)


def test_a_short_series_has_no_window_that_it_cannot_fill() -> None:
    assert [label for label in labels(checkpoints=3) if "--window" in label] == ["uniform --window 2", "wsm --window 2"]
    assert not [label for label in labels(checkpoints=1) if "--window" in label]


def test_an_option_applies_to_the_methods_that_take_it() -> None:
    found = labels("ema,belay,uniform", half_life="1%,10%", feedback="0.5,1", window="4,8")
    assert found[2:] == [
        *("ema --half-life 1%", "ema --half-life 10%"),
        *(f"belay --half-life {h} --feedback {f}" for h in ("1%", "10%") for f in ("0.5", "1")),
        *("uniform --window 4", "uniform --window 8"),
    ]


def test_an_option_called_like_a_method_adds_it() -> None:
    assert "best --best 3 --best-metric eval_loss" in labels(best="3", metric="eval_loss")
    assert labels("coefficients", coefficients_="0.5,0.5")[2:] == ["coefficients --coefficients 0.5,0.5"]


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("ema,emma", {}, "--method emma is unknown"),
        ("", {}, "--method '' has an empty value"),
        ("ema", {"half_life": ""}, "--half-life '' has an empty value"),
        ("uniform", {"half_life": "5%"}, "--method uniform takes no --half-life"),
        ("ema", {"half_life": "5%,,10%"}, "--half-life '5%,,10%' has an empty value"),
        ("ema", {"half_life": "5%,ten"}, "--half-life 'ten' is not a positive half-life"),
        ("uniform", {"window": "2,x"}, "--window takes whole numbers, not x"),
        ("power", {"sigma_rel": "0.1,0.3"}, "--sigma-rel must lie between 1e-06 and 1/√12 = 0.2887, not 0.3"),
        ("ema", {"half_life": "5%", "decay": "0.9"}, "--half-life and --decay say the same thing twice"),
    ],
)
def test_what_is_no_grid(method: str, values: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Grid.typed(method, values).candidates(20)
    assert caught.value.message == message


def half_lives(*values: str) -> list[Candidate]:
    return [candidate("ema", {"half_life": value}) for value in values]


@pytest.mark.parametrize(
    ("values", "best", "edges", "around"),
    [
        (("2%", "8%", "32%"), "8%", [], ["4%", "16%"]),
        (("2%", "8%", "32%"), "32%", [("half_life", "128%")], ["16%", "128%"]),
        (("2%", "8%", "32%"), "2%", [("half_life", "0.5%")], ["4%", "0.5%"]),
        (("2%",), "2%", [], []),
        (("2%", "100"), "100", [], []),  # of two units
        (("10%", "10.1%"), "10%", [("half_life", "9.9%")], []),  # too near
    ],
)
def test_edges_and_the_halving(
    values: tuple[str, ...], best: str, edges: list[tuple[str, str]], around: list[str]
) -> None:
    grid = half_lives(*values)
    winner = grid[values.index(best)]
    assert at_edges(grid, winner) == edges
    assert [one.given["half_life"] for one in refined(grid, winner)] == around


def test_windows_are_whole_and_all_of_them_is_no_edge() -> None:
    grid = [candidate("uniform", {"window": window}) for window in ("2", "4", "9")]
    assert [one.given["window"] for one in refined(grid, grid[1])] == ["3", "6"]
    assert at_edges(grid, grid[2]) == [("window", "20")]
    assert at_edges([*grid, candidate("uniform", {})], grid[2]) == []


def test_only_what_is_alike_in_all_else_is_an_axis() -> None:
    grid = [candidate("belay", {"half_life": h, "feedback": f}) for h in ("2%", "8%") for f in ("0.5", "2")]
    assert at_edges(grid, grid[0]) == [("half_life", "0.5%"), ("feedback", "0.125")]
    assert {one.label for one in refined(grid, grid[0])} == {
        "belay --half-life 4% --feedback 0.5",
        "belay --half-life 0.5% --feedback 0.5",
        "belay --half-life 2% --feedback 1",
        "belay --half-life 2% --feedback 0.125",
    }
