"""`--json`: one object, of success and of failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from belay_cli import __version__, average
from belay_cli.engine.arithmetic import chosen_engine
from belay_cli.planning.plan import TORCH
from tests.conftest import Ran, make_files

REPORT = {
    "command": str,
    "version": str,
    "device": str,
    "engine": str,
    "threads": int,
    "processes": int,
    "output": str,
    "seconds": float,
    "rule": dict,
    "checkpoints": list,
    "summary": dict,
    "tensors": dict,
    "bytes_read": int,
    "bytes_written": int,
    "planned_memory": int,
    "peak_memory": int,
    "files": list,
    "warnings": list,
    "notes": list,
    "discarded_energy": type(None),
    "estimate": dict if chosen_engine() != TORCH else type(None),
    "format": str,
    "published": type(None),
}


def test_json_of_average_and_plan(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    options = ["-o", "out.safetensors", "--json", "-m", "belay", "--damping-ratio", "2", "--drop", "scale"]
    planned = belay("plan", *paths, *options).json
    ran = belay("average", *paths, *options)
    assert ran.err == ""
    done = ran.json
    assert {name: type(value) for name, value in done.items()} == REPORT
    assert done["version"] == __version__
    assert done["rule"].keys() == {
        *("method", "unit", "decay", "half_life", "feedback", "curvature", "inertia", "debias", "damping_ratio"),
        "a",
    }
    assert done["checkpoints"][0].keys() == {"name", "path", "step", "tick", "coefficient", "bytes"}
    assert done["tensors"] == {"averaged": 4, "last": 1, "dropped": 1}
    assert done["bytes_written"] == Path("out.safetensors").stat().st_size == done["files"][0]["bytes"]
    assert sum(entry["coefficient"] for entry in done["checkpoints"]) == pytest.approx(1, abs=1e-15)
    unknown = {"command", "device", "seconds", "peak_memory", "published", "notes"}
    assert {k: v for k, v in done.items() if k not in unknown} == {k: v for k, v in planned.items() if k not in unknown}
    assert [planned[name] for name in ("device", "seconds", "peak_memory")] == [None] * 3
    assert planned["command"] == "plan"


def test_an_error_as_json(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("average", tmp_path / "nowhere", "--json")
    assert (ran.code, ran.err) == (1, "")
    path = str(tmp_path / "nowhere")
    assert ran.json == {"error": {"message": f"{path}: does not exist", "file": path, "tensor": None, "hint": None}}
    usage = belay("average", "--json", "--threads", "many")
    assert usage.code == 2
    assert usage.json["error"]["hint"] == "belay average --help"


def test_json_is_one_object_though_the_picture_fails(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    make_files(tmp_path)
    for plot, code, message in (
        ("w.jpg", 2, "w.jpg is no name for a picture"),
        ("nowhere/w.png", 1, "nowhere/w.png: No such file or directory"),
    ):
        ran = belay("plan", tmp_path, "--json", "--plot", plot)
        assert ran.code == code
        assert ran.json["error"]["message"] == message


def test_json_of_a_failure_has_an_error(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    ran = belay("inspect", *paths, "nowhere", "--json")
    assert ran.code == 1
    assert ran.json["error"]["message"] == "nowhere: does not exist"
    assert ran.json["problems"][0] == ran.json["error"]
    average(paths, "out.safetensors")
    ran = belay("verify", "out.safetensors", "--json")
    assert ran.code == 1
    assert ran.json["verified"] is False
    assert ran.json["error"]["message"].startswith("out.safetensors: is not verified: a file does not say where")
