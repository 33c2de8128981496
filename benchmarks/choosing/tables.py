"""The results as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from choosing import results
from choosing.candidates import DEFAULT, EQUAL_LAG, HALF_LIVES, LAST
from choosing.choices import Array, Estimate, Measured, Picked, estimate
from choosing.judging import BEST_OF
from choosing.settings import BYTES, DIGITS, SETTINGS, Setting
from choosing.text import FIRST

REFERENCE = f"ema {EQUAL_LAG}"
EMAS = [f"ema {percent}%" for percent in HALF_LIVES]
FAMILIES = {
    "EMA": ["ema"],
    "EMA, debiased": ["debiased-ema"],
    "BELAY": ["belay"],
    "uniform": ["uniform"],
    "WSM linear": ["wsm-linear"],
    "WSM cosine": ["wsm-cosine"],
    "WSM 1-sqrt": ["wsm-1-sqrt"],
    "power": ["power"],
    "polynomial": ["polynomial"],
    "BEMA, multiplier 1/spacing": ["bema"],
    "BEMA, defaults": ["bema-defaults"],
    "last checkpoint": [LAST],
}
FIXED = {
    "EMA 5 % (default)": DEFAULT,
    "EMA 7 %": "floored-ema 7%",
    "EMA 10 %": "floored-ema 10%",
    "EMA 20 %": "floored-ema 20%",
    "EMA 5 %, any spacing": "ema 5%",
    "EMA 10 %, any spacing": "ema 10%",
    "uniform, last half": "uniform 50%",
    "WSM linear, last half": "wsm-linear 50%",
    "power 0.1": "power 0.1",
    "last": LAST,
}
Rows = Iterable[Sequence[str]]


def write(path: Path, out: Path) -> None:
    """Read the JSON, write the Markdown."""
    kept = results.read(path)
    found = [(one, Measured.of(one.name, kept[one.name])) for one in SETTINGS if one.name in kept]
    parts = [_head(found), _lags(found)]
    parts += [_methods(one, of) for one, of in found if one in (DIGITS, BYTES)]
    parts += [_optimism(found), _gains(found), _regrets(found)]
    out.write_text("\n".join(parts), encoding="utf-8")


def _head(found: Sequence[tuple[Setting, Measured]]) -> str:
    runs = ", ".join({one.problem: f"{of.runs} of `{one.problem}`" for one, of in found}.values())
    return f"""# Choosing: the tables

Made by `python benchmarks/choosing`, from the losses in `benchmarks/choosing/results.json`. Runs in each setting, which
differ in the seed: {runs}.

- `digits` is the network of the sample run: SGD, {DIGITS.steps} steps, a checkpoint every {DIGITS.every}.
- `bytes` is a byte-level transformer of 120 k parameters on the sources of Python's standard library: AdamW,
  {BYTES.steps} steps, a checkpoint every {BYTES.every} from step {FIRST + BYTES.every} on.
- The schedule is constant, or falls from the first step (of `bytes` from step {FIRST}) to the last: cosine to 10 %,
  linear to zero.

Losses are held-out cross-entropy in nats, of an image or a byte. ± is the standard error over runs, of paired
differences where a difference is given. All runs of a problem share the held-out data, and what another sample of them
would do is not in the errors. Where something is chosen, two random quarters of the held-out data choose and the other
two report, in each of the six ways. Half-lives in % are of the span from the first checkpoint to the last.
"""


def _lags(found: Sequence[tuple[Setting, Measured]]) -> str:
    """Part A."""
    columns = ["setting", "last", *(f"{percent} %" for percent in HALF_LIVES), "best", "its lag", "within 1 SE", "fit"]
    rows = []
    for one, of in found:
        losses = {label: of.loss(label) for label in EMAS}
        best = min(losses, key=lambda label: float(losses[label].mean()))
        tied = [label for label in EMAS if label == best or _near(losses[label] - losses[best])]
        cells = [f"{losses[label].mean():.4f}" for label in EMAS]
        cells[EMAS.index(best)] = f"**{cells[EMAS.index(best)]}**"
        reach = f"{tied[0].split()[1]} to {tied[-1].split()[1]}" if len(tied) > 1 else "alone"
        percent = best.split()[1]
        steps = float(percent[:-1]) / 100 * of.span
        found_best = [f"{percent} = {steps:.0f} steps", f"{of.lags[best]:.0f}", reach, _fitted(of)]
        rows.append([one.short, f"{of.loss(LAST).mean():.4f}", *cells, *found_best])
    return f"""## The half-life of the EMA, by setting

