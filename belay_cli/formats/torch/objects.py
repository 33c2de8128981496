"""The object inside a torch file, as its pickle describes it: tensors are records of where their elements lie.

What is understood is what torch.load(weights_only=True) allows by default. None of it is torch's own: each name has a
stand-in that records or ignores its arguments, copies nothing, and cannot be changed by the pickle. Configurations,
paths and the like beside the weights are Unknown: weights are read where only what is understood leads to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Unreadable
from belay_cli.formats.restricted_pickle import LARGEST, ForbiddenNames, load
from belay_cli.formats.text import short
from belay_cli.formats.torch.archive import COPY_AGAIN, Archive
from belay_cli.formats.unknown import Unknown
from belay_cli.storage.files import StoredFile

_MOST_DIMENSIONS = 64


class Storage(NamedTuple):
    """A run of elements in the record data/`key`: how many bytes, and of which dtype unless a tensor says another."""

    file: StoredFile
    key: str
    dtype: str
    nbytes: int


class View(NamedTuple):
    """A tensor: a view of a storage. dtype by torch's name; offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Fixed:
    """Something a pickle can name but not change: it has no attributes to set and no state to take."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise ValueError("it changes what it may only name")


class _Opaque(_Fixed):
    """What nobody asks for: devices, sets, bytes."""

    __slots__ = ()


class _Function(_Fixed):
    """A stand-in that is called. Not a plain function: a pickle can set the attributes of those."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise ValueError("it changes what it may only name")


class _StorageType(NamedTuple):
    dtype: str


class _Dtype(NamedTuple):
    name: str


