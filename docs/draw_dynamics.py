"""Draw docs/dynamics.svg: the two springs, and the weights that come of them. `python docs/draw_dynamics.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from belay_cli.rules import Belay, Ema

Point = tuple[float, float]

_STEPS = range(0, 1001, 10)
_HALF_LIFE = 100
_CURVES = (
    ("EMA", "ema", Ema(half_life=_HALF_LIFE)),
    ("EMA, damping ratio 0.5", "inertia", Ema(half_life=_HALF_LIFE, damping_ratio=0.5)),
    ("BELAY", "belay", Belay(half_life=_HALF_LIFE)),
)

# Mid-tones that are legible on white and on black, so that one picture serves both.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #808890 }
.name { font-weight: 600; font-size: 15px }
.path { stroke: #808890; stroke-dasharray: 2 4; fill: none; stroke-width: 1.5 }
.spring { stroke: #808890; fill: none; stroke-width: 1.5 }
.model { fill: #d9822b }
.average { fill: #2f8fd0 }
.pull { stroke-width: 2.5; fill: none; marker-end: url(#head) }
.axis { stroke: #808890; stroke-width: 1 }
.curve { fill: none; stroke-width: 2.2 }
.ema { stroke: #2f8fd0 } .belay { stroke: #d9822b } .inertia { stroke: #3aa675; stroke-dasharray: 6 4 }
text.ema { fill: #2f8fd0; stroke: none } text.belay { fill: #d9822b; stroke: none }
text.inertia { fill: #3aa675; stroke: none }
"""


def main() -> None:
    """Write the picture beside this file."""
    parts = [*_springs(24, 26, "EMA", both=False), *_springs(24, 176, "BELAY", both=True), *_weights(440, 30, 340, 230)]
    head = '<path d="M0 0 L7 3.5 L0 7 z" fill="#808890"/>'
    size = 'viewBox="0 0 7 7" refX="5" refY="3.5" markerWidth="5" markerHeight="5"'
    marker = f'<marker id="head" {size} orient="auto">{head}</marker>'
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 320" role="img" '
        'aria-label="Model and EMA weights as two particles joined by a spring, and the weight of each checkpoint">\n'
        f"<style>{_STYLE}</style>\n<defs>{marker}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )
    (Path(__file__).parent / "dynamics.svg").write_text(svg, encoding="utf-8")


def _springs(x: float, y: float, name: str, *, both: bool) -> list[str]:
    """One pair of particles: the model weights on their path, the average behind, and which ends the spring pulls."""
    model, average = (x + 300, y + 38), (x + 120, y + 92)
    path = [(x + 20 + 3.2 * i, y + 70 - 0.35 * i + 9 * math.sin(i / 5)) for i in range(101)]
    says = "the spring pulls both ends" if both else "the spring pulls the average only"
    pulls = [_pull(average, model)] + ([_pull(model, average)] if both else [])
    return [
        _text(x, y, name, "name"),
        _text(x + 70, y, says),
        _line(path, "path"),
        _line(_coil(average, model), "spring"),
        *pulls,
        f'<circle class="model" cx="{model[0]}" cy="{model[1]}" r="8"/>',
        f'<circle class="average" cx="{average[0]}" cy="{average[1]}" r="8"/>',
        _text(model[0] + 14, model[1] - 4, "model weights"),
        _text(average[0] - 96, average[1] + 5, "average"),
    ]


def _coil(start: Point, end: Point, turns: int = 9, width: float = 6) -> list[Point]:
    length = math.dist(start, end)
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    points = [start]
    for i in range(2 * turns + 1):
        along, side = length * (0.2 + 0.6 * i / (2 * turns)), width * (1 if i % 2 else -1)
        points.append((start[0] + ux * along - uy * side, start[1] + uy * along + ux * side))
    return [*points, end]


def _pull(on: Point, towards: Point) -> str:
    length = math.dist(on, towards)
    ux, uy = (towards[0] - on[0]) / length, (towards[1] - on[1]) / length
    x, y = on[0] + 12 * uy + 10 * ux, on[1] - 12 * ux + 10 * uy
    return f'<path class="pull" stroke="#808890" d="M{x:.1f} {y:.1f} L{x + 40 * ux:.1f} {y + 40 * uy:.1f}"/>'


def _weights(x: float, y: float, width: float, height: float) -> list[str]:
    """The weight of every checkpoint by its age, for three rules of one half-life."""
    rows = [options.resolve(list(_STEPS), "step").coefficients(list(_STEPS))[1:] for _, _, options in _CURVES]
    top, bottom = max(max(row) for row in rows), min(0.0, *(min(row) for row in rows))
    scale = height / (top - bottom)
    zero = y + top * scale
    parts = [
        _text(x, y - 14, "weight of each checkpoint", "name"),
        f'<path class="axis" d="M{x} {zero:.1f} H{x + width} M{x + width} {y} V{y + height:.1f}"/>',
        _text(x, y + height + 20, "1000 steps ago"),
        _text(x + width - 24, y + height + 20, "now"),
    ]
    for number, ((label, kind, _), row) in enumerate(zip(_CURVES, rows, strict=True)):
        # The last checkpoint stands for half an interval; drawn at its full height the curve is smooth.
        points = [(x + width * (i + 1) / len(row), zero - c * scale) for i, c in enumerate(row[:-1])]
        parts.append(_line(points, f"curve {kind}"))
        parts.append(_text(x, y + 16 + 20 * number, label, kind))
    return parts


def _line(points: Sequence[Point], kind: str) -> str:
    return f'<path class="{kind}" d="M' + " L".join(f"{px:.1f} {py:.1f}" for px, py in points) + '"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{text}</text>'


if __name__ == "__main__":
    main()
