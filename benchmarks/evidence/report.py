"""Results into the tables of docs/evidence.md, and into pictures in docs/evidence/."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from evidence.methods import FAMILIES, FOLLOWED
from evidence.problems import PROBLEMS
from evidence.results import read
from evidence.summary import NEAR, Row, Trial, best, by_rate, rows, trials
from evidence.training import CHECKS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "evidence.md", DOCS / "evidence-tables.md")

# Mid-tones that are legible on white and on black, told apart by the colour-blind too.
_COLOURS = {
    "last": "#808890",
    "EMA": "#2f8fd0",
    "BELAY": "#d9822b",
    "PACE": "#9a6fc9",
    "Switch EMA": "#3aa675",
    "explicit": "#c95f7f",
}
_GREY = "#808890"
# Of each optimizer, what is drawn over the rate: one method, the same for all problems.
_DRAWN = {
    "SGD": {
        "last": "last",
        "EMA": "EMA 10%",
        "Switch EMA": "Switch EMA",
        "BELAY": "BELAY, stiffness 0.2",
    },
    "AdamW": {
        "last": "last",
        "EMA": "EMA 10%",
        "Switch EMA": "Switch EMA",
        "PACE": "PACE",
        "BELAY": "BELAY, stiffness 4",
    },
}


def draw() -> None:
    """Write every table and picture that there are results for."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "evidence").mkdir(exist_ok=True)
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "belay",
            "font.size": 9,
            "axes.edgecolor": _GREY,
            "axes.labelcolor": _GREY,
            "axes.titlecolor": _GREY,
            "xtick.color": _GREY,
            "ytick.color": _GREY,
            "text.color": _GREY,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    found = trials(read("training"))
    _rates(found)
    _along(found)
    _mechanics(read("mechanics"))


# ---- tables


def with_tables(page: str) -> str:
    """The page with its tables made anew from the results: each stands behind a comment that names it."""
    for name, table in tables().items():
        marker = f"<!-- table: {name} -->\n"
        page = re.sub(rf"{re.escape(marker)}(?:\n?\|[^\n]*\n)*", f"{marker}\n{table}\n", page)
    return page


def tables() -> dict[str, str]:
    """Every table of the page, by name."""
    trained = trials(read("training"))
    found = {name: _training_table(one) for name, one in trained.items()} | _networks(trained)
    mechanics, quadratics, replay = read("mechanics"), read("quadratics"), read("replay")
    if mechanics:
        found |= {
            "oscillation": _oscillation(mechanics["oscillation"]),
            "noise": _noise(mechanics["noise"]),
            "stable range": _stable(mechanics["stable range"]),
        }
    if quadratics:
        found |= {name: _quadratic(quadratics[name]) for name in ("exact", "sampled")}
    if replay:
        found |= {
            "replay on quadratics": _replayed_quadratics(replay["quadratics"]),
            "replay on a network": _replayed(replay["network"]),
            "sparse": _sparse(replay["network"]["sparse"]),
        }
    return found


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _training_table(all_of_one: list[Trial]) -> str:
    head = ("method, at its best", "rate", "loss", "accuracy", "less the EMA's", "p", "rates as good", "stopped")
    body = []
    for row in rows(all_of_one):
        trial = row.trial
        own = trial.method if trial.method.startswith(trial.family.partition(",")[0]) else trial.family
        same = trial.family == "EMA"
        body.append(
            (
                own,
                f"{trial.rate:g}",
                f"{trial.loss:.3f} ± {row.spread:.3f}",
                f"{100 * row.accuracy:.1f} %",
                "" if same else f"{row.difference:+.3f} ± {row.error:.3f}".replace("-", "−"),
                "" if same else ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}"),
                "none" if row.low is None or row.high is None else f"{row.low:g} to {row.high:g}",
                "" if row.stopped is None else f"{row.stopped:.3f}",
            )
        )
    return _table(head, body)


def _networks(found: dict[str, list[Trial]]) -> dict[str, str]:
    """The tables that put all problems side by side, a family of methods in a row."""
    names = _ordered(found)
    by_family = {name: {row.trial.family: row for row in rows(found[name])} for name in names}
    least = {name: min(row.trial.loss for row in of.values()) for name, of in by_family.items()}

    def loss(name: str, row: Row) -> str:
        text = f"{row.trial.loss:.3f}"
        text = f"**{text}**" if row.trial.loss == least[name] else text
        return text + ("" if row.p >= 0.05 else " ↓" if row.difference < 0 else " ↑")

    def rates(name: str, row: Row) -> str:
        return "none" if row.low is None or row.high is None else f"× {row.high / row.low:g}"

    def soon(name: str, row: Row) -> str:
        enough = NEAR * by_family[name]["EMA"].trial.loss
        followed = FOLLOWED if row.trial.family == "EMA" else row.trial.method
        members = [one for one in found[name] if one.method == followed and one.along["test"]]
        if not members:
            return ""
        first = [i for one in members for i, at in enumerate(one.along["test"], 1) if sum(at) / len(at) <= enough]
        return f"{100 * min(first) / CHECKS:.0f} %" if first else "not"

    def table(cell: Callable[[str, Row], str]) -> str:
        body = [
            (family, *(cell(name, of[family]) if family in (of := by_family[name]) else "" for name in names))
            for family in FAMILIES
        ]
        return _table(("", *names), body)

    return {
        "losses": table(loss),
        "rates": table(rates),
        "how soon": table(soon),
        "twice the rate": _twice(found),
        "insurance": _insurance(found),
    }


