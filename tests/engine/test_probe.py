"""The rates of this machine: where a sample tells them, and how little of the files it reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from belay_cli import Ema
from belay_cli.api.average import prepare
from belay_cli.api.estimate import estimated, work_of
from belay_cli.api.keywords import plan_options
from belay_cli.engine import probe as probing
from belay_cli.engine.kernel import KERNELS, Kernel
from belay_cli.engine.probe import probe
from belay_cli.planning import Plan
from belay_cli.show.listener import Nobody
from tests.conftest import make_adapter, make_files

pytestmark = pytest.mark.skipif(not KERNELS, reason="the kernel was not built")

MB = 1 << 20


def planned(paths: list[Path], **options: Any) -> Plan:
    chosen = plan_options({"threads": 2, "device": "cpu", "unit": "checkpoint", **options})
    return prepare(paths, [Ema()], None, *chosen, Nobody())


@pytest.fixture
def large(tmp_path: Path) -> list[Path]:
    """Five checkpoints of 4 MB and a little."""
    paths = [tmp_path / "large" / f"step-{i}.safetensors" for i in range(1, 6)]
    paths[0].parent.mkdir()
    for path in paths:
        save_file({"w": np.ones((1024, 1024), np.float32), "b": np.ones(100, np.float32)}, path)
    return paths


def test_a_few_bytes_are_not_worth_a_sample(tmp_path: Path) -> None:
    plan = planned(make_files(tmp_path / "small"))
    shutil.rmtree(tmp_path / "small")  # no file is touched
    assert probe(plan) == probing._ASSUMED
    assert estimated(plan) is not None


def test_rates_of_a_larger_series(large: list[Path]) -> None:
    rates = probe(planned(large))
    assert rates is not None
    assert (rates.threads, rates.store, rates.write) == (2, probing.STORE, probing.WRITE)
    assert min(rates.read, rates.arithmetic, rates.sha256) > 1e6
    found = estimated(planned(large))
    assert found is not None
    assert found.seconds == sum(found.parts.values()) > 0


@pytest.mark.parametrize(("asked", "most"), [(None, 5 * MB), (16 * MB, 40 * MB)])
def test_a_sample_is_small(
    large: list[Path], monkeypatch: pytest.MonkeyPatch, asked: float | None, most: float
) -> None:
    """A thread reads what is its share, and at most to the end of the place where it is."""
    read: list[int] = []
    replay = Kernel.replay

    def counted(self: Kernel, places: Any, *others: Any, dtypes: tuple[str, str]) -> Any:
        read.append(len(places) * others[4] * 4)
        return replay(self, places, *others, dtypes=dtypes)

    monkeypatch.setattr(Kernel, "replay", counted)
    monkeypatch.setattr(probing, "_BLOCKS", 1)
    monkeypatch.setattr(probing, "_CALLS", 2)
    assert probe(planned(large), asked) is not None
    assert 0 < sum(read) <= most


@pytest.mark.parametrize(("long", "samples"), [(1e9, 1), (1e-9, 2)])
def test_a_long_run_is_worth_a_second_and_larger_sample(
    large: list[Path], monkeypatch: pytest.MonkeyPatch, long: float, samples: int
) -> None:
    asked: list[tuple[float, float]] = []
    replays = probing._Lane.replays

    def noted(self: Any, enough: float, seconds: float) -> float:
        asked.append((enough, seconds))
        return replays(self, enough, seconds)

    monkeypatch.setattr(probing._Lane, "replays", noted)
    monkeypatch.setattr(probing, "_LONG", long)
    assert probe(planned(large), 2 * MB, 0.05) is not None
    assert asked == [(MB, 0.05)] * 2 + [(4 * MB, 0.2)] * 2 * (samples - 1)


def test_a_sample_ends_with_its_time(large: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    replay = Kernel.replay

    def counted(self: Kernel, *arguments: Any, **more: Any) -> Any:
        calls.append(1)
        return replay(self, *arguments, **more)

    monkeypatch.setattr(Kernel, "replay", counted)
    assert probe(planned(large), 1e12, 0.0) is not None
    assert len(calls) == 2  # one of each thread


def test_where_a_sample_cannot_tell_nothing_is_said(
    large: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe(planned(large, device="cuda")) is None
    adapters = [tmp_path / "adapters" / f"checkpoint-{i}" for i in (1, 2)]
    for i, directory in enumerate(adapters):
        make_adapter(directory, i)
    assert probe(planned(adapters, lora="delta")) is None
    plan = planned(large)
    large[1].unlink()
    assert probe(plan) is None
    with monkeypatch.context() as changed:
        changed.setenv("BELAY_ENGINE", "torch")
        assert probe(planned(large[2:])) is None


def test_what_a_run_does(large: list[Path]) -> None:
    plan = planned(large)
    work = work_of(plan)
    assert (work.read, work.written) == (plan.data_read, plan.bytes_written)
    assert (work.opens, work.tensors, work.synced) == (10, 2, True)
    assert (work.later, work.longest) == (4 * MB, 4 * MB)  # the small one is hashed when it is made
    headers = sum(file.data_start for checkpoint in plan.series.checkpoints for file in checkpoint.files)
    assert work.fingerprinted == 5 * 64 * 64 * 1024 + headers
    assert work_of(planned(large, sync=False)).later == 0