class _Dict(dict[Any, Any]):
    """Of an OrderedDict or defaultdict: its items, without the attributes that a pickle may set on it (`_metadata`)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


_OPAQUE = _Opaque()

# Bytes an element of each dtype takes that a storage can have.
_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1}
_SIZES |= {"uint8": 1, "bool": 1, "complex128": 16, "complex64": 8}
_SIZES |= {"qint8": 1, "qint32": 4, "quint8": 1, "quint4x2": 1, "quint2x4": 1}

_KINDS = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
_KINDS |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
_COMPLEX = {"ComplexDouble": "complex128", "ComplexFloat": "complex64"}
_QUANTIZED = {"QInt8": "qint8", "QInt32": "qint32", "QUInt8": "quint8", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4"}

_DTYPES = (
    *_SIZES,
    *("uint16", "uint32", "uint64", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str, metadata: Any = None) -> View | Unreadable:
    whole = isinstance(storage, Storage) and type(offset) is int and _are_integers(shape) and _are_integers(strides)
    if not whole or len(shape) != len(strides):
        raise ValueError("it makes a tensor of what is none")
    set_bits = not isinstance(metadata, dict) or len(metadata) > 8 or any(bit is not False for bit in metadata.values())
    if metadata and set_bits:
        return Unreadable("a conjugate or a negative that was never carried out; save it after .resolve_conj()")
    return View(storage, dtype, offset, shape, strides)


def _are_integers(value: Any) -> TypeGuard[tuple[int, ...]]:
    return type(value) is tuple and len(value) <= _MOST_DIMENSIONS and all(type(n) is int for n in value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> View | Unreadable:
    return _view(storage, offset, shape, strides, storage.dtype)


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, metadata: Any = None
) -> View | Unreadable:
    return _view(storage, offset, shape, strides, storage.dtype, metadata)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> View | Unreadable:
    if isinstance(dtype, Unknown):
        return Unreadable(f"of a dtype that belay does not know: {short(dtype.name)}")
    if not isinstance(dtype, _Dtype):
        raise ValueError("it makes a tensor of what is none")
    return _view(storage, offset, shape, strides, dtype.name, metadata)


def _parameter(data: Any, *_: Any) -> View | Unreadable | Unknown:
    if not isinstance(data, (View, Unreadable, Unknown)):
        raise ValueError("it makes a parameter of what is no tensor")
    return data


def _from_other_device(data: Any, dtype: Any, *_: Any) -> View | Unreadable:
    if isinstance(data, View) and isinstance(dtype, _Dtype) and data.dtype == dtype.name:
        return data
    return Unreadable("from a device that stores it as something else")


def _size(shape: Any) -> tuple[int, ...]:
    if not _are_integers(shape):
        raise ValueError("it makes a shape of what is none")
    return shape


def _unreadable(what: str) -> _Function:
    return _Function(lambda *_: Unreadable(what))


_REBUILD = {
    "_rebuild_tensor": _Function(_tensor),
    "_rebuild_tensor_v2": _Function(_tensor_v2),
    "_rebuild_tensor_v3": _Function(_tensor_v3),
    "_rebuild_parameter": _Function(_parameter),
    "_rebuild_parameter_with_state": _Function(_parameter),
    "_rebuild_device_tensor_from_cpu_tensor": _Function(_from_other_device),
    "_rebuild_device_tensor_from_numpy": _unreadable("from a device that stores it as something else"),
    "_rebuild_qtensor": _unreadable("quantized"),
    "_rebuild_sparse_tensor": _unreadable("sparse"),
    "_rebuild_nested_tensor": _unreadable("a nested tensor"),
    "_rebuild_wrapper_subclass": _unreadable("of a class that wraps other tensors"),
    "_rebuild_meta_tensor_no_storage": _unreadable("without data: it was saved from the meta device"),
}


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    # A tensor with attributes of its own, or of a class of its own, which may mean something else by its elements.
    for unknown in (kind, function):
        if isinstance(unknown, Unknown):
            return Unknown(unknown.name, arguments, state)
    # Only one of the above, so that calls never nest.
    if not any(function is known for known in _REBUILD.values()) or type(arguments) is not tuple:
        raise ValueError("it makes a tensor in a way that torch does not")
    return function(*arguments)


def _allowed() -> Mapping[str, Any]:
    ignored = _Function(lambda *_: _OPAQUE)
    names: dict[str, Any] = {f"torch._utils.{name}": function for name, function in _REBUILD.items()}
    names |= {f"torch.{name}": _Dtype(name) for name in _DTYPES}
    for place in ("torch", "torch.cuda"):
        kinds = _KINDS | _COMPLEX | (_QUANTIZED if place == "torch" else {})
        names |= {f"{place}.{kind}Storage": _StorageType(dtype) for kind, dtype in kinds.items()}
        names |= {f"{place}.{kind}Tensor": _OPAQUE for kind in _KINDS}
        names |= {f"{place}.sparse.{kind}Tensor": _OPAQUE for kind in _KINDS if kind != "Bool"}
    names |= {f"torch.{scheme}": _OPAQUE for scheme in ("per_tensor_affine", "per_tensor_symmetric")}
    names |= {f"torch.per_channel_{scheme}": _OPAQUE for scheme in ("affine", "symmetric", "affine_float_qparams")}
    names |= dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter", "torch.storage.TypedStorage"), _OPAQUE)
    names |= dict.fromkeys(("torch.device", "torch.serialization._get_layout", "_codecs.encode"), ignored)
    names |= {f"{m}.{name}": ignored for m in ("builtins", "__builtin__") for name in ("bytearray", "complex", "set")}
    names["torch.storage.UntypedStorage"] = _StorageType("uint8")
    names["torch._tensor._rebuild_from_type_v2"] = _Function(_from_type)
    names["torch.Size"] = _Function(_size)
    names["collections.OrderedDict"] = _Function(lambda: _Dict())
    names["collections.Counter"] = ignored
    return MappingProxyType(names)


ALLOWED = _allowed()

# What is understood beside that, where Unknown stands for the rest.
_UNDERSTOOD = MappingProxyType({**ALLOWED, "collections.defaultdict": _Function(lambda *_: _Dict())})


class Pickled(NamedTuple):
    """The object of a torch file, and the names in it that are not understood, as `module.name`, sorted."""

    root: Any
    unknown: tuple[str, ...]


def read_object(archive: Archive) -> Pickled:
    """The object that the archive holds: dicts, lists and plain values, tensors as View or Unreadable; else Unknown.

    Raises ForbiddenNames for what only an attack names, and CheckpointError if the pickle is none, or tells of storages
    that are not in the archive.
    """
    unknown: set[str] = set()
    root = _read(archive, archive.read("data.pkl", LARGEST), _UNDERSTOOD, unknown)
    return Pickled(root, tuple(sorted(unknown)))


def read_pickle(archive: Archive, data: bytes) -> Any:
    """The same, of a data.pkl that was read already, in which nothing may be unknown: that too is ForbiddenNames."""
    return _read(archive, data, ALLOWED, None)


def _read(archive: Archive, data: bytes, names: Mapping[str, Any], unknown: set[str] | None) -> Any:
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        found = _storage(archive, identity)
        if storages.setdefault(found.key, found) != found:
            raise _lie(archive, f"it describes the storage {short(found.key)} in two ways")
        return found

    try:
        return load(data, names, storage, stand_ins=unknown)
    except (CheckpointError, ForbiddenNames):
        raise
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"has a data.pkl that cannot be read: {why}", file=archive.file.path, hint=COPY_AGAIN
        ) from error


def _storage(archive: Archive, identity: Any) -> Storage:
    kind, key, numel = _identity(archive, identity)
    record = archive.records.get(f"data/{key}")
    if record is None:
        raise _lie(archive, f"the storage {short(key)} is not in the file")
    # A buffer may end in less than one element, which the count leaves out.
    if numel != record.size // _SIZES[kind.dtype]:
        raise _lie(
            archive,
            f"the storage {short(key)} should hold {short(numel)} elements of {kind.dtype} and has {record.size} bytes",
        )
    return Storage(archive.file, key, kind.dtype, record.size)


def _identity(archive: Archive, identity: Any) -> tuple[_StorageType, str, int]:
    if type(identity) is tuple and len(identity) == 5:
        what, kind, key, _, numel = identity
        if (
            what == "storage"
            and isinstance(kind, _StorageType)
            and type(key) is str
            and len(key) < 100
            and type(numel) is int
        ):
            return kind, key, numel
    raise _lie(archive, "it asks for something that is no storage")


def _lie(archive: Archive, what: str) -> CheckpointError:
    return CheckpointError(f"has a data.pkl that cannot be right: {what}", file=archive.file.path, hint=COPY_AGAIN)
