"""belay.json: the record of how an average was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import __version__ as safetensors_version

from belay_cli import average
from belay_cli.errors import CheckpointError
from belay_cli.record import parse
from belay_cli.show.described import choice
from tests.conftest import make_run, tensors


def test_belay_json_is_the_record(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    average([run], "out", method="belay", last="scale")
    document = json.loads(Path("out/belay.json").read_text())
    assert document["schema"] == 2
    assert document.keys() == {
        *("schema", "version", "rule", "series", "policies", "dtype", "accumulation", "command", "copies", "versions"),
        *("aliases", "digests"),
    }
    assert document["versions"] == {"torch": torch.__version__.partition("+")[0], "safetensors": safetensors_version}
    assert (document["dtype"], document["accumulation"]) == ("same", "float64")
    assert document["policies"] == {"average": [], "last": ["scale"], "drop": []}
    assert document["digests"].keys() == tensors().keys()
    assert [entry["name"] for entry in document["series"]] == [f"checkpoint-{n}" for n in (100, 200, 300, 400)]
    assert str(tmp_path) not in json.dumps(document)
    local = json.loads(Path("out/.belay/local.json").read_text())
    assert local["checkpoints"][0] == str(run / "checkpoint-100")


CHOICE = {"metric": "loss", "higher_is_better": False, "candidates": 7, "score": 0.5, "last_score": 0.6}


def test_how_a_sweep_chose_it_is_read_back(tmp_path: Path) -> None:
    average([make_run(tmp_path / "run")], "out")
    document = json.loads(Path("out/belay.json").read_text())
    assert parse({**document, "chosen": CHOICE}, "belay.json").chosen == CHOICE
    assert "of 7 candidates: `loss` 0.5 (lower is better); the last checkpoint has 0.6." in choice(CHOICE)


@pytest.mark.parametrize(
    "change",
    [
        {"score": float("nan")},
        {"score": "0.5"},
        {"candidates": -1},
        {"higher_is_better": 1},
        {"metric": 3},
        {"more": 1.0},
        {"score": None},
    ],
)
def test_what_no_sweep_says_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    average([make_run(tmp_path / "run")], "out")
    document = json.loads(Path("out/belay.json").read_text())
    told = {name: value for name, value in {**CHOICE, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match="has a damaged record of how it was made"):
        parse({**document, "chosen": told}, "belay.json")