Mean loss over runs on all held-out data, by half-life in % of the span. `best` is the smallest of the row, `its lag`
the mean lag in steps, `within 1 SE` the half-lives whose difference from the best is below its standard error, `fit`
the lag in steps at the minimum of a parabola in log lag through the best and its two neighbours. The spacings are
subsets of the same runs.

{_table(columns, rows)}"""


def _near(differences: Array) -> bool:
    mean, error = estimate(differences)
    return mean < error


def _fitted(of: Measured) -> str:
    losses = np.array([of.loss(label).mean() for label in EMAS])
    place = int(losses.argmin())
    if place in (0, len(EMAS) - 1):
        return f"at the {'short' if place == 0 else 'long'} end"
    near = slice(place - 1, place + 2)
    square, line, _ = np.polyfit(np.log([of.lags[label] for label in EMAS[near]]), losses[near], 2)
    return f"{np.exp(-line / (2 * square)):.0f}"


def _methods(one: Setting, of: Measured) -> str:
    """Part B."""
    ema = of.by_run(EMAS).reported
    fixed = of.by_setting(EMAS).reported
    rows = []
    for name, families in FAMILIES.items():
        labels = of.family(*families)
        each, once = of.by_run(labels), of.by_setting(labels)
        same = f"{families[0]} same-lag" if name != "EMA" else REFERENCE
        cells = [name, str(len(labels)), _most(once), f"{each.reported.mean():.4f}"]
        cells += [_mills(each.reported - ema), _mills(once.reported - fixed)]
        if same in of.lags:
            cells += [f"{of.lags[same]:.0f}", _mills(of.loss(same) - of.loss(REFERENCE))]
        rows.append([*cells, *[""] * (8 - len(cells))])
    for count in BEST_OF:
        chosen = of.best_checkpoints(count).reported
        rows.append([f"mean of the best {count}", "", "", f"{chosen.mean():.4f}", _mills(chosen - ema), "", "", ""])
    columns = ["method", "tried", "chosen most", "loss", "− EMA, each run chooses", "− EMA, one choice for all"]
    columns += ["lag", f"− EMA {EQUAL_LAG}, equal lag"]
    return f"""## Methods at {one.short}

{of.runs} runs. Differences in 1e-3 nats, ± the paired standard error; the EMA's own choice is among {len(EMAS)}
half-lives. `chosen most`: by all runs together. The last two columns: the mean lag in steps, set to that of the EMA of
half-life {EQUAL_LAG} ({of.lags[REFERENCE]:.0f}) or the nearest that whole checkpoints allow, and the difference there
on all held-out data, where nothing is chosen.

{_table(columns, rows)}"""


def _optimism(found: Sequence[tuple[Setting, Measured]]) -> str:
    """Part C."""
    rows = []
    for one, of in found:
        if not of.best[0]:
            continue
        pools = {
            "EMAs": EMAS[1:],
            "EMA, uniform, power, last": of.family("ema", "uniform", "power", LAST),
            "all but WSM cosine and 1-sqrt": [
                label
                for label in of.lags
                if not label.endswith("same-lag") and label.split()[0] not in ("wsm-cosine", "wsm-1-sqrt")
            ],
        }
        picked = {f"{len(labels)}: {name}": of.by_run(labels) for name, labels in pools.items()}
        picked |= {f"best {count} of {of.checkpoints} checkpoints": of.best_checkpoints(count) for count in BEST_OF}
        base = of.loss(REFERENCE)
        rows += [
            [one.short, name, *map(_mills, (base - p.chosen, base - p.reported, p.reported - p.chosen))]
            for name, p in picked.items()
        ]
    columns = ["setting", "candidates", "gain, data that chose", "gain, other data", "optimism"]
    return f"""## What choosing costs

