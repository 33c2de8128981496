"""What belay cannot read, by how a person would recognise it, and how to get from there to what it can."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.formats.text import listed
from belay_cli.storage.files import AnyPath, open_file


class Format(NamedTuple):
    """Globs over names, of files or of what a directory holds; what it is; the way to weights that belay reads."""

    globs: tuple[str, ...]
    what: str
    mend: str


FORMATS = (
    Format(
        ("zero_pp_rank_*", "bf16_zero_pp_rank_*", "*_optim_states.pt", "zero_to_fp32.py"),
        "shards of DeepSpeed ZeRO",
        "put them together first: python zero_to_fp32.py RUN OUT --safe_serialization",
    ),
    Format(
        ("mp_rank_*_model_states.pt", "layer_*-model_*-model_states.pt"),
        "ranks of DeepSpeed",
        "put them together first: tools/convert_checkpoint/deepspeed_to_transformers.py of Megatron-DeepSpeed",
    ),
    Format(
        ("mp_rank_*", "model_optim_rng.pt", "distrib_optim.pt"),
        "ranks of Megatron-LM",
        "convert them first: tools/checkpoint/convert.py of Megatron-LM, with a saver for Hugging Face",
    ),
    Format(
        ("*_rank_[0-9]*.pt", "*_rank[0-9]*.pt", "*.rank[0-9]*.pt", "model_world_size_*_rank_*.pt", "local_state_*"),
        "one file a rank of FSDP",
        "save them as torch.distributed.checkpoint, or merge them: accelerate merge-weights RUN OUT",
    ),
    Format(("*.distcp",), "a part of a torch.distributed.checkpoint", "its directory is the checkpoint"),
    Format(
        ("_CHECKPOINT_METADATA", "manifest.ocdbt", "*.orbax*", "checkpoint_[0-9]*.msgpack", "*.msgpack"),
        "a checkpoint of JAX (orbax or Flax)",
        "export the parameters: safetensors.flax.save_file",
    ),
    Format(("*.gguf", "*.ggml"), "GGUF, which is quantized for inference", "average the checkpoints it was made from"),
    Format(
        ("*.keras", "*.h5", "*.hdf5", "*.ckpt.index", "*.data-00000-of-*", "saved_model.pb"),
        "a checkpoint of Keras or TensorFlow",
        "export the weights: safetensors.tensorflow.save_file",
    ),
    Format(("*.nemo",), "an archive of NeMo", "unpack it: tar xf; the .ckpt or the directory inside is the checkpoint"),
    Format(("*.onnx",), "a graph of ONNX", "average the checkpoints it was exported from"),
    Format(("*.npz", "*.npy"), "arrays of numpy", "write them as safetensors: safetensors.numpy.save_file"),
    Format(("*.tar.gz", "*.tgz", "*.zip", "*.tar.zst", "*.tar.bz2"), "an archive", "unpack it; what is inside is read"),
)


def recognise(names: Iterable[str]) -> Format | None:
    """The first format that one of the names belongs to."""
    names = list(names)
    return next((f for f in FORMATS if any(fnmatchcase(name, glob) for glob in f.globs for name in names)), None)


class Beginning(NamedTuple):
    """What a file is by its first bytes, which completes a sentence; and the way to what belay reads."""

    what: str
    mend: str


_READ = "*.safetensors, *.pt, *.pth, *.bin, *.ckpt"
_LOOKED_INTO = 8  # files without a suffix in a directory where nothing else is weights
SNIFFED = 512  # bytes by which a file is known

_ANEW = "write it anew with a current torch: torch.save(torch.load(path, weights_only=True), path)"
TORCH = Beginning("is a torch file under another name", "rename it to end in .pt")
SAFETENSORS = Beginning("is a safetensors file under another name", "rename it to end in .safetensors")

_BEGINNINGS = (
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", Beginning("is in torch's format from before version 1.6", _ANEW)),
    (
        b"\x89HDF\r\n\x1a\n",
        Beginning("is HDF5, as Keras writes it", "export the weights: safetensors.tensorflow.save_file"),
    ),
    (
        b"version https://git-lfs",
        Beginning("is a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    ),
    (b"GGUF", Beginning("is GGUF, which is quantized for inference", "average the checkpoints it was made from")),
    (b"\x1f\x8b", Beginning("is compressed by gzip", "unpack it: gunzip, or tar xzf")),
    (b"\x28\xb5\x2f\xfd", Beginning("is compressed by zstd", "unpack it: unzstd")),
    (b"\x93NUMPY", Beginning("is an array of numpy", "write it as safetensors: safetensors.numpy.save_file")),
)
_OLD_TORCH = (b"sys_info\0", b"storages\0", b"tensors\0", b"pickle\0")
_TORCH_RECORDS = (b"/data.pkl", b"/byteorder", b"/version", b"/.format_version", b"/.data/", b"/.storage_alignment")


def by_first_bytes(head: bytes) -> Beginning | None:
    """What a file is by its first bytes, SNIFFED of them; None if they do not say it."""
    if head.startswith(b"PK\x03\x04"):
        torch = any(record in head for record in _TORCH_RECORDS)
        return TORCH if torch else Beginning("is a zip archive", "unpack it; what is inside is read")
    if found := next((beginning for magic, beginning in _BEGINNINGS if head.startswith(magic)), None):
        return found
    if head[257:262] == b"ustar":
        if head.startswith(_OLD_TORCH):
            return Beginning("is in torch's tar format from before version 0.2", _ANEW)
        return Beginning("is a tar archive", "unpack it: tar xf; what is inside is read")
    return SAFETENSORS if head[8:9] == b"{" and not any(head[5:8]) else None


def not_a_checkpoint(path: AnyPath) -> CheckpointError:
    """The error for a file that is none of ours."""
    found = recognise([path.name])
    if found:
        return CheckpointError(f"is {found.what}, which belay does not read", file=path, hint=found.mend)
    if beginning := _sniff(path):
        return CheckpointError(beginning.what, file=path, hint=beginning.mend)
    return CheckpointError(
        "is neither a safetensors nor a torch file",
        file=path,
        hint=f"belay reads {_READ}, and directories that hold them",
    )


def _sniff(path: AnyPath) -> Beginning | None:
    with open_file(path) as file:
        return by_first_bytes(file.read_at(0, min(SNIFFED, file.size)))


def no_weights(directory: AnyPath) -> CheckpointError:
    """The error for a directory without weights, with what is there instead."""
    names = sorted(entry.name for entry in directory.iterdir())
    deeper = [entry.name for sub in directory.iterdir() if sub.is_dir() for entry in sub.iterdir()]
    found = recognise(names) or recognise(deeper)
    if found:
        return CheckpointError(f"holds {found.what}, which belay does not read", file=directory, hint=found.mend)
    for entry in [directory / name for name in names if "." not in name][:_LOOKED_INTO]:
        if entry.is_file() and (beginning := _sniff(entry)):
            return CheckpointError(f"holds {entry.name}, which {beginning.what}", file=directory, hint=beginning.mend)
    return CheckpointError(
        "holds no weights that belay reads",
        file=directory,
        hint=f"it {holding(directory.iterdir())}; looked for {_READ}, in it and in its folders",
    )


def holding(entries: Iterable[AnyPath]) -> str:
    """`holds a.txt, runs/`, or `is empty`: what lies in a directory, without hidden entries."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries if not entry.name.startswith("."))
    return f"holds {listed(names)}" if names else "is empty"
