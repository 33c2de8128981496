"""From a series, rules and options to a plan: headers only, no weight is read and torch is not imported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.companions import companions
from belay_cli.checkpoints.compare import first_difference
from belay_cli.checkpoints.directory import STANDARD_STEMS
from belay_cli.checkpoints.dtypes import BY_NAME, DTYPES
from belay_cli.checkpoints.lora import Pair
from belay_cli.checkpoints.safetensors_header import Tensor
from belay_cli.checkpoints.storage import AnyPath, is_remote
from belay_cli.errors import UsageError
from belay_cli.plan.adapters import LORA, edited_config, of_rank, planned_updates
from belay_cli.plan.buffers import DEFAULT_MAX_MEMORY, Buffers, plan_buffers
from belay_cli.plan.layout import (
    DEFAULT_SHARD_SIZE,
    PlannedTensor,
    Shard,
    header,
    index,
    lay_out,
    parse_size,
)
from belay_cli.plan.policies import AVERAGE, DELTA, DROP, LAST, Policies, refuse_packed, without_tied
from belay_cli.plan.target import Target, default_output, find_target, refuse_foreign
from belay_cli.plan.warnings import rule_warnings, served_twice, tensor_warnings
from belay_cli.provenance import DOCUMENT, PLACEHOLDER, digest_entry, document, document_text, metadata
from belay_cli.rules import Rule, RuleOptions, Summary, resolve_rule, summarize
from belay_cli.rules.dynamics import Dynamics, Float64Array, dynamics_coefficients

_REMOTE_CHUNK = 1 << 20  # elements; a server far away is asked for more at a time than a cache holds
OUTPUT_DTYPES = ("same", "float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PlanOptions:
    """Everything but the series and the rules; sizes as people write them. Raises UsageError."""

    dtype: str = "same"
    device: str = "auto"
    policies: Policies = field(default_factory=Policies)
    max_shard_size: str | None = None
    threads: int | None = None
    max_memory: str | None = None
    chunk: int | None = None  # elements; for tests, since no byte of the output depends on it
    sync: bool = True
    overwrite: bool = False
    allow_nonfinite: bool = False
    lora: str | None = None
    lora_rank: int | None = None

    def __post_init__(self) -> None:
        if self.lora not in (None, *LORA):
            raise UsageError(f"--lora {self.lora} is unknown", hint=f"one of: {', '.join(LORA)}")
        if self.lora_rank is not None and (self.lora != "delta" or self.lora_rank < 1):
            raise UsageError("--lora-rank is a number of 1 or more, and goes with --lora delta")
        if self.dtype not in OUTPUT_DTYPES:
            raise UsageError(f"--dtype {self.dtype} is unknown", hint=f"one of: {', '.join(OUTPUT_DTYPES)}")
        name, _, number = self.device.partition(":")
        known = self.device in ("auto", "cpu", "cuda") or (name == "cuda" and number.isdecimal())
        if not known:
            raise UsageError(f"--device {self.device} is unknown", hint="one of: auto, cpu, cuda, cuda:0, cuda:1, …")

    def arguments(self) -> list[str]:
        """The command-line options that the bytes of the tensors depend on."""
        words = [] if self.dtype == "same" else ["--dtype", self.dtype]
        words += ["--lora", self.lora] if self.lora else []
        words += ["--lora-rank", str(self.lora_rank)] if self.lora_rank else []
        return self.policies.arguments() + words + (["--allow-nonfinite"] if self.allow_nonfinite else [])


@dataclass(frozen=True)
class PlannedOutput:
    """One average: its rule, its coefficients [T], and where it goes.

    `ema_lag` is the mean lag in ticks of the EMA with the same half-life, where the rule lags otherwise.
    """

    rule: Rule
    coefficients: Float64Array
    summary: Summary
    ema_lag: float | None
    target: Target


@dataclass(frozen=True)
class Plan:
    """What a replay will do. `tensors` are in the order of the output's bytes; sizes in bytes."""

    series: Series
    options: PlanOptions
    tensors: tuple[PlannedTensor, ...]
    dropped: int
    shards: tuple[Shard, ...]
    outputs: tuple[PlannedOutput, ...]
    copies: tuple[str, ...]  # files of the last checkpoint's directory, relative to it
    edited: Mapping[str, bytes]  # those of them that are written with another content
    updates: tuple[Pair, ...]  # factors that are averaged as the update they stand for
    buffers: Buffers
    warnings: tuple[str, ...]

    @cached_property
    def read_checkpoints(self) -> list[int]:
        """The checkpoints that are read: those with a coefficient in some output."""
        return [t for t in range(len(self.series.ticks)) if any(output.coefficients[t] for output in self.outputs)]

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
        averaged = sum(_source_bytes(tensor) for tensor in self.tensors if tensor.action == AVERAGE)
        last = sum(_source_bytes(tensor) for tensor in self.tensors if tensor.action == LAST)
        factors = sum(self.series.last.tensors[name].nbytes for pair in self.updates for name in pair)
        return (averaged + factors) * len(self.read_checkpoints) + last

    @property
    def bytes_read(self) -> int:
        """`data_read` and the headers of the checkpoints that are read."""
        checkpoints = [self.series.checkpoints[t] for t in self.read_checkpoints]
        return self.data_read + sum(file.data_start for checkpoint in checkpoints for file in checkpoint.files)

    @property
    def itemsizes(self) -> tuple[int, int]:
        """Bytes of the widest element that is read, and of the widest that is written."""
        return _widest(tensor.source_dtype for tensor in self.tensors), _widest(tensor.dtype for tensor in self.tensors)

    def metadata(self, output: PlannedOutput, fingerprints: Sequence[str] | None = None) -> dict[str, str]:
        """The record of one output, but for the digests."""
        return metadata(
            self.series,
            output.rule,
            output.coefficients.tolist(),
            policies=asdict(self.options.policies),
            dtype=self.options.dtype,
            options=self.options.arguments(),
            copies=() if output.target.is_file else self.copies,
            aliases=self.aliases,
            lora=self.options.lora,
            fingerprints=fingerprints,
        )

    def document(
        self,
        output: PlannedOutput,
        fingerprints: Sequence[str] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> bytes:
        """belay.json of one output directory; without fingerprints or digests, placeholders of the same length."""
        names = [tensor.name for tensor in self.tensors]
        found = {name: digests[name] if digests else PLACEHOLDER for name in names}
        return document_text(document(self.metadata(output, fingerprints), found))

    def headers(
        self,
        output: PlannedOutput,
        fingerprints: Sequence[str] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> list[bytes]:
        """The header of each shard of one output; without fingerprints or digests, placeholders of the same length."""
        entries = self.metadata(output, fingerprints)
        parts = [self.tensors_of(number) for number in range(len(self.shards))]
        return [header(part, entries | digest_entry([tensor.name for tensor in part], digests)) for part in parts]

    def tensors_of(self, shard: int) -> list[PlannedTensor]:
        """The tensors of one shard, in the order of their bytes."""
        return [tensor for tensor in self.tensors if tensor.shard == shard]

    def index(self) -> tuple[str, bytes] | None:
        """Name and content of the index, if there are several shards."""
        if len(self.shards) == 1:
            return None
        return f"{output_stem(self.series)}.safetensors.index.json", index(self.tensors, self.shards)

    def files(self, output: PlannedOutput) -> dict[Path, int]:
        """Every file that one output consists of, with its size."""
        target = output.target
        sizes = [len(head) + shard.nbytes for head, shard in zip(self.headers(output), self.shards, strict=True)]
        if target.is_file:
            return {target.path: sizes[0]}
        files = {target.path / shard.name: size for shard, size in zip(self.shards, sizes, strict=True)}
        if entry := self.index():
            files[target.path / entry[0]] = len(entry[1])
        files[target.path / DOCUMENT] = len(self.document(output))
        if self.copies:
            directory = copies_from(self.series)
            sizes_of = {name: len(content) for name, content in self.edited.items()}
            for name in self.copies:
                files[target.path / name] = sizes_of.get(name) or (directory / name).stat().st_size
        return files


def output_stem(series: Series) -> str:
    """The name under which loaders look for the weights: that of the last checkpoint, if libraries know it."""
    stem = series.last.weights.stem
    return stem if series.last.directory or stem in STANDARD_STEMS else "model"


def _widest(codes: Iterable[str]) -> int:
    return max((-(-DTYPES[code].bits // 8) for code in codes), default=1)


def copies_from(series: Series) -> AnyPath:
    """The directory whose configuration and tokenizer go with the average."""
    directory = series.last.directory
    if directory is None:
        raise ValueError("the last checkpoint is a file")
    return directory


def _source_bytes(tensor: PlannedTensor) -> int:
    return tensor.elements * DTYPES[tensor.source_dtype].bits // 8


def make_plan(
    series: Series,
    rules: Sequence[RuleOptions],
    outputs: Sequence[str | os.PathLike[str] | None],
    options: PlanOptions | None = None,
) -> Plan:
    """Decide everything: one output a rule, all read at once. An output of None goes to the default place.

    Raises UsageError, SeriesError, CheckpointError or OutputError.
    """
    options = options or PlanOptions()
    policies, notes = without_tied(options.policies, series)
    options, series = replace(options, policies=policies), replace(series, notes=(*series.notes, *notes))
    if not rules or len(rules) != len(outputs):
        raise UsageError(f"{len(rules)} rules need as many outputs, not {len(outputs)}")
    found = _all_tensors(series)
    policies.check(found.values())
    refuse_packed(policies, found, series.last.directory)
    if error := first_difference(series.checkpoints, policies.exempts):
        raise error
    updates = planned_updates(series, options.lora, policies, found)
    factors = {name for pair in updates for name in pair}
    tensors = [_plan_tensor(tensor, options, tensor.name in factors) for tensor in series.last.tensors.values()]
    kept = [tensor for tensor in tensors if tensor.action != DROP]
    if not kept:
        raise UsageError("--drop leaves no tensor", hint="drop fewer")
    if any(path is not None and not os.fspath(path) for path in outputs):
        raise UsageError("--output is empty", hint="is a variable of the shell not set?")
    targets = [
        find_target(default_output(series) if path is None else Path(path), series, overwrite=options.overwrite)
        for path in outputs
    ]
    _refuse_same(targets)
    placed, shards = lay_out(kept, output_stem(series), _largest_shard(options, targets))
    directory = series.last.directory
    copies, led_outside = companions(directory) if directory and not all(t.is_file for t in targets) else ([], [])
    remote = any(is_remote(file.path) for checkpoint in series.checkpoints for file in checkpoint.files)
    planned = [_plan_output(series, rule, target) for rule, target in zip(rules, targets, strict=True)]
    plan = Plan(
        series=series,
        options=options,
        tensors=tuple(placed),
        dropped=len(found) - len(kept),
        shards=tuple(shards),
        outputs=tuple(planned),
        copies=tuple(copies),
        edited=edited_config(series, options.lora_rank, copies),
        updates=updates,
        buffers=plan_buffers(
            outputs=len(outputs),
            source_bytes=_widest(tensor.source_dtype for tensor in placed),
            output_bytes=_widest(tensor.dtype for tensor in placed),
            threads=options.threads,
            max_memory=parse_size(options.max_memory or DEFAULT_MAX_MEMORY, "--max-memory"),
            chunk=options.chunk or (_REMOTE_CHUNK if remote else None),
        ),
        warnings=tuple(_warnings(series, planned, placed, led_outside)),
    )
    for target in targets:
        refuse_foreign(target, [DOCUMENT, *(shard.name for shard in shards), *copies])
    return plan


def _all_tensors(series: Series) -> dict[str, Tensor]:
    """Every tensor of every checkpoint, as the last one that has it has it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for checkpoint in reversed(series.checkpoints):
        if id(checkpoint.tensors) not in seen:
            seen.add(id(checkpoint.tensors))
            found = {**checkpoint.tensors, **found}
    return found


def _plan_tensor(tensor: Tensor, options: PlanOptions, factor: bool) -> PlannedTensor:
    action = DELTA if factor else options.policies.action(tensor.name, tensor.dtype)
    if factor and options.lora_rank is not None:
        tensor = tensor._replace(shape=of_rank(tensor, options.lora_rank))
    converted = options.dtype != "same" and DTYPES[tensor.dtype].averageable
    dtype = BY_NAME[options.dtype].code if converted else tensor.dtype
    nbytes = tensor.elements * DTYPES[dtype].bits // 8
    return PlannedTensor(tensor.name, action, tensor.dtype, dtype, tensor.shape, tensor.elements, nbytes)


def _largest_shard(options: PlanOptions, targets: Sequence[Target]) -> int | None:
    single = [target for target in targets if target.is_file]
    if single and options.max_shard_size is not None:
        raise UsageError(
            f"--max-shard-size does not go with the single file {single[0].path}",
            hint="for shards, give a directory: -o NAME without .safetensors",
        )
    if len(single) == len(targets):
        return None
    if single:
        raise UsageError("outputs must be all files or all directories, since they share one layout")
    return parse_size(options.max_shard_size or DEFAULT_SHARD_SIZE, "--max-shard-size")


def _refuse_same(targets: Iterable[Target]) -> None:
    seen: set[Path] = set()
    for target in targets:
        if target.path.resolve() in seen:
            raise UsageError(f"two outputs go to {target.path}")
        seen.add(target.path.resolve())


def _plan_output(series: Series, options: RuleOptions, target: Target) -> PlannedOutput:
    rule = resolve_rule(options, series.ticks, series.unit)
    coefficients = rule.coefficients(series.ticks)
    coefficients.flags.writeable = False
    ema_lag = None
    if rule.dynamics.feedback:
        ema = dynamics_coefficients(Dynamics(rule.dynamics.a), series.ticks)
        ema_lag = summarize(ema, series.ticks).mean_lag
    return PlannedOutput(rule, coefficients, summarize(coefficients, series.ticks), ema_lag, target)


def _warnings(
    series: Series, outputs: Sequence[PlannedOutput], tensors: list[PlannedTensor], led_outside: Sequence[str]
) -> Iterable[str]:
    several = len(outputs) > 1
    for output in outputs:
        prefix = f"{output.target.path}: " if several else ""
        yield from (prefix + warning for warning in rule_warnings(series, output.rule, output.coefficients))
    yield from tensor_warnings(series, tensors)
    yield from served_twice(series)
    yield from (f"{name} is a link that leads out of its checkpoint; it is not copied" for name in led_outside)
