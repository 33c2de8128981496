"""What belay cannot read, by how a person would recognise it, and how to get from there to what it can."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from belay_cli.checkpoints.storage import AnyPath
from belay_cli.errors import CheckpointError


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
        ("mp_rank_*", "model_optim_rng.pt", "distrib_optim.pt"),
        "ranks of Megatron-LM",
        "convert them first: tools/checkpoint/convert.py of Megatron-LM, with a saver for Hugging Face",
    ),
    Format(
        ("*_rank_[0-9]*.pt", "*_rank[0-9]*.pt", "*.rank[0-9]*.pt", "model_world_size_*_rank_*.pt", "local_state_*"),
        "one file a rank of FSDP",
        "save them as torch.distributed.checkpoint, or merge them: accelerate merge-weights RUN OUT",
    ),
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


def not_a_checkpoint(path: AnyPath) -> CheckpointError:
    """The error for a file that is none of ours."""
    found = recognise([path.name])
    if found:
        return CheckpointError(f"is {found.what}, which belay does not read", file=path, hint=found.mend)
    return CheckpointError(
        "is neither a safetensors nor a torch file",
        file=path,
        hint="belay reads *.safetensors, *.pt, *.pth, *.bin, *.ckpt, and directories that hold them",
    )


def no_weights(directory: AnyPath) -> CheckpointError:
    """The error for a directory without weights, with what is there instead."""
    names = sorted(entry.name for entry in directory.iterdir())
    deeper = [entry.name for sub in directory.iterdir() if sub.is_dir() for entry in sub.iterdir()]
    found = recognise(names) or recognise(deeper)
    if found:
        return CheckpointError(f"holds {found.what}, which belay does not read", file=directory, hint=found.mend)
    return CheckpointError(
        "holds no weights that belay reads",
        file=directory,
        hint="leave it out; a checkpoint or a run directory is needed",
    )
