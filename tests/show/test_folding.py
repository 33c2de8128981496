"""Lines that fit, whole numbers and whole commands in them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from belay_cli.show.folding import fold, hanging, padded, shorten_all, shortened

SERIES = "run: 12 checkpoints, steps 100 to 1200, every 100 · 290 M parameters, bfloat16, 0.58 GB each"


def folded(text: str, width: int | None, hang: Any = None) -> list[str]:
    return [line.plain for line in fold(Text(text), width, hang)]


def test_a_line_is_parted_between_clauses_first() -> None:
    assert folded(SERIES, 80) == [
        "run: 12 checkpoints, steps 100 to 1200, every 100 ·",
        "290 M parameters, bfloat16, 0.58 GB each",
    ]
    assert folded(SERIES, 40) == [
        "run: 12 checkpoints, steps 100 to 1200,",
        "every 100 · 290 M parameters, bfloat16,",
        "0.58 GB each",
    ]


def test_without_a_terminal_a_line_is_one_line() -> None:
    assert folded(SERIES * 20, None) == [SERIES * 20]


def test_a_number_keeps_its_unit_and_its_name() -> None:
    for width in range(20, 90):
        text = "\n".join(folded("EMA, half-life 100 steps = 1.0 checkpoints · decay 0.99309 a step, 6.95 GB", width))
        for whole in ("half-life 100 steps", "1.0 checkpoints", "decay 0.99309 a step", "6.95 GB"):
            assert whole in text, width


@pytest.mark.parametrize(
    "whole",
    [
        "belay verify out --checkpoints a b c",
        "pip install 'belay-cli[plots]'",
        "--drop 'layers.*.bias and more'",
        "mkdir -p '/a directory/b'",
    ],
)
def test_what_is_copied_stays_whole(whole: str) -> None:
    for width in range(30, 70):
        lines = folded(f"it cannot be done like that at all; for what is meant here: {whole}; or not", width)
        assert any(whole in line for line in lines), width


def test_what_fits_on_no_line_begins_where_it_stands() -> None:
    assert folded("note: " + "x" * 30 + " and more", 20) == ["note: " + "x" * 30, "and more"]


def test_lines_go_on_under_the_last_column() -> None:
    assert folded("  held  digests  every byte of all tensors that are there", 40) == [
        "  held  digests  every byte of all",
        "                 tensors that are there",
    ]
    assert hanging("  mean lag 144 steps", 80) == 2
    assert folded("warning: one two three four", 16, hang=9) == ["warning: one two", "         three", "         four"]


def test_styles_stay_with_their_words() -> None:
    lines = fold(Text.assemble(("warning: ", "bold"), "one two three four"), 16, 9)
    assert [(span.start, span.end) for span in lines[0].spans] == [(0, 9)]
    assert lines[1].spans == []


@given(st.lists(st.sampled_from(["a", "steps,", "100,", "2.5 GB,", "·", "'x y'", "--drop z;", "日本語"])))
def test_nothing_is_lost_and_nothing_is_too_long(parts: list[str]) -> None:
    text = " ".join(parts)
    lines = folded(text, 30, hang=4)
    assert re.sub(r"\s+", " ", " ".join(lines)) == text
    assert max(map(cell_len, lines)) <= 30


def test_a_name_is_cut_in_the_middle() -> None:
    assert shortened("epoch=1-step=000200.ckpt", 12) == "epoch=….ckpt"
    assert shortened("checkpoint-100", 14) == "checkpoint-100"
    assert shortened("checkpoint-100", 9, "..") == "chec..100"
    assert cell_len(shortened("名前の長いモデル", 9)) <= 9


def test_names_that_differ_still_differ_when_they_are_cut() -> None:
    names = [f"a-long-name-of-a-model-epoch={i}-of-the-last-run.safetensors" for i in range(3)]
    assert shorten_all(names, 20) == ["a-long-na…l-epoch=0…", "a-long-na…l-epoch=1…", "a-long-na…l-epoch=2…"]
    assert shorten_all(["one", "two"], 20) == ["one", "two"]
    assert shorten_all([], 20) == []
    assert shorten_all(["x" * 30] * 2, 9) == ["xxxx…xxxx"] * 2


def test_wide_characters_take_two_columns() -> None:
    assert padded("日本", 6) == "日本  "
    assert padded("日本", 6, right=True) == "  日本"
