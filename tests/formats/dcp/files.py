"""Directories of torch.distributed.checkpoint as tests save, change and read them."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict

from belay_cli.checkpoints.meaning.understand import understand
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError
from belay_cli.formats.dcp import read_dcp
from belay_cli.formats.dtypes import DTYPES
from belay_cli.storage.files import OpenFiles, StoredFile, open_file
from tests.reading import Found, plainly

OTHER_NAMES = {torch.float8_e4m3fn: "float8_e4m3", torch.float8_e8m0fnu: "float8_e8m0"}


# ---- reading, and the oracle


def read(directory: Path, log: Any = None, **options: Any) -> Any:
    """What belay finds in the directory; `log` takes (file, offset, count) of every read."""
    with contextlib.ExitStack() as opened:

        def opens(name: str) -> tuple[StoredFile, Callable[..., Any]]:
            file: Any = opened.enter_context(open_file(Path(directory, name)))

            def read_at(offset: int, count: int) -> Any:
                if log is not None:
                    log.append((name, offset, count))
                return file.read_at(offset, count)

            return StoredFile(Path(directory, name), file.size), read_at

        with read_dcp(Path(directory), opens) as found:
            weights = understand(found, Opening(**options), stem="model", directory=Path(directory), named_ema=None)
        return plainly(weights, Path(directory))


def contents(weights: Found) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> dtype, shape, bytes."""
    found = {}
    with OpenFiles(4) as files:
        for tensor in weights.tensors:
            count = DTYPES[tensor.dtype].bits // 8
            for n in tensor.shape:
                count *= n
            buffer = bytearray(count)
            tensor.stored.read_into(files, memoryview(buffer), 0)
            found[tensor.name] = (DTYPES[tensor.dtype].name, tensor.shape, bytes(buffer))
    return found


def plain(tensors: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The same of tensors of torch."""
    return {
        name: (
            OTHER_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")),
            tuple(tensor.shape),
            tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def loaded(directory: Path) -> Any:
    """The whole checkpoint as torch loads it, nested as it was saved."""
    file = io.BytesIO()
    dcp_to_torch_save(directory, file)  # type: ignore[arg-type]
    file.seek(0)
    return torch.load(file, weights_only=False)


def refused(
    directory: Path, message: str, *, file: str | None = None, tensor: str | None = None, **options: Any
) -> Any:
    """It is refused in these words, and the error says where and what to do."""
    with pytest.raises(CheckpointError) as caught:
        read(directory, **options)
    error = caught.value
    assert message in error.message, error.message
    assert Path(error.file or "").name == (file or Path(directory).name)
    assert error.tensor == tensor
    assert error.hint and "\n" not in error.message + error.hint and len(error.message) < 500
    return error


# ---- what to save


class Net(torch.nn.Module):
    """Parameters, buffers, and a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.norm(self.conv(x)).mean((2, 3)).bfloat16())


def trained() -> tuple[Net, Any]:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return net, optimizer


NET, OPTIMIZER = trained()
MODEL: dict[str, Any]
STATE: dict[str, Any]
MODEL, STATE = get_state_dict(NET, OPTIMIZER)


def save(directory: Path, state: Any, **options: Any) -> Path:
    dcp.save(state, checkpoint_id=directory, no_dist=True, **options)
    return directory


def saved_flat(directory: Path, state: dict[str, torch.Tensor]) -> Path:
    """As planners save that know no nested keys."""
    return save(directory, state, planner=DefaultSavePlanner(flatten_state_dict=False))


# ---- what to change


def rewritten(directory: Path, change: Callable[..., Any], protocol: int = 4) -> Path:
    """Change the object in .metadata by torch's own classes."""
    path = directory / ".metadata"
    found = pickle.loads(path.read_bytes())
    change(found)
    path.write_bytes(pickle.dumps(found, protocol))
    return directory


def place_of(found: Any, name: Any = "w") -> Any:
    return next(index for index in found.storage_data if index.fqn == name)


def copied(small: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "x"
    directory.mkdir()
    for entry in small.iterdir():
        (directory / entry.name).write_bytes(entry.read_bytes())
    return directory


def with_piece(small: Path, tmp_path: Path, blob: bytes) -> Path:
    """The checkpoint with these bytes as the piece of `w`."""
    directory = copied(small, tmp_path)
    (directory / "other.distcp").write_bytes(blob)
    return rewritten(directory, moved(relative_path="other.distcp", offset=0, length=len(blob)))


def blob(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def compressed(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


GRID = torch.arange(20.0).reshape(4, 5)


def moved(**fields: Any) -> Callable[..., Any]:
    def change(found: Any) -> None:
        for name, value in fields.items():
            setattr(found.storage_data[place_of(found)], name, value)

    return change


def of_dtype(dtype: Any) -> Callable[..., Any]:
    def change(found: Any) -> None:
        found.state_dict_metadata["w"].properties.dtype = dtype

    return change


def attribute(name: str, value: Any) -> Callable[..., Any]:
    return lambda found: setattr(found, name, value)
