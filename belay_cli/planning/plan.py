"""A plan: what a replay will do, and every byte of the output that is no weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from belay_cli.checkpoints import Checkpoint, Series
from belay_cli.checkpoints.adapters.lora import Pair
from belay_cli.checkpoints.directory import INDEX_SUFFIX, STANDARD_STEMS
from belay_cli.checkpoints.weights import inside
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning.buffers import Buffers
from belay_cli.planning.layout import (
    PlannedTensor,
    Shard,
    index,
    sealed_header,
)
from belay_cli.planning.options import SAME, PlanOptions
from belay_cli.planning.policies import AVERAGE, LAST
from belay_cli.planning.same import Summed
from belay_cli.planning.target import Target
from belay_cli.record import DOCUMENT, PREFIX, Record, document_beside
from belay_cli.rules import Float64Array, Rule, Summary
from belay_cli.storage.files import AnyPath, StoredFile

TORCH = "torch"  # the engine that is on every machine


@dataclass(frozen=True, eq=False)
class PlannedOutput:
    """One average: its rule, its coefficients [T], and where it goes.

    `reference`: a rule to compare the mean lag with, how it is called and its lag in ticks. `record` has placeholders
    for what is known when the output is written. Without a target nothing is written: the average stays in memory.
    """

    rule: Rule
    coefficients: Float64Array
    summary: Summary
    reference: tuple[str, float] | None
    target: Target | None
    record: Record


@dataclass(frozen=True)
class Plan:
    """What a replay will do. Sizes are in bytes.

    `tensors` and `series` are what a person means. The bytes are told by `pieces`, in the order of the output's, and by
    `sources`, the checkpoints in which these are found by their names: the same, but for an output in the files of the
    last checkpoint, of which a tensor may be several pieces, and what lies between them one too. `summed` are the
    records in such files, with their checksums.
    """

    series: Series
    options: PlanOptions
    engine: str  # of the arithmetic, if the processor does it
    tensors: tuple[PlannedTensor, ...]
    pieces: tuple[PlannedTensor, ...]
    sources: tuple[Checkpoint, ...]
    summed: tuple[Summed, ...]
    dropped: int
    shards: tuple[Shard, ...]
    outputs: tuple[PlannedOutput, ...]
    copies: tuple[str, ...]  # files of the last checkpoint's directory, relative to it
    edited: Mapping[str, bytes]  # those of them that are written with another content
    carried: Mapping[str, Mapping[str, str]]  # by folder, metadata that all checkpoints have
    updates: tuple[Pair, ...]  # factors that are averaged as the update they stand for
    buffers: Buffers
    warnings: tuple[str, ...]

    @cached_property
    def read_checkpoints(self) -> list[int]:
        """The checkpoints that are read: those with a coefficient in some output."""
        return [t for t in range(len(self.series.ticks)) if any(output.coefficients[t] for output in self.outputs)]

    @property
    def is_same(self) -> bool:
        """Whether the output has the files of the last checkpoint."""
        return self.options.format == SAME

    @property
    def files_read(self) -> list[StoredFile]:
        """The files that something is read of."""
        taken = dict.fromkeys([*self.read_checkpoints, *([len(self.sources) - 1] if self.is_same else [])])
        return [file for t in taken for file in self.sources[t].files]

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Names that share the bytes of a tensor of the output -> that tensor's."""
        names = {tensor.name for tensor in self.tensors}
        return {name: kept for name, kept in self.series.last.weights.aliases.items() if kept in names}

    @property
    def not_averageable(self) -> list[str]:
        """Tensors that come from the last checkpoint because of their dtype, and not because somebody said so."""
        return [
            tensor.name
            for tensor in self.tensors
            if not DTYPES[tensor.source_dtype].averageable and not self.options.policies.exempts(tensor.name)
        ]

    @property
    def data_read(self) -> int:
        """Bytes of tensor data that the replay reads."""
        averaged = sum(_source_bytes(piece) for piece in self.pieces if piece.action == AVERAGE)
        last = sum(_source_bytes(piece) for piece in self.pieces if piece.action == LAST)
        factors = sum(self.series.last.tensors[name].nbytes for pair in self.updates for name in pair)
        return (averaged + factors) * len(self.read_checkpoints) + last

    @property
    def bytes_read(self) -> int:
        """`data_read` and the headers of the checkpoints that are read."""
        checkpoints = [self.series.checkpoints[t] for t in self.read_checkpoints]
        return self.data_read + sum(file.data_start for checkpoint in checkpoints for file in checkpoint.files)

    @cached_property
    def itemsizes(self) -> tuple[int, int]:
        """Bytes of the widest element that is read, and of the widest that is written."""
        return widest_elements(self.pieces)

    def metadata(self, record: Record, folder: str = "") -> dict[str, str]:
        """The metadata of the files in one folder of an output, but for the digests.

        What all checkpoints have alike comes first, then the second names of tensors in this folder: these are entries
        of their own, by which safetensors.torch.load_model knows that nothing is missing.
        """
        shared = self.series.last.weights.within(folder, self.aliases)
        second = {name: kept for name, kept in shared.items() if name != "format" and not name.startswith(PREFIX)}
        return {**self.carried.get(folder, {}), **second, **record.entries()}

    def headers(self, record: Record) -> list[bytes]:
        """The header of each shard of one output, with what its record knows by then; of another's files, none."""
        if self.is_same:
            return [b""] * len(self.shards)
        entries = {folder: self.metadata(record, folder) for folder in self.folders}
        parts = [(shard.folder, self.tensors_of(number)) for number, shard in enumerate(self.shards)]
        return [
            sealed_header(part, entries[folder] | record.digest_entry(tensor.name for tensor in part))
            for folder, part in parts
        ]

    @cached_property
    def header_sizes(self) -> list[list[int]]:
        """Bytes of the header of each shard, for each output; its record is as long when it is known as before."""
        return [[len(head) for head in self.headers(output.record)] for output in self.outputs]

    @cached_property
    def _document_sizes(self) -> list[int]:
        return [len(output.record.document()) for output in self.outputs]

    def tensors_of(self, shard: int) -> list[PlannedTensor]:
        """The tensors of one shard, in the order of their bytes."""
        return [tensor for tensor in self.tensors if tensor.shard == shard]

    @cached_property
    def folders(self) -> list[str]:
        """Where the weight files lie, below the directory of an output: empty for itself."""
        return list(dict.fromkeys(shard.folder for shard in self.shards))

    def indices(self) -> dict[str, bytes]:
        """Name and content of the index of every folder with several shards."""
        if self.is_same:
            return {}
        stems, count = output_stems(self.series), Counter(shard.folder for shard in self.shards)
        return {
            inside(folder, stems[folder] + INDEX_SUFFIX): index(self.tensors, self.shards, folder)
            for folder in self.folders
            if count[folder] > 1
        }

    @cached_property
    def bytes_written(self) -> int:
        """Of all files of all outputs."""
        return sum(sum(self.files(output).values()) for output in self.outputs)

    def weight_bytes(self, output: PlannedOutput) -> int:
        """Of the files of one output that hold its pieces."""
        heads = self.header_sizes[self.outputs.index(output)]
        return sum(heads) + sum(shard.nbytes for shard in self.shards)

    def files(self, output: PlannedOutput) -> dict[Path, int]:
        """Every file that one output consists of, with its size."""
        target = output.target
        if target is None:
            return {}
        heads = self.header_sizes[self.outputs.index(output)]
        sizes = [head + shard.nbytes for head, shard in zip(heads, self.shards, strict=True)]
        document = self._document_sizes[self.outputs.index(output)]
        if target.is_file:
            return {target.path: sizes[0]} | ({document_beside(target.path): document} if self.is_same else {})
        files = {target.path / shard.name: size for shard, size in zip(self.shards, sizes, strict=True)}
        files |= {target.path / name: len(content) for name, content in self.indices().items()}
        files[target.path / DOCUMENT] = document
        if self.copies:
            directory = copies_from(self.series)
            sizes_of = {name: len(content) for name, content in self.edited.items()}
            for name in self.copies:
                files[target.path / name] = sizes_of.get(name) or (directory / name).stat().st_size
        return files


def output_stems(series: Series) -> dict[str, str]:
    """By folder, the name under which loaders look for weights: that of the last checkpoint, if libraries know it."""
    return {
        folder: part.stem if series.last.directory or part.stem in STANDARD_STEMS else "model"
        for folder, part in series.last.weights.components.items()
    }


def widest_elements(tensors: Iterable[PlannedTensor]) -> tuple[int, int]:
    """Bytes of the widest element that is read, and of the widest that is written; 1 without tensors."""
    bits = [(DTYPES[tensor.source_dtype].bits, DTYPES[tensor.dtype].bits) for tensor in tensors]
    read, written = (max(column) for column in zip((8, 8), *bits, strict=True))
    return -(-read // 8), -(-written // 8)


def copies_from(series: Series) -> AnyPath:
    """The directory whose configuration and tokenizer go with the average."""
    directory = series.last.directory
    if directory is None:
        raise ValueError("the last checkpoint is a file")
    return directory


def _source_bytes(tensor: PlannedTensor) -> int:
    return tensor.elements * DTYPES[tensor.source_dtype].bits // 8