def _twice(found: dict[str, list[Trial]]) -> str:
    """The EMA at its best rate, and BELAY with feedback 1 there and at twice the rate."""
    body = []
    for name in _ordered(found):
        ema = best([one for one in found[name] if one.family == "EMA"])
        belay = dict(by_rate(found[name], "BELAY, feedback 1"))
        losses = (belay.get(rate) for rate in (ema.rate, 2 * ema.rate))
        cells = ("" if loss is None else f"{loss:.3f}" for loss in losses)
        body.append((name, f"{ema.rate:g}", f"{ema.loss:.3f}", *cells))
    return _table(("", "rate η", "EMA at η", "BELAY at η", "BELAY at 2 η"), body)


def _insurance(found: dict[str, list[Trial]]) -> str:
    """The EMA and one BELAY at the rate that is best for the EMA, and at 4 and 16 times that."""
    body = []
    for name in _ordered(found):
        ema = best([one for one in found[name] if one.family == "EMA"])
        cells = []
        for method in (ema.method, _DRAWN[name.split()[1]]["BELAY"]):
            losses = dict(by_rate(found[name], method))
            cells += [f"{losses[ema.rate * times]:.3f}" if ema.rate * times in losses else "" for times in (1, 4, 16)]
        body.append((name, f"{ema.rate:g}", *cells))
    return _table(("", "rate η", "EMA at η", "at 4 η", "at 16 η", "BELAY at η", "at 4 η", "at 16 η"), body)


def _ordered(found: dict[str, list[Trial]]) -> list[str]:
    return [f"{problem} {o}" for problem, one in PROBLEMS.items() for o in one.rates if f"{problem} {o}" in found]


def _oscillation(results: dict[str, Any]) -> str:
    return _table(
        ("spring", "inertia", "past its rest", "in theory", "largest difference from the closed form"),
        (
            (
                name,
                f"{one['inertia']:.4f}",
                f"{100 * one['overshoot']:.2f} %",
                f"{100 * one['overshoot in theory']:.2f} %",
                f"{one['largest difference from theory']:.0e}",
            )
            for name, one in results.items()
        ),
    )


def _noise(results: list[dict[str, Any]]) -> str:
    return _table(
        ("h", "s", "order", "inertia", "variance of x", "in theory", "of e", "in theory"),
        (
            (
                f"{one['h']:g}",
                f"{one['s']:g}",
                one["order"] if one["s"] else "no spring",
                f"{one['inertia']:g}",
                f"{one['x']:.3f}",
                f"{one['x in theory']:.3f}",
                f"{one['e']:.4f}",
                f"{one['e in theory']:.4f}",
            )
            for one in results
        ),
    )


def _stable(results: list[dict[str, Any]]) -> str:
    by_s: dict[float, dict[str, Any]] = {}
    for one in results:
        by_s.setdefault(one["s"], {})[one["order"]] = one

    def cells(one: dict[str, Any] | None) -> tuple[str, str]:
        return ("", "") if one is None else (f"{one['seen']:.3f}", f"{one['theory']:.3f}")

    return _table(
        ("s", "implicit: h seen", "in theory", "explicit: h seen", "in theory"),
        ((f"{s:g}", *cells(orders.get("implicit")), *cells(orders.get("explicit"))) for s, orders in by_s.items()),
    )


def _quadratic(results: list[dict[str, Any]]) -> str:
    return _table(
        ("method", "least loss", "at rate", "half-life", "rates within 5 %", "within a factor of 2"),
        (
            (
                one["method"],
                f"{one['loss']:.4f}" + (f" ± {one['standard error']:.4f}" if "standard error" in one else ""),
                f"{one['rate']:.3g}",
                "" if one["half-life"] is None or one["method"] == "last" else f"{one['half-life']:.0f}",
                f"× {one['rates within 5 %']:.3g}",
                f"× {one['rates within a factor of 2']:.3g}",
            )
            for one in sorted(results, key=lambda one: float(one["loss"]))
        ),
    )


def _replayed_quadratics(results: list[dict[str, Any]]) -> str:
    curvatures = [name for name in results[1] if name != "condition"]
    return _table(
        ("condition", "curvature ηλ/a", *curvatures),
        (
            (
                f"{one['condition']:g}",
                f"{one['ηλ']:.0e}" if "ηλ" in one else "",
                *(f"{one[name]:.2f}" for name in curvatures),
            )
            for one in results
        ),
    )


