"""`belay verify` finds every bit that is flipped in any file of an output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from belay_cli import average
from tests.conftest import Ran, make_run
from tests.verification.flips import files_in, flipped, flips, verified
from tests.verification.outputs import adapter, published, several, sharded, single

FLIPS = 50  # in each output; `python -m tests.verification.flips 10000` makes more


@pytest.mark.parametrize("make", [single, sharded, published, several, adapter])
def test_every_flipped_bit_is_found(make: Callable[[Path], tuple[Path, Path]], tmp_path: Path) -> None:
    output, checkpoints = make(tmp_path / "made")
    before = {path: path.read_bytes() for path in files_in(output)}
    assert verified(output, checkpoints) == ""
    made = list(flips(output, checkpoints, FLIPS, seed=1))
    assert [flip for flip in made if not flip.found] == []
    assert {flip.file for flip in made} <= {path.relative_to(output.parent).as_posix() for path in before}
    assert {path: path.read_bytes() for path in files_in(output)} == before


HEADER = "headers       the header of model.safetensors is not the one that was written"


@pytest.mark.parametrize(
    ("name", "byte", "check"),
    [
        ("config.json", 5, "files         config.json is not what was written"),
        ("tokenizer.json", 1, "files         tokenizer.json is not what was written"),
        (".belay/local.json", 20, "files         .belay/local.json is not what was written"),
        ("belay.json", 31, "record        belay.json says something else than the metadata of the weights"),
        ("model.safetensors", 8 + 33 + 5, HEADER),
    ],
)
def test_the_file_is_named(tmp_path: Path, belay: Callable[..., Ran], name: str, byte: int, check: str) -> None:
    average([make_run(tmp_path / "run")], "out")
    with flipped(Path("out", name), 8 * byte):
        ran = belay("verify", "out")
    assert ran.code == 1
    assert [line for line in ran.out.splitlines() if "failed" in line] == [f"  failed       {check}"]
    assert ran.err == "belay: out: {} failed: {}\n".format(*check.split(maxsplit=1))
