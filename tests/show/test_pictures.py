from __future__ import annotations

import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from belay_cli.errors import UsageError
from belay_cli.rules import Ema, summarize
from belay_cli.show.pictures import coefficients_png, draw_coefficients, have_matplotlib

PANEL, POSITIVE, NEGATIVE = (247, 248, 250), (47, 111, 222), (217, 72, 15)
TITLE = "Weight of each checkpoint in the average"


def series(count: int, options: Ema | None = None, spacing: int = 100) -> tuple[list[int], list[float], float]:
    ticks = [spacing * i for i in range(1, count + 1)]
    coefficients = (options or Ema()).resolve(ticks, "step").coefficients(ticks)
    return ticks, coefficients.tolist(), summarize(coefficients, ticks).mean_lag


def png(
    count: int = 20, options: Ema | None = None, *, unit: str = "step", title: str = TITLE, spacing: int = 100
) -> bytes:
    ticks, coefficients, lag = series(count, options, spacing)
    return coefficients_png(ticks, coefficients, unit=unit, title=title, mean_lag=lag)


def pixels(data: bytes) -> npt.NDArray[Any]:
    return np.array(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)


def columns(data: bytes, color: tuple[int, ...]) -> list[npt.NDArray[Any]]:
    """The columns of the picture that hold a color, as one range a bar."""
    found = np.flatnonzero((np.abs(pixels(data)[:, :, :3] - color).sum(axis=2) < 30).sum(axis=0) > 2)
    return np.split(found, np.flatnonzero(np.diff(found) > 1) + 1) if found.size else []


UNDERDAMPED = Ema(damping_ratio=0.3, half_life="5%")


@pytest.mark.parametrize("count", [1, 2, 20, 120, 121, 1000])
def test_a_png_of_any_number_of_checkpoints(count: int) -> None:
    data = png(count)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert Image.open(io.BytesIO(data)).size == (1400, 500)
    assert len(columns(data, POSITIVE)) >= 1
    assert columns(data, NEGATIVE) == []


@pytest.mark.parametrize("options", [None, UNDERDAMPED])
@pytest.mark.parametrize("name", ["a.png", "a.svg", "A.PNG"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, name: str, options: Ema | None) -> None:
    ticks, coefficients, lag = series(30, options)
    drawn = []
    for directory in ("one", "two"):
        path = tmp_path / directory / name
        path.parent.mkdir()
        with matplotlib.rc_context({"font.size": 30, "xtick.labelsize": 30} if directory == "two" else {}):
            draw_coefficients(path, ticks, coefficients, unit="step", title=TITLE, mean_lag=lag)
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1]
    if name != "a.svg":
        assert drawn[0] == coefficients_png(ticks, coefficients, unit="step", title=TITLE, mean_lag=lag)


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    ticks, coefficients, lag = series(5)
    program = (
        "import sys; from belay_cli.show.pictures import coefficients_png as draw; "
        f"sys.stdout.buffer.write(draw({ticks}, {coefficients}, unit='step', title={TITLE!r}, mean_lag={lag}))"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, check=True)
    assert ran.stdout == coefficients_png(ticks, coefficients, unit="step", title=TITLE, mean_lag=lag)


def test_no_date_and_no_version_in_a_file(tmp_path: Path) -> None:
    ticks, coefficients, lag = series(5)
    picture: Any = Image.open(io.BytesIO(png(5)))
    assert picture.text == {}
    draw_coefficients(tmp_path / "a.svg", ticks, coefficients, unit="step", title=TITLE, mean_lag=lag)
    text = (tmp_path / "a.svg").read_text()
    assert "Matplotlib" not in text and "dc:date" not in text


def test_an_svg_parses_and_its_text_is_paths(tmp_path: Path) -> None:
    ticks, coefficients, lag = series(1000, UNDERDAMPED)
    draw_coefficients(tmp_path / "a.svg", ticks, coefficients, unit="checkpoint", title=TITLE, mean_lag=lag)
    root = ET.parse(tmp_path / "a.svg").getroot()
    tags = {element.tag.split("}")[1] for element in root.iter()}
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox") == "0 0 504 180"
    assert "text" not in tags and "path" in tags and "script" not in tags


