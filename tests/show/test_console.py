"""The printer: what goes where, at which width, in which colors, and into the log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rich.terminal_theme as themes
from rich.cells import cell_len
from rich.style import Style

from belay_cli import average, cli
from belay_cli.api import average as api
from belay_cli.api.keywords import plan_options
from belay_cli.errors import CheckpointError, OutputError
from belay_cli.rules import Ema
from belay_cli.show import styles
from belay_cli.show.console import Console
from belay_cli.show.listener import Nobody
from belay_cli.show.log import Log
from tests.conftest import Ran, make_files, make_run
from tests.show.terminal import terminals

LONG = "a-name-as-long-as-names-are-from-step-{}.safetensors"


def test_a_plan_at_60_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    out, err = terminals(monkeypatch, 60)
    assert cli.run(["plan", str(run), "--device", "cpu", "--threads", "2"]) == 0
    *shown, reads, device = out.text.splitlines()
    assert shown == [
        "run: 4 checkpoints, steps 100 to 400, every 100 ·",
        "456 parameters, float32, 2.27 kB each",
        "EMA, half-life 100 steps = 1.0 checkpoints (default) ·",
        "decay 0.99309 a step",
        "",
        "  step   weight",
        "  100    18.0%  ████████████████████",
        "  200    18.0%  ████████████████████",
        "  300    35.9%  ████████████████████████████████████████",
        "  400    28.1%  ███████████████████████████████▎",
        "  mean lag 126 steps · effective number of checkpoints 3.7",
        "  the last checkpoint stands for the half interval behind",
        "  it, the others for two halves",
        "",
    ]
    assert reads.startswith("reads 9.06 kB, writes ") and re.search(r" kB, [\d.]+ MB of buffers, cpu$", reads)
    assert re.fullmatch(r"with 2 threads(, about [\d.]+ s here)?", device)
    assert err.text == ""


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [["plan"], ["average", "-o", "out.safetensors"], ["inspect", "--tensors"]])
def test_every_line_of_a_command_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, command: list[str]
) -> None:
    paths = make_files(tmp_path, name=LONG)
    out, err = terminals(monkeypatch, columns)
    assert cli.run([*command, "--unit", "checkpoint", *map(str, paths)]) == 0
    printed = [line.rpartition("\r")[2] for line in (out.text + err.text).splitlines()]
    assert len(printed) > 10
    assert [line for line in printed if cell_len(line) > columns and " " in line.strip()] == []  # names stay whole


def test_a_pipe_gets_each_line_whole(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    name = "x" * 90
    ran = belay("plan", *make_files(tmp_path / "ckpts", name=f"{name}-{{}}.safetensors"), "--unit", "checkpoint")
    lines = ran.out.splitlines()
    assert lines[0] == (
        f"ckpts: 4 checkpoints, {name}-100.safetensors to {name}-400.safetensors"
        " · 456 parameters, float32, 2.27 kB each"
    )
    assert lines[4].startswith(f"  {name}-100.safetensors   12.5%  ")
    assert "\x1b" not in ran.out


def contrast(one: Any, other: Any) -> float:
    """The contrast of two colors by WCAG 2: 1 for the same, 21 for black on white."""
    levels = []
    for color in (one, other):
        parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        levels.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05)
    return float(max(levels) / min(levels))


@pytest.mark.parametrize(
    "theme", ["DEFAULT_TERMINAL_THEME", "NIGHT_OWLISH", "MONOKAI", "DIMMED_MONOKAI", "SVG_EXPORT_THEME"]
)
@pytest.mark.parametrize("name", [name for name in vars(styles) if name.isupper()])
def test_styles_are_readable_on_light_and_dark(name: str, theme: str) -> None:
    style, colors = Style.parse(getattr(styles, name)), getattr(themes, theme)
    assert not style.dim
    if style.color is not None:
        assert contrast(style.color.get_truecolor(colors), colors.background_color) >= 2.9


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, colored in (({}, True), ({"NO_COLOR": "1"}, False)):
        _, err = terminals(monkeypatch, 80, **environment)
        Console().warn("something")
        assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", err.getvalue())) is colored
        assert err.text == "warning: something\n"


def test_errors_and_warnings_go_on_under_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = terminals(monkeypatch, 40)
    console = Console()
    console.error(
        CheckpointError(
            "has a header that cannot be right at all",
            file="a.safetensors",
            hint="save it again, or leave the checkpoint out",
        )
    )
    console.warn("the average is nearly one checkpoint alone (99.9%)")
    assert err.text.splitlines() == [
        "belay: a.safetensors: has a header that",
        "       cannot be right at all",
        "       save it again, or leave the",
        "       checkpoint out",
        "warning: the average is nearly one",
        "         checkpoint alone (99.9%)",
    ]


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  "


def logged(path: str) -> list[str]:
    """The lines of a log without their times, each of which is checked."""
    lines = Path(path).read_text().splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    return [re.sub(f"^{STAMP}", "", line) for line in lines]


@pytest.mark.parametrize("options", [{}, {"quiet": True}, {"json": True}])
def test_the_log_has_everything_whatever_the_terminal_shows(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    terminals(monkeypatch, 40)
    console = Console(**options, log_file=Path("belay.log"))
    console.note("something that was decided for the person, at some length")
    console.warn("something to know")
    console.error(CheckpointError("is cut short", file="a\x1b.safetensors", hint="copy it again"))
    assert logged("belay.log") == [
        "note: something that was decided for the person, at some length",
        "warning: something to know",
        "belay: a\\x1b.safetensors: is cut short",
        "       copy it again",
    ]


def test_results_are_not_for_the_log_but_what_was_done_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = api.prepare(
        [*make_files(tmp_path)], [Ema()], ["out.safetensors"], *plan_options({"threads": 1, "device": "cpu"}), Nobody()
    )
    console = Console(quiet=True, log_file=Path("belay.log"))
    console.show_plan(plan, result=False)
    (done,) = api.run(plan, Nobody())
    console.finished(done)
    lines = logged("belay.log")
    assert lines[1] == "EMA, half-life 100 steps = 1.0 checkpoints (default) · decay 0.99309 a step"
    assert "  300    35.9%  " + "█" * 40 in lines
    assert re.fullmatch(r"✓ out\.safetensors  6 tensors, \d\.\d\d kB in \d\.\d s · cpu, 1 thread", lines[-2])
    assert lines[-1] == '  load it:  safetensors.torch.load_file("out.safetensors")'
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("out.safetensors\n", "")
    console.show_plan(plan, result=True)
    assert logged("belay.log") == lines


def test_a_log_is_appended_to_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    Path("belay.log").write_text("before\n")
    log = Log(Path("belay.log"), now=lambda: at)
    log.write("one\n\ntwo  ")
    assert Path("belay.log").read_text() == ("before\n2026-01-02 03:04:05+00:00  one\n2026-01-02 03:04:05+00:00  two\n")


def test_a_log_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(OutputError) as caught:
        Console(log_file=Path("nowhere/belay.log"))
    assert str(caught.value) == "nowhere/belay.log: cannot be written: No such file or directory"
    assert caught.value.hint == "give another file: --log-file"


def test_an_error_with_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).error(CheckpointError("is cut short", file="a", tensor="w", hint="copy it again"))
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "error": {"message": "a: is cut short", "file": "a", "tensor": "w", "hint": "copy it again"}
    }


def test_json_holds_no_sign_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "a\x9b2J\u202e \u00e4 \udcff", "text": "two\nlines"}
    Console(json=True).json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "ä" in out


def test_a_log_whose_disk_is_full_stops_and_the_work_goes_on(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("average", *make_files(tmp_path), "-o", "out.safetensors", "--log-file", "/dev/full", "-q")
    assert ran.code == 0
    assert ran.err.count("warning: /dev/full cannot be written any more: No space left on device") == 1


def test_json_errors_are_logged_too(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")
    assert belay("verify", "out.safetensors", "--json", "--log-file", "log").code == 1
    assert "belay: out.safetensors: is not verified: a file does not say where" in Path("log").read_text()