Gain over the EMA of half-life {EQUAL_LAG}, which is a fixed choice, in 1e-3 nats: on the half that chose, on the other
half, and the difference of the two, the optimism. Each run chooses for itself.

{_table(columns, rows)}"""


def _gains(found: Sequence[tuple[Setting, Measured]]) -> str:
    """Part D."""
    rows = []
    for one, of in found:
        if one.every != DIGITS.every:
            continue
        last = of.loss(LAST)
        averages = [label for label in of.lags if label != LAST and not label.endswith("same-lag")]
        cells = [_mills(last - of.loss(DEFAULT))]
        cells += [_mills(last - p.reported) for p in (of.by_run(EMAS), of.by_setting(EMAS), of.by_run(averages))]
        better = sum(last - of.by_setting(EMAS).reported > 0)
        rows.append([one.short, f"{last.mean():.4f}", *cells, f"{better} of {of.runs}"])
    columns = ["setting", "last", "default", "best EMA, each run chooses", "best EMA, one choice for all"]
    columns += ["best average of all, each run chooses", "runs in which one EMA for all is better"]
    return f"""## Gain over the last checkpoint

Loss of the last checkpoint less that of an average, in 1e-3 nats, on data that did not choose: positive where the
average is better.

{_table(columns, rows)}"""


def _regrets(found: Sequence[tuple[Setting, Measured]]) -> str:
    """Part E."""
    regrets = {one: _regret(of) for one, of in found}
    rows = [[one.short, *(f"{_percent(estimate(of))}" for of in each.values())] for one, each in regrets.items()]
    for problem in dict.fromkeys(one.problem for one in regrets):
        for kind, wanted in (("constant rate", {"constant"}), ("falling rate", {"cosine", "linear"})):
            taken = [each for one, each in regrets.items() if one.problem == problem and one.schedule in wanted]
            if taken:
                means = [_percent(estimate(np.mean([each[name] for each in taken], axis=0))) for name in FIXED]
                rows.append([f"**mean: {problem}, {kind}, {len(taken)} settings**", *means])
    every = [f"{np.mean([each[name].mean() for each in regrets.values()]):+.1f}" for name in FIXED]
    worst = [f"{max(each[name].mean() for each in regrets.values()):+.1f}" for name in FIXED]
    rows += [["**mean of all settings**", *every], ["**largest**", *worst]]
    return f"""## Fixed rules against the best EMA

Loss of a rule that nobody chose, less that of the EMA whose half-life is chosen once for the setting on other data, in
% of the latter. The half-life of an EMA is a share of the span, at least the spacing of the checkpoints except under
`any spacing`; the windows are shares of the checkpoints.

{_table(["setting", *FIXED], rows)}"""


def _regret(of: Measured) -> dict[str, Array]:
    """In %, [S], by the name of the rule."""
    best = of.by_setting(EMAS).reported
    return {name: 100 * (of.loss(label) - best) / best.mean() for name, label in FIXED.items()}


def _most(picked: Picked) -> str:
    return picked.labels.most_common(1)[0][0].partition(" ")[2] or "—"


def _mills(differences: Array) -> str:
    """In 1e-3."""
    mean, error = estimate(1000 * differences)
    return f"{mean:+.1f} ± {error:.1f}" if differences.any() else "0"


def _percent(found: Estimate) -> str:
    return f"{found.mean:+.1f} ± {found.error:.1f}"


def _table(columns: Sequence[str], rows: Rows) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