def test_there_is_a_bar_for_each_checkpoint_as_wide_as_the_others() -> None:
    ticks, coefficients, lag = range(10), [0.1] * 10, 4.5
    bars = columns(coefficients_png(ticks, coefficients, unit="checkpoint", title="", mean_lag=0), POSITIVE)
    assert len(bars) == 10
    assert max(map(len, bars)) - min(map(len, bars)) <= 2
    marked = columns(coefficients_png(ticks, coefficients, unit="checkpoint", title="", mean_lag=lag), POSITIVE)
    assert [len(bar) for bar in marked] == [len(bar) for bar in bars]  # the lag lies between the fifth and the sixth


def test_the_height_of_a_bar_is_its_weight() -> None:
    data = pixels(coefficients_png([0, 1, 2], [0.5, 0.25, 0.25], unit="checkpoint", title="", mean_lag=0))
    blue = np.abs(data[:, :, :3] - POSITIVE).sum(axis=2) < 30
    heights = blue.sum(axis=0)[blue.sum(axis=0) > 0]
    assert heights.max() / heights.min() == pytest.approx(2, abs=0.03)


def test_negative_weights_have_their_own_color_below_zero() -> None:
    data = png(40, UNDERDAMPED)
    assert columns(data, NEGATIVE)
    shown = pixels(data)[:, :, :3]
    rows = [np.flatnonzero((np.abs(shown - color).sum(axis=2) < 30).sum(axis=1) > 8) for color in (POSITIVE, NEGATIVE)]
    assert rows[0].max() <= rows[1].min()


def test_one_heavy_checkpoint_of_a_thousand_is_seen() -> None:
    coefficients = [-0.5, *[1.5 / 999] * 999]
    data = coefficients_png(range(1000), coefficients, unit="checkpoint", title="", mean_lag=499)
    assert sum(map(len, columns(data, NEGATIVE))) >= 2


@pytest.mark.parametrize("lag", [0.0, -3.0, 1e9])
def test_a_lag_outside_the_picture_is_not_marked(lag: float) -> None:
    data = [coefficients_png([0, 5, 10], [0.2, 0.3, 0.5], unit="step", title="", mean_lag=m) for m in (lag, 0.0, 3.5)]
    assert data[0] == data[1] != data[2]


def test_the_panel_is_light_and_its_corners_are_clear() -> None:
    shown = pixels(png())
    assert tuple(shown[20, 700]) == (*PANEL, 255)
    assert [shown[y, x, 3] for y in (0, -1) for x in (0, -1)] == [0, 0, 0, 0]


def test_title_and_unit_are_drawn() -> None:
    assert png(title="a") != png(title="b")
    assert png(unit="step") != png(unit="checkpoint")


def test_a_title_is_text_and_nothing_else(tmp_path: Path) -> None:
    glyphs = []
    for title in ("a", "$a$", "--><script>alert(1)</script>"):
        draw_coefficients(tmp_path / "a.svg", [0], [1.0], unit="step", title=title, mean_lag=0)
        tags = [element.tag for element in ET.parse(tmp_path / "a.svg").getroot().iter()]
        glyphs.append(sum(tag.endswith("}use") for tag in tags))
        assert not any(tag.endswith("script") for tag in tags)
    assert glyphs[1] == glyphs[0] + 2  # the dollars are drawn
    for title in ("$\\frac{1}{0}$", "$$$", "\\alpha", "a\nb\x00", "名前 🦙", "x" * 500):
        assert png(3, title=title).startswith(b"\x89PNG")
    assert png(3, title="名") == png(3, title="前") == png(3, title="□")


def test_figures_leave_no_global_state() -> None:
    names = matplotlib.rcParams.keys() - {"backend"}  # to read that one is to choose it
    before = {name: matplotlib.rcParams[name] for name in names}
    png()
    assert {name: matplotlib.rcParams[name] for name in names} == before
    program = (
        "import sys; from belay_cli.show.pictures import coefficients_png as draw; "
        "draw([0, 1], [0.5, 0.5], unit='step', title='', mean_lag=0.5); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("name", ["a.pdf", "a", "png", "a.png.txt"])
def test_another_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        draw_coefficients(tmp_path / name, [0], [1.0], unit="step", title="", mean_lag=0)
    assert caught.value.hint == "end it with .png or .svg"
    assert list(tmp_path.glob(f"{name}*")) == []


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert have_matplotlib()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not have_matplotlib()
    with pytest.raises(UsageError) as caught:
        coefficients_png([0], [1.0], unit="step", title="", mean_lag=0)
    assert caught.value.hint == "pip install matplotlib"
    with pytest.raises(UsageError):
        draw_coefficients(tmp_path / "a.svg", [0], [1.0], unit="step", title="", mean_lag=0)
    assert not (tmp_path / "a.svg").exists()
