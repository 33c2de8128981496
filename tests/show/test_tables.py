"""The table of weights and aligned columns, at the widths that people have."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from belay_cli.show.tables import columns, weight_rows

NAMES = [f"a-name-as-long-as-names-are-epoch={i}.safetensors" for i in range(4)]


def rows(
    names: list[str] = NAMES,
    coefficients: Any = (0.1, 0.2, 0.4, 0.3),
    unit: str = "checkpoint",
    width: int | None = None,
    unicode: bool = True,
) -> list[str]:
    ticks = [100 * (i + 1) for i in range(len(coefficients))]
    return [line.plain for line in weight_rows(names, ticks, coefficients, unit, width=width, unicode=unicode)]


def test_rows_by_step() -> None:
    assert rows(unit="step") == [
        "  step   weight",
        "  100    10.0%  ██████████",
        "  200    20.0%  ████████████████████",
        "  300    40.0%  ████████████████████████████████████████",
        "  400    30.0%  ██████████████████████████████",
    ]


def test_bars_and_names_shrink_with_the_width() -> None:
    assert rows(width=60) == [
        "  checkpoint                   weight",
        "  a-name-as-lo…-are-epoch=0…   10.0%  █████▌",
        "  a-name-as-lo…-are-epoch=1…   20.0%  ███████████",
        "  a-name-as-lo…-are-epoch=2…   40.0%  ██████████████████████",
        "  a-name-as-lo…-are-epoch=3…   30.0%  ████████████████▌",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("unit", ["step", "checkpoint"])
def test_no_row_is_wider_than_the_terminal(width: int, unit: str) -> None:
    found = rows([f"{name}名" for name in NAMES], unit=unit, width=width)
    assert max(map(cell_len, found)) <= width
    assert len(set(found)) == 5


def test_without_a_terminal_names_are_whole() -> None:
    found = rows()
    assert all(name in line for name, line in zip(NAMES, found[1:], strict=True))
    assert found[3].endswith("█" * 40)


def test_groups_and_negative_weights() -> None:
    c = [0.001] * 10 + [-0.2, 0.5, 0.69]
    found = list(weight_rows([""] * 13, range(13), c, "step", width=80, unicode=True))
    assert [line.plain[2:14] for line in found[1:-1]] == [
        "0…9     1.0%",
        "10    -20.0%",
        "11     50.0%",
        "12     69.0%",
    ]
    negative = next(line for line in found if "-20.0%" in line.plain)
    assert [str(span.style) for span in negative.spans] == ["red"]
    assert found[-1].plain == "  first checkpoint 0.1%, last 69.0%"


def test_long_names_in_one_row_are_said_by_the_last() -> None:
    found = rows([f"{i}{NAMES[0]}{i}" for i in range(12)], [0.005] * 8 + [0.24] * 4, width=60)
    assert found[1].startswith("  to 7a-name")


def test_ascii_where_there_is_nothing_else() -> None:
    found = rows(coefficients=(0.5, 0.5), names=NAMES[:2], width=60, unicode=False)
    assert found[1] == "  a-name-as-l..are-epoch=0..   50.0%  ######################"
    assert all(line.isascii() for line in found)


TABLE = [
    ("file", "size", ""),
    ("model-00001-of-00002.safetensors", "4.22 kB", "upload"),
    ("config.json", "-", "delete: older weights"),
]


def test_columns_in_full() -> None:
    assert [line.plain for line in columns(TABLE, width=None, unicode=True)] == [
        "  file                                 size",
        "  model-00001-of-00002.safetensors  4.22 kB  upload",
        "  config.json                             -  delete: older weights",
    ]


def test_columns_that_fit_keep_numbers_whole() -> None:
    assert [line.plain for line in columns(TABLE, width=50, unicode=True)] == [
        "  file                   size",
        "  model-000…etensors  4.22 kB  upload",
        "  config.json               -  delete: o…r weights",
    ]
    for width in (40, 50, 60):
        found = [line.plain for line in columns(TABLE, width=width, unicode=True)]
        assert max(map(len, found)) <= width
        assert "4.22 kB" in found[1]


def test_names_that_begin_with_digits_are_no_numbers() -> None:
    found = [line.plain for line in columns([("name",), ("1-a.safetensors",), ("10-b",)], width=None, unicode=True)]
    assert found == ["  name", "  1-a.safetensors", "  10-b"]


def test_control_characters_are_shown_not_obeyed() -> None:
    assert [line.plain for line in columns([("x",), ("\x1b[31m",)], width=80, unicode=True)] == ["  x", "  \\x1b[31m"]
