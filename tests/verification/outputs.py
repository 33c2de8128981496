"""Outputs of every kind, with the checkpoints that they were made from; and with another record than they had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from belay_cli import average
from belay_cli.formats.safetensors import read_header
from belay_cli.planning.layout import header, sealed_header
from belay_cli.record import HEADER
from belay_cli.verification.headers import planned
from tests.conftest import make_adapter, make_files, make_run, tensors
from tests.several import make_pipelines


def make_outputs(directory: Path) -> list[tuple[Path, Path]]:
    """A file, sharded directories as they are made and as they are published, several models, and an adapter."""
    return [
        single(directory / "single"),
        sharded(directory / "sharded"),
        published(directory / "published"),
        several(directory / "several"),
        adapter(directory / "adapter"),
    ]


def single(directory: Path) -> tuple[Path, Path]:
    """One file, of another dtype than its checkpoints."""
    make_files(directory / "ckpts")
    average([directory / "ckpts"], directory / "averaged.safetensors", dtype="bfloat16")
    return directory / "averaged.safetensors", directory / "ckpts"


def sharded(directory: Path) -> tuple[Path, Path]:
    """Shards with an index, a second name for a tensor, metadata that all checkpoints have, a copy with an edit."""
    run = make_run(directory / "run")
    metadata = {"format": "pt", "head.weight": "embed.weight", "ss_base_model": "a base", "note": 'of "all"\n'}
    for seed, checkpoint in enumerate(sorted(run.iterdir())):
        save_file(tensors(seed), checkpoint / "model.safetensors", metadata=metadata)
        config = {"architectures": ["Tiny"], "torch_dtype": "float32", "tie_word_embeddings": True}
        (checkpoint / "config.json").write_text(json.dumps(config))
        (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# The run\n")
    average([run], directory / "sharded", max_shard_size="500B", dtype="float16", drop="layer.bias")
    return directory / "sharded", run


def published(directory: Path) -> tuple[Path, Path]:
    """A directory as it comes from the Hub: without what is local."""
    output, run = sharded(directory)
    shutil.rmtree(output / ".belay")
    return output.rename(directory / "published"), run


def several(directory: Path) -> tuple[Path, Path]:
    """A pipeline of several models, one of them in shards."""
    run = make_pipelines(directory / "run")
    average([run], directory / "several", subfolder="all", max_shard_size="100B")
    return directory / "several", run


def adapter(directory: Path) -> tuple[Path, Path]:
    """The updates of adapters, averaged as products, of another rank than they had."""
    for seed in range(3):
        make_adapter(directory / "run" / f"checkpoint-{seed + 1}", seed)
    average([directory / "run"], directory / "adapter", lora="delta", lora_rank=1)
    return directory / "adapter", directory / "run"


def with_metadata(path: Path, change: Callable[[dict[str, str]], dict[str, str]], *, seal: bool) -> None:
    """The file with other metadata, its header whole or without a digest of itself."""
    found, content = read_header(path), path.read_bytes()
    metadata = change({key: value for key, value in found.metadata.items() if key != HEADER})
    text = (sealed_header if seal else header)([planned(tensor) for tensor in found.tensors], metadata)
    path.write_bytes(text + content[found.data_start :])


def as_before(output: Path) -> None:
    """An output as belay 0.1.0 wrote it: the names of its copies, and no digests but those of tensors."""

    def change(metadata: dict[str, str]) -> dict[str, str]:
        copies = list(json.loads(metadata["belay.copies"]))
        return {**metadata, "belay.copies": json.dumps(copies, separators=(",", ":"))}

    if output.is_file():
        with_metadata(output, change, seal=False)
        return
    for path in output.glob("*.safetensors"):
        with_metadata(path, change, seal=False)
    document = json.loads((output / "belay.json").read_text())
    document |= {"schema": 1, "copies": list(document["copies"])}
    (output / "belay.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    local = json.loads((output / ".belay/local.json").read_text())
    del local["sha256"]
    (output / ".belay/local.json").write_text(json.dumps(local, indent=2) + "\n")
