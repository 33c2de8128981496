"""Valid files, and the way in that each is read by."""

from __future__ import annotations

import io
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from belay_cli import average, verify
from belay_cli.checkpoints.checkpoint import open_checkpoint
from belay_cli.errors import OutputError
from belay_cli.output.journal import Journal
from tests.conftest import make_adapter, make_files, make_run, shard, tensors
from tests.fuzz.mutations import mutated


@dataclass(frozen=True)
class Reader:
    """A file that is mutated, by `mutate`, and what then reads it; `other`: the same by somebody else's library."""

    file: Path
    read: Callable[[], object]
    mutate: Callable[[random.Random, bytes], bytes] = mutated
    other: Callable[[], object] | None = None


def _opened(path: Path) -> Callable[[], object]:
    """Open a checkpoint and average it with itself left alone: every byte is read."""

    def read() -> object:
        open_checkpoint(path, needs_step=False)
        out = path.parent.parent / "out.safetensors"
        out.unlink(missing_ok=True)
        return average([path], out, sync=False, resume=False, threads=1, allow_averages=True)

    return read


def _safetensors(place: Path) -> Reader:
    (path, *_) = make_files(place / "files", steps=(100,))

    def other() -> None:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                file.get_tensor(name)

    return Reader(path, _opened(path), other=other)


def _index(place: Path) -> Reader:
    parts = tensors()
    names = list(parts)
    shard(place / "sharded", [{n: parts[n] for n in names[:3]}, {n: parts[n] for n in names[3:]}])
    return Reader(place / "sharded/model.safetensors.index.json", _opened_directory(place / "sharded"))


def _opened_directory(path: Path) -> Callable[[], object]:
    def read() -> object:
        open_checkpoint(path, needs_step=False)
        shutil.rmtree(path.parent / "out", ignore_errors=True)
        return average([path], path.parent / "out", sync=False, resume=False, threads=1, allow_averages=True)

    return read


def _torch(place: Path) -> Reader:
    path = place / "torch/step-1.pt"
    path.parent.mkdir()
    torch.save({"model": tensors(), "step": 1, "text": "a" * 50, "more": [1, 2.5, None, {"x": (1, 2)}]}, path)
    return Reader(path, _opened(path), other=lambda: torch.load(path, weights_only=True))


def _repacked(chance: random.Random, data: bytes) -> bytes:
    """The archive written anew, valid, with a mutated data.pkl."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, mutated(chance, content) if info.filename.endswith("data.pkl") else content)
    return made.getvalue()


def _pickle(place: Path) -> Reader:
    reader = _torch(place)
    return Reader(reader.file, reader.read, _repacked, reader.other)


def _dcp(place: Path, name: str) -> Reader:
    import torch.distributed.checkpoint as dcp

    directory = place / "dcp/step-1"
    dcp.save({"model": {n: t for n, t in tensors().items() if t.numel()}}, checkpoint_id=directory)
    return Reader(directory / name, _opened_directory(directory))


def _adapter(place: Path) -> Reader:
    for step in (1, 2):
        make_adapter(place / f"run/checkpoint-{step}", step)

    def read() -> object:
        shutil.rmtree(place / "out", ignore_errors=True)
        return average([place / "run"], place / "out", lora="delta", sync=False, resume=False, threads=1)

    return Reader(place / "run/checkpoint-2/adapter_config.json", read)


def _output(place: Path, name: str) -> Reader:
    run = make_run(place / "run")
    average([run], place / "average", max_shard_size="1500", sync=False)
    return Reader(place / "average" / name, lambda: verify(place / "average", threads=1))


def _interrupted(place: Path, name: str) -> Reader:
    """An output that broke off, or was being put in place."""
    run, out = make_run(place / "run"), place / "average"
    average([run], out, max_shard_size="1500", sync=False)
    (out / "notes.md").write_text("mine")
    options: dict[str, Any] = {"method": "uniform", "overwrite": True, "sync": False, "threads": 1}
    add = Journal.add

    def full(self: Journal, done: Any) -> None:
        add(self, done)
        raise OSError(28, "No space left on device")

    Journal.add = full  # type: ignore[method-assign]
    try:
        average([run], out, **options)
    except OutputError:
        pass
    finally:
        Journal.add = add  # type: ignore[method-assign]
    work, kept = place / ".average.belay", place / "kept"
    (work / "moves.json").write_text('{"how": "files", "replaced": ["belay.json"], "arriving": ["belay.json"]}')
    shutil.copytree(work, kept / "work")
    shutil.copytree(out, kept / "average")

    def read() -> object:
        data = (work / name).read_bytes()
        for source, target in ((kept / "work", work), (kept / "average", out)):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        (work / name).write_bytes(data)
        try:
            return average([run], out, **options)
        finally:
            work.mkdir(exist_ok=True)

    return Reader(work / name, read)


READERS: dict[str, Callable[[Path], Reader]] = {
    "safetensors": _safetensors,
    "index": _index,
    "torch zip": _torch,
    "torch pickle": _pickle,
    "DCP .metadata": lambda place: _dcp(place, ".metadata"),
    "DCP pieces": lambda place: _dcp(place, "__0_0.distcp"),
    "adapter_config.json": _adapter,
    "output: header": lambda place: _output(place, "model-00001-of-00003.safetensors"),
    "output: belay.json": lambda place: _output(place, "belay.json"),
    "output: local.json": lambda place: _output(place, ".belay/local.json"),
    "journal": lambda place: _interrupted(place, "journal-0"),
    "moves.json": lambda place: _interrupted(place, "moves.json"),
}
