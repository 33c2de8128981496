"""`--summary` and `--plot`: what a job's page and a person's eye get."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import Ran, make_files, make_run


def test_a_summary_is_appended(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = make_run(tmp_path / "run")
    Path("job.md").write_text("# Job\n")
    assert belay("average", run, "-o", "out", "--summary", "job.md", "-q").code == 0
    assert belay("verify", "out", "--summary", "job.md", "-q").code == 0
    text = Path("job.md").read_text()
    assert text.startswith("# Job\n### belay average → `out`\n\nThese weights are an average of 4 checkpoints")
    assert "\n300   35.9%  ████████████████████████████████████████\n" in text
    assert "### belay verify `out`: verified\n" in text
    assert "| ✅ held | digests | `every byte of 6 tensors` |" in text


def test_a_failed_check_is_in_the_summary(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    belay("average", *make_files(tmp_path / "ckpts"), "-o", "out.safetensors")
    assert belay("verify", "out.safetensors", "--summary", "job.md").code == 1
    text = Path("job.md").read_text()
    assert "### belay verify `out.safetensors`: **not verified**\n" in text
    assert "| ⚪ not checked | inputs | " in text


def test_a_summary_that_cannot_be_written_is_an_error(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("average", *make_files(tmp_path), "--summary", "nowhere/job.md")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "belay: nowhere/job.md: cannot be written: No such file or directory",
        "       give another file: --summary",
    ]
    assert not Path("belay-average.safetensors").exists()


@pytest.mark.parametrize("flag", ["--summary", "--log-file"])
@pytest.mark.parametrize("command", ["average", "plan"])
def test_a_checkpoint_is_no_page_and_no_log(tmp_path: Path, belay: Callable[..., Ran], flag: str, command: str) -> None:
    paths = make_files(tmp_path)
    if (command, flag) == ("plan", "--summary"):
        return  # a plan does nothing that could be summed up
    before = paths[1].read_bytes()
    for there in (paths[1], Path("out.safetensors"), tmp_path):
        ran = belay(command, *paths, "-o", "out.safetensors", flag, there)
        assert ran.code == 1
        what = "cannot be written: Is a directory" if there == tmp_path else "is no text that lines can be added to"
        assert ran.err == f"belay: {there}: {what}\n       give another file: {flag}\n"
    assert paths[1].read_bytes() == before
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("flag", ["--summary", "--log-file"])
@pytest.mark.parametrize("there", ["out", "out/job.md"])
def test_what_is_said_of_an_output_is_not_in_it(
    tmp_path: Path, belay: Callable[..., Ran], flag: str, there: str
) -> None:
    run = make_run(tmp_path / "run")
    if there != "out":
        assert belay("average", run, "-o", "out", "-q").code == 0
    before = {path: path.read_bytes() for path in Path("out").glob("*.safetensors")}
    ran = belay("average", run, "-o", "out", "--overwrite", flag, there)
    assert (ran.code, ran.err) == (2, f"belay: {flag} {there} is in the output\n       give another file: {flag}\n")
    assert {path: path.read_bytes() for path in Path("out").glob("*.safetensors")} == before


@pytest.mark.parametrize("words", [("--dry-run",), ("--half-life", "0")])
def test_nothing_is_left_where_nothing_is_done(tmp_path: Path, belay: Callable[..., Ran], words: Sequence[str]) -> None:
    Path("link.md").symlink_to("nowhere.md")
    for page in ("job.md", "link.md"):
        belay("average", *make_files(tmp_path / "ckpts"), "--summary", page, *words)
        assert sorted(path.name for path in Path().iterdir()) == ["link.md"]
    Path("job.md").write_text("# Job\n")
    belay("average", tmp_path / "ckpts", "--summary", "job.md", *words)
    assert Path("job.md").read_text() == "# Job\n"


def test_the_plot_of_a_plan(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    for name in ("weights.png", "weights.svg"):
        assert belay("plan", *paths, "--plot", name).code == 0
    assert Path("weights.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert ET.parse("weights.svg").getroot().tag.endswith("svg")
    ran = belay("plan", *paths, "--plot", "weights.jpg")
    assert ran.code == 2
    assert ran.err == "belay: weights.jpg is no name for a picture\n       end it with .png or .svg\n"


def test_without_matplotlib_the_text_and_a_hint(
    tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = belay("plan", *make_files(tmp_path), "--plot", "weights.png")
    assert ran.code == 0
    assert "  300    35.9%  ███" in ran.out
    assert ran.err == ("warning: weights.png is not drawn: pictures take matplotlib; pip install matplotlib\n")
    assert not Path("weights.png").exists()


@pytest.mark.parametrize("command", ["plan", "average"])
def test_the_help_fits_a_terminal(belay: Callable[..., Ran], command: str) -> None:
    out = belay(command, "--help").out
    assert max(map(len, out.splitlines())) <= 80
