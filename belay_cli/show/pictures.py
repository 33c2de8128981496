"""The coefficients over training, and what a sweep found, as pictures by matplotlib: an extra, imported only to draw.

One file must be read on a light and on a dark page, so the picture brings its own light panel; outside its round
corners it is transparent. The same input gives the same bytes: no date, no version, no font of the system, no
setting of the user.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belay_cli import words
from belay_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A card shows a picture about 700 px wide; twice the density keeps it sharp. A point is 2.8 of 1400 px.
_INCHES = (7.0, 2.5)
_TALLER = (7.0, 3.6)  # of a sweep
_DPI = 200
_TEXT = 8.6  # points: 12 px in a card
_BARS = 120  # more checkpoints than this stand without gaps, which would be wider than the bars

_PANEL, _EDGE, _INK, _SOFT, _GRID = "#f7f8fa", "#d5d9e0", "#1f2733", "#566072", "#e2e5eb"
_LINES = ("#2f6fde", "#d9480f", "#2b8a3e", "#9c36b5", "#b08900", "#0c8599", "#c2255c", "#495057")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_POSITIVE, _NEGATIVE = "#2f6fde", "#d9480f"

# Nothing of a file is random or dated.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
}


def have_matplotlib() -> bool:
    """Whether pictures can be drawn. Imports nothing."""
    return importlib.util.find_spec("matplotlib") is not None


def ready(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError if the name is not that of a picture, OutputError if what stands there is not to be replaced."""
    if _form(path) not in _METADATA:
        raise UsageError(f"{path} is no name for a picture", hint="end it with .png or .svg")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputError("exists", file=path, hint="say --overwrite, or draw somewhere else: --plot")
    if path.exists() and not _is_picture(path):
        raise OutputError("exists, and is no picture", file=path, hint="draw somewhere else: --plot")


def _is_picture(path: Path) -> bool:
    """Whether what stands there is of the kind that its name says."""
    with path.open("rb") as file:
        begins = file.read(16)
    return begins.startswith(b"\x89PNG" if _form(path) == "png" else (b"<?xml", b"<svg")) or not begins


def _form(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def draw_coefficients(
    path: Path, ticks: Sequence[int], coefficients: Sequence[float], *, unit: str, title: str, mean_lag: float
) -> None:
    """Write the picture of one vector of coefficients, [T] at ticks [T], as .png or .svg by the name of `path`.

    unit: `step` or `checkpoint`; mean_lag: in ticks. Raises UsageError for another suffix or without matplotlib.
    """
    ready(path, overwrite=True)
    path.write_bytes(_render(_form(path), ticks, coefficients, unit, title, mean_lag))


def coefficients_png(
    ticks: Sequence[int], coefficients: Sequence[float], *, unit: str, title: str, mean_lag: float
) -> bytes:
    """The same picture as the bytes of a PNG, 1400 px wide. Raises UsageError without matplotlib."""
    return _render("png", ticks, coefficients, unit, title, mean_lag)


def draw_sweep(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float, float | None]]],
    *,
    metric: str,
    unit: str,
    last: float | None,
) -> None:
    """Write the picture of a sweep, .png or .svg by the name of `path`: the metric over the mean lag, a line a method.

    curves: mean lag in ticks of `unit`, score and its standard error; last: the score of the last checkpoint. Raises
    UsageError without matplotlib.
    """
    if not have_matplotlib():
        raise UsageError("a picture needs matplotlib, which is not installed", hint="pip install matplotlib")
    with _settings():
        figure = _panel(_TALLER)
        axes = figure.add_axes((0.115, 0.155, 0.855, 0.735))
        _plain_frame(axes, f"{metric} of every candidate", f"mean lag, {unit}s", metric)
        for number, (method, points) in enumerate(curves.items()):
            lags, scores, errors = zip(*points, strict=True)
            color, mark = _LINES[number % len(_LINES)], _MARKS[number % len(_MARKS)]
            bars = [error or 0.0 for error in errors] if any(errors) else None
            axes.errorbar(
                lags,
                scores,
                bars,
                color=color,
                marker=mark,
                label=_drawable(method),
                linewidth=1.2,
                markersize=4.5,
                elinewidth=0.7,
            )
        if last is not None:
            axes.axhline(last, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), label="last checkpoint")
        axes.legend(facecolor=_PANEL, edgecolor="none", framealpha=0.9, labelcolor=_INK, fontsize=_TEXT - 0.6, ncols=2)
        path.write_bytes(_saved(figure, _form(path)))


def _plain_frame(axes: Axes, title: str, below: str, beside: str) -> None:
    """An axis of lags, logarithmic where they are many times the least."""
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0, pad=4)
    axes.set_title(_drawable(title), loc="left", color=_INK, fontsize=_TEXT + 0.6, fontweight="bold", pad=9)
    axes.set_xlabel(below, color=_SOFT, labelpad=3)
    axes.set_ylabel(_drawable(beside), color=_SOFT)


