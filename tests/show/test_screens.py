"""Whole screens: an output that is there, results and what to do next; pictures and summaries beside them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belay_cli import Ema, average
from belay_cli.errors import OutputError, UsageError
from belay_cli.record import Record, parse
from belay_cli.show import pictures
from belay_cli.show import summary as summaries
from belay_cli.show.console import Console
from belay_cli.show.screens import average_lines, finished_line, next_lines
from belay_cli.show.sentences import engine, lag_line, span
from tests.conftest import Ran, make_files, make_run
from tests.publish.cards import document
from tests.show.terminal import terminals

COEFFICIENTS = (0.4, 0.35, 0.25)
FILES = [("model-00001-of-00002.safetensors", 4220, ""), ("model-00002-of-00002.safetensors", 60, "is cut short")]


def record(
    ticks: tuple[int, ...] = (100, 200, 300),
    coefficients: tuple[float, ...] = COEFFICIENTS,
    names: list[str] | None = None,
    unit: str = "step",
) -> Record:
    told = document(ticks=ticks, names=names, unit=unit)
    for one, coefficient in zip(told["series"], coefficients, strict=True):
        one["coefficient"] = coefficient
    return parse(told, "belay.json")


def shown(what: Record | None = None, files: list[tuple[str, int, str]] = FILES, console: Any = None) -> None:
    (console or Console()).screen(partial(average_lines, "belay-average", what or record(), files))


def test_what_an_output_is() -> None:
    assert [line.plain for line in average_lines("belay-average", record(), FILES, width=None, unicode=True)] == [
        "belay-average: an average of 3 checkpoints, steps 100 to 300, every 100",
        "EMA, half-life 100 steps = 1.0 checkpoints · decay 0.99309 a step",
        "",
        "  step   weight",
        "  100    40.0%  ████████████████████████████████████████",
        "  200    35.0%  ███████████████████████████████████",
        "  300    25.0%  █████████████████████████",
        "  mean lag 115 steps · effective number of checkpoints 2.9",
        "  the last checkpoint stands for the half interval behind it, the others for two halves",
        "",
        "  file                                  size",
        "  model-00001-of-00002.safetensors   4.22 kB  there",
        "  model-00002-of-00002.safetensors  60 bytes  is cut short",
        "",
        "check every byte: belay verify belay-average",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_an_output_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    out, _ = terminals(monkeypatch, width)
    names = [f"a-name-as-long-as-names-are-epoch={i}.safetensors" for i in range(3)]
    shown(record(ticks=(0, 1, 2), names=names, unit="checkpoint"))
    lines = out.text.splitlines()
    assert len(lines) > 13 and max(map(len, lines)) <= width
    assert not any("half interval" in line for line in lines)


def test_an_output_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    shown()
    captured = capsys.readouterr()
    assert captured.out.startswith("belay-average: an average of 3 checkpoints")
    assert captured.err == ""


@pytest.mark.parametrize(
    ("ticks", "coefficients", "inertia", "said"),
    [
        ([0, 100], [0.72, 0.28], 0.0, True),
        ([0, 100], [0.28, 0.72], 0.0, False),
        ([0, 1], [0.72, 0.28], 0.0, False),  # no tick lies between them: the rule itself weighs them so
        ([0, 100], [0.72, 0.28], 0.9, False),
        ([5], [1.0], 0.0, False),
    ],
)
def test_the_half_interval_is_explained_where_it_is_the_reason(
    ticks: list[int], coefficients: list[float], inertia: float, said: bool
) -> None:
    why = Ema(inertia=inertia, half_life=100).resolve(ticks, "step").remark(ticks, np.array(coefficients))
    assert why == (
        "the last checkpoint stands for the half interval behind it, the others for two halves" if said else ""
    )


def test_sentences() -> None:
    assert lag_line(144.4, 3.96, "step") == "mean lag 144 steps · effective number of checkpoints 4.0"
    assert lag_line(2.5, 3, "checkpoint", ("the EMA of this half-life", 1.25)) == (
        "mean lag 2.50 checkpoints (the EMA of this half-life: 1.25) · effective number of checkpoints 3.0"
    )
    assert span(["a"], [100], "step") == "1 checkpoint, step 100"
    assert span(["a"], [0], "checkpoint") == "1 checkpoint, a"
    assert span(["a", "b", "c"], [0, 1, 2], "checkpoint") == "3 checkpoints, a to c"
    assert engine("cpu", 2) == "cpu, 2 threads"
    assert engine("cuda:0", 2, "NVIDIA H100") == "cuda:0 (NVIDIA H100)"


def test_a_result_and_what_to_do_next(tmp_path: Path) -> None:
    done = replace(average(make_run(tmp_path / "run"), "my average"), seconds=2.61, bytes_written=580_000_000)
    line = finished_line(replace(done, threads=2), unicode=True).plain
    assert line == "✓ my average  6 tensors, 0.58 GB in 2.6 s · cpu, 2 threads"
    assert finished_line(done, unicode=False).plain.startswith("done: my average  6 tensors")
    assert [line.plain for line in next_lines(done, width=80)] == [
        '  load it:     safetensors.torch.load_file("my average/model.safetensors")',
        "  check it:    belay verify 'my average'",
        "  publish it:  belay push 'my average' ORG/NAME",
    ]
    assert [line.plain for line in next_lines(done, width=60)][:3] == [
        "  load it:",
        '    safetensors.torch.load_file("my average/model.safetensors")',
        "  check it:    belay verify 'my average'",
    ]


def test_a_picture_that_is_there_is_replaced_only_if_asked(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    assert belay("plan", *paths, "--plot", "w.svg").err == "note: wrote w.svg\n"
    Path("w.svg").write_text("somebody else's")
    ran = belay("plan", *paths, "--plot", "w.svg")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "belay: w.svg: exists\n       say --overwrite, or draw somewhere else: --plot\n"
    assert Path("w.svg").read_text() == "somebody else's"
    ran = belay("plan", *paths, "--plot", "w.svg", "--overwrite")
    assert (ran.code, ran.err) == (1, "belay: w.svg: exists, and is no picture\n       draw somewhere else: --plot\n")
    Path("w.svg").write_text("<svg/>")
    assert belay("plan", *paths, "--plot", "w.svg", "--overwrite").code == 0
    assert Path("w.svg").read_text().startswith("<?xml")


def test_what_is_no_picture_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"^w\.jpg is no name for a picture$"):
        pictures.ready(Path("w.jpg"), overwrite=True)
    Path("w.png").symlink_to("nowhere.png")
    with pytest.raises(OutputError, match=r"^w\.png: exists$"):
        pictures.ready(Path("w.png"), overwrite=False)


def test_a_summary_says_what_became_of_the_file(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    assert summaries.append(Path("job.md"), ["# one"]) == "wrote job.md"
    assert summaries.append(Path("job.md"), ["# two"]) == "appended to job.md"
    assert Path("job.md").read_text() == "# one\n\n# two\n\n"
    ran = belay("average", *make_files(tmp_path), "-o", "out.safetensors", "--summary", "job.md")
    assert "note: appended to job.md\n" in ran.err


def test_output_without_unicode_has_its_own_signs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr("sys.stdout", stream)
    shown()
    stream.flush()
    assert b"####" in stream.buffer.getvalue()
