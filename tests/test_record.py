"""belay.json: the record of how an average was made."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import __version__ as safetensors_version

from belay_cli import average
from tests.conftest import make_run, tensors


def test_belay_json_is_the_record(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    average([run], "out", method="belay", last="scale")
    document = json.loads(Path("out/belay.json").read_text())
    assert document["schema"] == 1
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