def _replayed(network: dict[str, Any]) -> str:
    return _table(
        ("curvature", "replay to run", "that EMA to run", "replay to that EMA", "loss, replay", "loss, that EMA"),
        (
            (
                f"{one['curvature']:g}",
                f"{one['replay from the BELAY run']:.2f}",
                f"{one['EMA of equal lag from the BELAY run']:.2f}",
                f"{one['replay from that EMA']:.3f}",
                _spread(one["loss of the replay"]),
                _spread(one["loss of that EMA"]),
            )
            for one in network["curvature"]
        ),
    )


def _sparse(results: list[dict[str, Any]]) -> str:
    return _table(
        ("saved every", "away from the EMA of every step", "loss"),
        (
            (f"{one['every']} steps", f"{one['from the EMA of every step']:.2f}", _spread(one["loss"]))
            for one in results
        ),
    )


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f} ± {math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)):.3f}"


# ---- pictures


def _picture(name: str, wide: int, high: int, size: tuple[float, float], fill: Callable[[list[Axes]], None]) -> None:
    figure, axes = pyplot.subplots(high, wide, figsize=size, squeeze=False, layout="constrained")
    fill([one for row in axes for one in row])
    figure.savefig(DOCS / "evidence" / f"{name}.svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _rates(found: dict[str, list[Trial]]) -> None:
    """Test loss over the rate, a panel for each problem and optimizer."""
    names = _ordered(found)

    def fill(axes: list[Axes]) -> None:
        for axis, name in zip(axes, names, strict=False):
            optimizer = name.split()[1]
            least = math.inf
            for label, method in _DRAWN[optimizer].items():
                points = [(rate, loss) for rate, loss in by_rate(found[name], method) if math.isfinite(loss)]
                if not points:
                    continue
                least = min([least, *(loss for _, loss in points)])
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=3,
                    color=_COLOURS[label],
                    label=label if label != "BELAY" else "BELAY (stiffness)",
                )
            axis.set(xscale="log", title=name.replace(" ", ", "), xlabel="rate", ylim=(0.9 * least, 3 * least))
            axis.xaxis.set_minor_formatter(NullFormatter())
            if "bytes" in name:
                axis.set_ylim(0.98 * least, 1.4 * least)
        for axis in axes[len(names) :]:
            axis.axis("off")
        axes[0].set_ylabel("test loss")
        axes[4].set_ylabel("test loss")
        handles, labels = axes[1].get_legend_handles_labels()
        axes[len(names)].legend(handles, labels, loc="center")

    _picture("rates", 4, 2, (10, 5), fill)


def _along(found: dict[str, list[Trial]]) -> None:
    """Test loss along the way, each at the rate where it ends best."""
    names = [name for name in ("noisy SGD", "noisy AdamW", "conv AdamW", "bytes AdamW") if name in found]

    def fill(axes: list[Axes]) -> None:
        for axis, name in zip(axes, names, strict=False):
            for label, method in _DRAWN[name.split()[1]].items():
                trial = min((one for one in found[name] if one.method == method), key=lambda one: one.loss)
                own = trial.along["test"]
                if label == "EMA":  # of the plain run it is another one that is followed
                    best = [one for one in found[name] if one.along["test"] and one.family == "EMA"]
                    own = min(best, key=lambda one: one.loss).along["test"]
                if own:
                    shares = [100 * (i + 1) / CHECKS for i in range(len(own))]
                    losses = [sum(seeds) / len(seeds) for seeds in own]
                    axis.plot(shares, losses, color=_COLOURS[label], label=label, marker="o", markersize=3)
            axis.set(title=name, xlabel="% of the steps")
        axes[0].set_ylabel("test loss")
        axes[1].legend()

    _picture("along", 4, 1, (10, 2.6), fill)


def _mechanics(results: dict[str, Any]) -> None:
    """The average after a jump of the weights, and the largest rate."""
    if not results:
        return

    def fill(axes: list[Axes]) -> None:
        first, second = axes
        for (name, one), colour in zip(results["oscillation"].items(), _COLOURS.values(), strict=False):
            first.plot(range(1, len(one["seen"]) + 1), one["seen"], label=name, color=colour)
        first.axhline(1, color=_GREY, linewidth=0.8, linestyle=":")
        first.set(title="the model jumps from 0 to 1, the average follows", xlabel="steps")
        first.legend()
        for order, colour in (("implicit", _COLOURS["BELAY"]), ("explicit", _COLOURS["explicit"])):
            points = [
                (one["s"], one["seen"], one["theory"]) for one in results["stable range"] if one["order"] == order
            ]
            strength, seen, theory = zip(*points, strict=True)
            second.plot(strength, theory, color=colour, label=f"{order}, theory")
            second.plot(strength, seen, "o", color=colour, markersize=4, label=f"{order}, seen")
        second.axhline(2, color=_GREY, linewidth=0.8, linestyle=":")
        second.set(title="rate times curvature below which nothing grows", xlabel="strength of the spring, s")
        second.legend()

    _picture("mechanics", 2, 1, (9, 3), fill)
