"""`belay average` over URLs: the same bytes as from this machine, whatever the servers do meanwhile, or an error."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli import average
from tests.conftest import Ran, everything_in, make_run
from tests.fakes.hub import HubServer, Request, hub_client
from tests.fakes.web import Web
from tests.storage.remote.serving import TOKEN

STEPS = (100, 200, 300, 400)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a tensor of several chunks, and what an average of it is from this machine."""
    run = make_run(tmp_path / "run", STEPS)
    for path in run.glob("checkpoint-*/model.safetensors"):
        g = torch.Generator().manual_seed(len(path.parent.name) + int(path.parent.name[-3:]))
        save_file({**load_file(path), "big": torch.randn(300, 1001, generator=g)}, path, metadata={"format": "pt"})
    average([run], "local")
    return run


def same_as_local(output: str) -> None:
    names = [name for name in everything_in(Path("local")) if not name.startswith(".belay")]
    assert [name for name in everything_in(Path(output)) if not name.startswith(".belay")] == names
    for name in names:
        assert Path(output, name).read_bytes() == Path("local", name).read_bytes(), name


def same_weights(output: str) -> None:
    found, expected = load_file(Path(output)), load_file("local/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("argument", ["s3://bucket/run", "s3://bucket/run/checkpoint-{}"])
def test_from_s3(run: Path, s3: Any, belay: Callable[..., Ran], argument: str) -> None:
    s3.put(str(run), "bucket/run", recursive=True)
    arguments = [argument.format(step) for step in STEPS] if "{}" in argument else [argument]
    ran = belay("average", *arguments, "-o", "out")
    assert ran.code == 0, ran.err
    same_as_local("out")
    given = [word for argument in arguments for word in ("--checkpoints", argument)]
    assert belay("verify", "out", "--sample", "all", *given).code == 0
    asked_for_nothing = belay("verify", "out")
    assert asked_for_nothing.code == 1
    assert "the checkpoints lay at URLs, which are asked only if given: --checkpoints" in asked_for_nothing.out


@pytest.fixture
def served(run: Path, web: Web) -> list[str]:
    for step in STEPS:
        web.files[f"/run/step-{step}.safetensors"] = (run / f"checkpoint-{step}/model.safetensors").read_bytes()
    return [f"{web.endpoint}/run/step-{step}.safetensors" for step in STEPS]


def test_from_a_web_server(served: list[str], belay: Callable[..., Ran], home: Path) -> None:
    before = everything_in(home)
    ran = belay("average", *served, "-o", "out.safetensors")
    assert ran.code == 0, ran.err
    same_weights("out.safetensors")
    assert everything_in(home) == before


def test_a_fifth_of_all_requests_fail(
    served: list[str], web: Web, belay: Callable[..., Ran], waits: list[float]
) -> None:
    for seed, how in enumerate[str | int]((503, "cut during", "refused", "short")):
        web.fail_share(0.05, how, seed=seed)
    ran = belay("average", *served, "-o", "out.safetensors")
    assert ran.code == 0, ran.err
    assert waits
    same_weights("out.safetensors")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("ignore ranges", "its server ignores ranges"),
        ("short range", "was answered with fewer bytes than those asked for, 9 times in a row"),
        (404, "does not exist"),
    ],
)
def test_servers_that_will_not_do(
    served: list[str], web: Web, belay: Callable[..., Ran], how: str | int, said: str
) -> None:
    web.fail("GET .*step-300", how, times=math.inf)
    ran = belay("average", *served, "-o", "out.safetensors", "-q")
    assert ran.code == 1
    assert "step-300.safetensors: " in ran.err
    assert said in ran.err or how == 404
    assert os.listdir(".") == ["local"]


def test_an_object_that_is_swapped_half_way(served: list[str], web: Web, belay: Callable[..., Ran]) -> None:
    data = bytearray(web.files["/run/step-200.safetensors"])
    data[-1] ^= 1

    def swap(request: Request) -> None:
        web.files["/run/step-200.safetensors"] = bytes(data)

    web.fail("GET .*step-200", swap, skip=4)
    ran = belay("average", *served, "-o", "out.safetensors", "-q")
    assert ran.code == 1
    assert "step-200.safetensors: changed on its server while it was read" in ran.err
    assert os.listdir(".") == ["local"]


@pytest.fixture
def hub(run: Path, tmp_path: Path, home: Path) -> Iterator[HubServer]:
    with HubServer({TOKEN: "read"}, redirect=True) as server, hub_client(server, home, TOKEN):
        files = {
            f"step{step}": {
                name: (run / f"checkpoint-{step}" / name).read_bytes()
                for name in ("model.safetensors", "config.json", "tokenizer.json")
            }
            for step in STEPS
        }
        server.make_repo("org/model", {"main": {"README.md": b"---\nlicense: mit\n---\n"}, **files}, private=True)
        yield server


URLS = [f"hf://org/model@step{step}" for step in STEPS]


def test_from_revisions_of_the_hub(hub: HubServer, belay: Callable[..., Ran], tmp_path: Path, home: Path) -> None:
    before = everything_in(home)
    ran = belay("average", *URLS, "-o", "out", "--json")
    assert ran.code == 0, ran.out
    assert everything_in(home) == before
    same_weights("out/model.safetensors")
    assert [entry["step"] for entry in ran.json["checkpoints"]] == list(STEPS)
    series = json.loads(Path("out/belay.json").read_text())["series"]
    repo = hub.repo("org/model")
    assert [(entry["repo"], entry["revision"]) for entry in series] == [
        ("org/model", repo.refs[f"refs/heads/step{step}"]) for step in STEPS
    ]
    assert TOKEN not in ran.out + ran.err + "".join(p.read_text() for p in Path("out").rglob("*.json"))
    assert Path("out/config.json").read_bytes() == (tmp_path / "run/checkpoint-400/config.json").read_bytes()
    assert belay("verify", "out", "--checkpoints", tmp_path / "run").code == 0


def test_revisions_that_serve_the_same_file(hub: HubServer, belay: Callable[..., Ran]) -> None:
    files = hub.repo("org/model").files("step200")
    hub.repo("org/model").write(files, "step300", whole=True)
    ran = belay("plan", *URLS)
    assert ran.code == 0
    assert "warning: step300 looks the same as step200: was it saved or downloaded wrongly?\n" in ran.err
    ran = belay("average", *URLS, "-o", "out")
    assert ran.err.count("looks the same") == 1


def test_a_missing_revision(hub: HubServer, belay: Callable[..., Ran]) -> None:
    ran = belay("average", *URLS, "hf://org/model@step500", "-o", "out")
    assert ran.code == 1
    assert "hf://org/model@step500: has no revision step500" in ran.err


def test_plan_reads_no_weight(hub: HubServer, belay: Callable[..., Ran]) -> None:
    assert belay("plan", *URLS).code == 0
    size = len(hub.repo("org/model").files("step100")["model.safetensors"])
    read = [r for r in hub.log if r.method == "GET" and "storage" in r.path]
    assert read
    for request in read:
        low, _, high = request.headers["Range"].removeprefix("bytes=").partition("-")
        assert int(high) - int(low) < size / 2