def _saved(figure: Figure, form: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=_DPI, transparent=False, metadata=_METADATA[form])
    return out.getvalue()


def _render(
    form: str, ticks: Sequence[int], coefficients: Sequence[float], unit: str, title: str, mean_lag: float
) -> bytes:
    if not have_matplotlib():
        raise UsageError("a picture needs matplotlib, which is not installed", hint="pip install matplotlib")
    with _settings():
        figure = _panel()
        axes = figure.add_axes((0.1, 0.205, 0.865, 0.615))
        _frame(axes, ticks, unit, title)
        _percent(axes)
        _weights(axes, ticks, coefficients)
        _mark_lag(axes, ticks, unit, mean_lag)
        return _saved(figure, form)


@contextmanager
def _settings() -> Iterator[None]:
    """matplotlib's own defaults and font, whatever matplotlibrc says; shapes instead of text in an SVG."""
    import matplotlib.style

    ours = {
        "font.family": "DejaVu Sans",
        "font.size": _TEXT,
        "svg.hashsalt": "belay",
        "svg.fonttype": "path",
        "text.parse_math": False,
    }
    with matplotlib.style.context(["default", ours]):
        yield


def _panel(inches: tuple[float, float] = _INCHES) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=inches, dpi=_DPI, facecolor="none")
    FigureCanvasAgg(figure)
    width, height = inches
    inch = figure.dpi_scale_trans
    corners = "round,pad=0,rounding_size=0.07"
    figure.add_artist(
        FancyBboxPatch(
            (0.01, 0.01), width - 0.02, height - 0.02, corners, transform=inch, fc=_PANEL, ec=_EDGE, lw=0.6, zorder=-1
        )
    )
    return figure


def _frame(axes: Axes, ticks: Sequence[int], unit: str, title: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0, pad=4)
    axes.set_title(_drawable(title), loc="left", color=_INK, fontsize=_TEXT + 0.6, fontweight="bold", pad=9)
    axes.set_xlabel("training step" if unit == "step" else "checkpoint", color=_SOFT, labelpad=3)
    whole = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_locator(whole if len(ticks) > 1 else FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    beside = _bar_width(ticks) / 2 + 0.004 * _span(ticks) if len(ticks) > 1 else 0.5
    axes.set_xlim(ticks[0] - beside, ticks[-1] + beside)


def _span(ticks: Sequence[int]) -> float:
    return ticks[-1] - ticks[0] or 1.0


def _bar_width(ticks: Sequence[int]) -> float:
    """By the least distance of two checkpoints, but neither a hairline nor a wall."""
    span, gap = _span(ticks), min((b - a for a, b in pairwise(ticks)), default=1)
    if len(ticks) > _BARS:
        return max(1.1 * gap, 0.002 * span)  # each over the edge of the next, against seams
    return min(max(0.76 * gap, 0.008 * span), 0.08 * span)


def _weights(axes: Axes, ticks: Sequence[int], coefficients: Sequence[float]) -> None:
    colors = [_NEGATIVE if c < 0 else _POSITIVE for c in coefficients]
    axes.bar(ticks, coefficients, _bar_width(ticks), color=colors, linewidth=0)
    axes.axhline(0, color=_SOFT, linewidth=0.8)
    low, high = min(0.0, *coefficients), max(0.0, *coefficients)
    axes.set_ylim(low - (0.06 * (high - low) if low else 0), high + 0.24 * (high - low))


def _mark_lag(axes: Axes, ticks: Sequence[int], unit: str, mean_lag: float) -> None:
    """A line at the mean of the weights, and what it is, on the side that has more room."""
    at = ticks[-1] - mean_lag
    left, right = axes.get_xlim()
    if mean_lag == 0 or not left < at < right:
        return
    axes.axvline(at, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
    before = at - left > (right - left) / 2
    lag = f"{mean_lag:,.0f}" if mean_lag >= 100 else words.three_digits(mean_lag)
    axes.annotate(
        f"mean lag {lag} {unit}s",
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if before else 6, -1),
        textcoords="offset points",
        ha="right" if before else "left",
        va="top",
        color=_INK,
        bbox={"facecolor": _PANEL, "edgecolor": "none", "pad": 1.5},
    )


def _percent(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%".replace("-", "−")))
    axes.set_ylabel("weight", color=_SOFT)
    axes.yaxis.set_label_coords(-0.075, 0.5)


def _drawable(text: str) -> str:
    """Without control characters, and a box for what the font lacks, about which matplotlib would warn."""
    from matplotlib.font_manager import findfont, get_font

    font: Any = get_font(findfont("DejaVu Sans"))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in words.printable(text))
