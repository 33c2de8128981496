"""`.metadata`: the pickle that says which tensors there are, and where their pieces lie. Nothing of it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.formats.restricted_pickle import LARGEST, ForbiddenNames, load
from belay_cli.formats.text import listed
from belay_cli.formats.torch.objects import ALLOWED
from belay_cli.storage.files import ReadAt, StoredFile

COPY_AGAIN = "the save is incomplete or damaged; copy it again, or leave the checkpoint out"


class PlainObject:
    """An object of `.metadata` as it is pickled: its kind, and its fields (those it is made with, until it is set)."""

    __slots__ = ("fields",)
    fields: Any

    def __new__(cls, *fields: Any) -> PlainObject:
        """As the unpickler makes it: with its arguments, or with none and its state set afterwards."""
        made = super().__new__(cls)
        made.fields = fields
        return made

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict | tuple):
            raise ValueError("an object has no fields")
        self.fields = state


def _kind(name: str) -> type[PlainObject]:
    return type(name, (PlainObject,), {"__slots__": ()})


_Metadata, TensorEntry, BytesEntry, _Chunk, Properties, _Index, _Info, _Opaque = map(
    _kind, ("Metadata", "Tensor", "Bytes", "Chunk", "Properties", "Index", "Info", "Opaque")
)


def _allowed() -> Mapping[str, Any]:
    """What `.metadata` may name: its own classes, beside what any torch file may (shapes, dtypes)."""
    place, older = "torch.distributed.checkpoint", "torch.distributed._shard.sharded_tensor.metadata"
    names: dict[str, Any] = {
        f"{place}.metadata.Metadata": _Metadata,
        f"{place}.metadata.TensorStorageMetadata": TensorEntry,
        f"{place}.metadata.BytesStorageMetadata": BytesEntry,
        f"{place}.metadata.ChunkStorageMetadata": _Chunk,
        f"{place}.metadata.TensorProperties": Properties,
        f"{older}.TensorProperties": Properties,
        f"{place}.metadata.MetadataIndex": _Index,
        f"{place}.metadata.StorageMeta": _Opaque,
        f"{place}.metadata._MEM_FORMAT_ENCODING": _Opaque,
        f"{older}.MEM_FORMAT_ENCODING": _Opaque,
        # The second is OLMo-core's, whose writer has a class of its own with the same fields.
        f"{place}.filesystem._StorageInfo": _Info,
        "olmo_core.distributed.checkpoint.filesystem._StorageInfo": _Info,
        f"{place}.filesystem._StoragePrefix": _Opaque,
        # The first releases of Python 3.11 ask for a member of an enumeration in this way. It looks nothing up.
        "builtins.getattr": ALLOWED["torch.serialization._get_layout"],
    }
    systems = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    names |= {f"{module}.{name}": _Opaque for module in ("pathlib", "pathlib._local") for name in systems}
    return MappingProxyType({**ALLOWED, **names})


_ALLOWED = _allowed()


class DcpMetadata(NamedTuple):
    """What `.metadata` says: entries by name, the keys that lead to each, and where each piece of a tensor lies."""

    entries: Mapping[Any, Any]
    paths: Mapping[Any, Any]
    storage: Mapping[Any, Any]


def read_metadata(file: StoredFile, read_at: ReadAt) -> DcpMetadata:
    """Read the pickle. Raises CheckpointError if it names anything that is not its own, or is no such metadata."""
    found = _unpickled(file, read_at)
    fields = ("state_dict_metadata", "planner_data", "storage_data")
    return DcpMetadata(*(_mapping(file, found, name) for name in fields))


def _unpickled(file: StoredFile, read_at: ReadAt) -> PlainObject:
    if file.size > LARGEST:
        raise CheckpointError(f"is {file.size} bytes, too large for the metadata of a checkpoint", file=file.path)
    try:
        found = load(read_at(0, file.size), _ALLOWED)
    except ForbiddenNames as error:
        raise CheckpointError(
            f"needs more than its own classes to be read: it would import {listed(error.names[:5])}",
            file=file.path,
            hint="belay never runs what a file contains; save the model's state dict by itself",
        ) from error
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise CheckpointError(
            f"cannot be read: {' '.join(str(error).split())[:200]}", file=file.path, hint=COPY_AGAIN
        ) from error
    if not isinstance(found, _Metadata) or not isinstance(found.fields, dict):
        raise lie(file, "it is not the metadata of a checkpoint")
    return found


def _mapping(file: StoredFile, metadata: PlainObject, name: str) -> Mapping[Any, Any]:
    found = metadata.fields.get(name)
    if found is None and name == "planner_data":
        return {}
    if not isinstance(found, dict):
        raise lie(file, f"it has no {name}")
    return found


def field(file: StoredFile, record: Any, name: str, fqn: str | None = None) -> Any:
    """A field of a record that may be anything. Raises CheckpointError if it is not there."""
    if not isinstance(record, PlainObject) or not isinstance(record.fields, dict) or name not in record.fields:
        raise lie(file, f"something in it has no {name}", fqn)
    return record.fields[name]


def lie(file: StoredFile, what: str, tensor: str | None = None) -> CheckpointError:
    """The error that the metadata contradicts itself, or what is known of such metadata."""
    return CheckpointError(f"cannot be right: {what}", file=file.path, tensor=tensor, hint=COPY_AGAIN)
