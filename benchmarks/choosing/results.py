"""The results as a JSON file: a line a setting and seed, sorted, so that a change shows as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "results.json"


def read(path: Path) -> dict[str, Any]:
    """What was written there, or nothing."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def add(kept: dict[str, Any], name: str, seed: int, result: dict[str, Any]) -> None:
    """Put the result of one seed in a setting into what is kept. Losses lose their labels: the lags have them."""
    labels = list(result["lags"])
    one = kept.setdefault(name, {})
    if one.get("lags") != result["lags"]:
        one.clear()  # of other candidates
    one |= {key: result[key] for key in ("checkpoints", "span", "lags")}
    one.setdefault("seeds", {})[str(seed)] = {
        "losses": [result["losses"][label] for label in labels],
        "best": result["best"],
    }


def write(path: Path, kept: dict[str, Any]) -> None:
    """The whole file again."""
    lines = []
    for name, one in sorted(kept.items()):
        head = ",".join(f"{json.dumps(key)}:{_short(one[key])}" for key in ("checkpoints", "span", "lags"))
        seeds = sorted(one["seeds"].items(), key=lambda item: int(item[0]))
        rows = ",\n".join(f"{json.dumps(seed)}:{_short(result)}" for seed, result in seeds)
        lines.append(f'{json.dumps(name)}: {{{head},\n"seeds":{{\n{rows}}}}}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
