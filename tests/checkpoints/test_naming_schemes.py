"""Every naming scheme of the table: the right order in whatever order it is given, or a refusal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import Checkpoint, Series, find_series
from belay_cli.errors import BelayError
from belay_cli.storage.files import Stored
from tests.checkpoints.naming_schemes import SCHEMES, Scheme


def make(run: Path, name: str, value: int) -> Path:
    """A checkpoint of that name, whose weight is its place in the series."""
    path = run / (name + "model.safetensors" if name.endswith("/") else name)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {"w": torch.full((2,), float(value))}
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return run / name


def places(series: Series) -> list[float]:
    """The values of a series' weights, which are its checkpoints' places."""
    return [place_of(checkpoint) for checkpoint in series.checkpoints]


def place_of(checkpoint: Checkpoint) -> float:
    stored = checkpoint.stored("w")
    assert isinstance(stored, Stored)
    data = stored.file.path.read_bytes()[stored.offset : stored.offset + 4]
    return torch.frombuffer(bytearray(data), dtype=torch.float32).item()


def shuffles(paths: list[Path], seed: str) -> Iterator[list[Path]]:
    yield paths
    yield paths[::-1]
    yield sorted(paths, key=str)
    yield random.Random(seed).sample(paths, len(paths))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.trainer)
def test_the_order_of_arguments_does_not_matter(tmp_path: Path, scheme: Scheme) -> None:
    paths = [make(tmp_path / "run", name, place) for place, name in enumerate(scheme.names)]
    for given in shuffles(paths, scheme.trainer):
        if scheme.refused:
            with pytest.raises(BelayError) as caught:
                find_series(given)
            assert scheme.refused in caught.value.message
            is_part = "rank" in scheme.refused
            assert ("--order given" in (caught.value.hint or "")) is not is_part
        else:
            series = find_series(given)
            assert places(series) == list(range(len(paths)))
            counted = tuple(range(len(paths)))
            assert (series.ticks, series.unit) == (
                (counted, "checkpoint") if scheme.steps is None else (scheme.steps, "step")
            )


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.run], ids=lambda scheme: scheme.trainer)
def test_a_run_directory_holds_its_checkpoints_and_what_is_left_out_is_said(tmp_path: Path, scheme: Scheme) -> None:
    run = tmp_path / "run"
    for place, name in enumerate(scheme.names):
        make(run, name, place)
    for name in scheme.beside:
        make(run, name, -1)
    series = find_series([run])
    assert places(series) == list(range(len(scheme.names)))
    if scheme.beside:
        said = next(note for note in series.notes if f"takes the {len(scheme.names)} checkpoints inside, not " in note)
        assert all(name.rstrip("/") in said for name in scheme.beside)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.beside], ids=lambda scheme: scheme.trainer)
def test_what_is_no_checkpoint_of_the_run_is_refused_beside_them(tmp_path: Path, scheme: Scheme) -> None:
    run = tmp_path / "run"
    paths = [make(run, name, place) for place, name in enumerate(scheme.names)]
    for name in scheme.beside:
        odd = make(run, name, -1)
        for given in shuffles([*paths, odd], name):
            with pytest.raises(BelayError):
                find_series(given)


def test_there_are_thirty_trainers() -> None:
    assert len({scheme.trainer.partition(",")[0] for scheme in SCHEMES}) >= 40
