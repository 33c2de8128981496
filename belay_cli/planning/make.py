"""From a series, rules and options to a plan: headers only, no weight is read and torch is not imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from belay_cli.checkpoints import Checkpoint, Series
from belay_cli.checkpoints.adapters.lora import Pair
from belay_cli.checkpoints.aliases import untied
from belay_cli.checkpoints.companions import Companions, companions, companions_above
from belay_cli.checkpoints.compare import first_difference
from belay_cli.checkpoints.metadata import Metadata, agreed_metadata
from belay_cli.checkpoints.unreadable import refuse_unreadable
from belay_cli.checkpoints.weights import inside, without
from belay_cli.errors import CheckpointError, InTheWayError, UsageError
from belay_cli.formats import SUFFIX
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import BY_NAME, DTYPES
from belay_cli.formats.safetensors import LARGEST_HEADER, METADATA
from belay_cli.formats.text import listed
from belay_cli.planning.adapters import of_rank, planned_updates
from belay_cli.planning.buffers import DEFAULT_MAX_MEMORY, FAR_AWAY, FEW_CALLS, IN_CACHE, Buffers, plan_buffers
from belay_cli.planning.chosen import chosen_format, files_of, refuse_other_shape
from belay_cli.planning.configs import edited_configs, untrue_metadata
from belay_cli.planning.facts import SeriesFacts
from belay_cli.planning.files import same_files
from belay_cli.planning.layout import DEFAULT_SHARD_SIZE, PlannedTensor, Shard, lay_out_folders, parse_size
from belay_cli.planning.options import SAME, PlanOptions
from belay_cli.planning.plan import TORCH, Plan, PlannedOutput, output_stems, widest_elements
from belay_cli.planning.policies import DELTA, DROP, Policies, refuse_packed, with_unnamed_last, without_tied
from belay_cli.planning.same import Layout, lay_out_same
from belay_cli.planning.target import Target, default_output, find_target, refuse_foreign
from belay_cli.planning.warnings import (
    learning_rate_warnings,
    left_out_warnings,
    order_warnings,
    rule_warnings,
    served_twice,
    tensor_warnings,
)
from belay_cli.record import DOCUMENT, PLACEHOLDER, Record, canonical_command, document_beside, recorded_checkpoints
from belay_cli.rules import Rule, summarize
from belay_cli.storage.files import is_remote
from belay_cli.storage.pieces import StoredPieces


def make_plan(
    series: Series,
    rules: Sequence[Rule],
    outputs: Sequence[str | os.PathLike[str] | None] | None,
    options: PlanOptions | None = None,
    *,
    engine: str = TORCH,
    look_only: bool = False,
    chosen: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide everything: one output a rule, all read at once. An output of None goes to the default place.

    Without outputs the averages stay in memory. engine: of the arithmetic, if the processor does it. look_only: nothing
    will be written, and an output that is there already is a warning. chosen: how a sweep came to choose the rule.

    Raises UsageError, SeriesError, CheckpointError or OutputError.
    """
    options = options or PlanOptions()
    if not rules or (outputs is not None and len(rules) != len(outputs)):
        raise UsageError(f"{len(rules)} rules need as many outputs, not {len(outputs or ())}")
    options = replace(options, format=chosen_format(series, options, outputs))
    policies, notes = without_tied(options.policies, series)
    policies, as_they_are = with_unnamed_last(policies, series)
    checkpoints = untied(series.checkpoints, policies.action)
    options = replace(options, policies=policies)
    series = replace(series, notes=(*series.notes, *notes, *as_they_are), checkpoints=checkpoints)
    found = _all_tensors(series)
    _check_tensors(series, policies, found)
    updates = planned_updates(series, options.lora, policies, found)
    kept = _plan_tensors(series, options, {name: axis for pair in updates for axis, name in enumerate(pair)})
    targets, standing = _find_targets(series, outputs or [], options, look_only=look_only)
    if options.format == SAME:
        placed, (layout, notes) = kept, _in_its_files(series, options, kept, found, updates)
        beside, carried, left = Companions([], [], []), dict[str, dict[str, str]](), list[str]()
    else:
        placed, shards = lay_out_folders(kept, output_stems(series), _largest_shard(options, targets))
        layout = Layout(tuple(shards), tuple(placed), series.checkpoints, ())
        beside, notes = _companions(series, targets)
        carried, left = _carried(series, kept, options)
    series = replace(series, notes=(*series.notes, *notes, *left))
    folders = list(dict.fromkeys(shard.folder for shard in layout.shards))
    record = _record_maker(series, options, placed, layout.shards, beside.copied, folders, chosen)
    places = targets if outputs is not None else [None] * len(rules)
    planned = [_plan_output(series, rule, target, record) for rule, target in zip(rules, places, strict=True)]
    plan = Plan(
        series=series,
        options=options,
        engine=engine,
        tensors=tuple(placed),
        pieces=layout.pieces,
        sources=layout.sources,
        summed=layout.summed,
        dropped=len(found) - len(kept),
        shards=layout.shards,
        outputs=tuple(planned),
        copies=tuple(beside.copied),
        edited=edited_configs(series, options, beside.copied) if targets and options.format != SAME else {},
        carried=carried,
        updates=updates,
        buffers=_plan_buffers(layout.sources, options, engine, layout.pieces, planned),
        warnings=(*_warnings(series, planned, placed, beside.outside), *standing),
    )
    _refuse_long_headers(plan)
    if not look_only:
        for target in targets:
            if target.is_file:
                refuse_foreign(target, [document_beside(target.path).name] if options.format == SAME else [])
            else:
                refuse_foreign(target, [DOCUMENT, *(shard.name for shard in layout.shards), *beside.copied])
    return plan


def _check_tensors(series: Series, policies: Policies, found: Mapping[str, Tensor]) -> None:
    for checkpoint in series.checkpoints:
        refuse_unreadable(checkpoint.path, checkpoint.weights.unreadable, policies.drops)
    policies.check(found.values(), _other_names(series))
    refuse_packed(policies, found, series.last)
    if error := first_difference(series.checkpoints, policies.exempts):
        raise error


def _plan_tensors(series: Series, options: PlanOptions, factors: Mapping[str, int]) -> list[PlannedTensor]:
    """Those of the last checkpoint that are not dropped; `factors`: averaged as updates -> the axis of the rank."""
    last = series.last
    tensors = [
        _plan_tensor(tensor, options, factors.get(tensor.name), last.weights.folder_of(tensor.name))
        for tensor in last.tensors.values()
    ]
    kept = [tensor for tensor in tensors if tensor.action != DROP]
    for tensor in kept:
        if tensor.name == inside(tensor.folder, METADATA):
            raise CheckpointError(
                f"holds a tensor named {METADATA}, a name that safetensors keeps for itself",
                file=last.path,
                tensor=tensor.name,
                hint=f"leave it out: --drop {tensor.name}",
            )
    if not kept:
        raise UsageError("--drop leaves no tensor", hint="drop fewer")
    return kept


def _refuse_long_headers(plan: Plan) -> None:
    longest = max(size for sizes in plan.header_sizes for size in sizes)
    if longest > LARGEST_HEADER:
        raise UsageError(
            f"the output's header would have {longest} bytes; safetensors allows {LARGEST_HEADER}",
            hint="write more files: a smaller --max-shard-size",
        )


def _find_targets(
    series: Series, outputs: Sequence[str | os.PathLike[str] | None], options: PlanOptions, *, look_only: bool
) -> tuple[list[Target], list[str]]:
    """Where outputs go; and, if this is only a look, warnings about what stands there."""
    if any(path is not None and not os.fspath(path) for path in outputs):
        raise UsageError("--output is empty", hint="is a variable of the shell not set?")
    targets, standing = [], []
    same = options.format == SAME
    for path in [default_output(series, same=same) if path is None else Path(path) for path in outputs]:
        try:
            targets.append(find_target(path, series, overwrite=options.overwrite, same=same, look_only=look_only))
        except InTheWayError as error:
            if not look_only:
                raise
            targets.append(Target(path, series.last.directory is None if same else path.suffix == SUFFIX))
            standing.append(f"{error}; belay average will refuse: {error.hint}")
    _refuse_same(targets)
    for target in targets:
        if target.is_file and not same and (folders := series.last.weights.parts):
            raise UsageError(
                f"{target.path} is one file, and the checkpoints are several models: {listed(list(folders))}",
                hint=f"write a directory: -o {target.path.stem}",
            )
    return targets, standing


def _in_its_files(
    series: Series,
    options: PlanOptions,
    kept: Sequence[PlannedTensor],
    found: Mapping[str, Tensor],
    updates: Sequence[Pair],
) -> tuple[Layout, list[str]]:
    """The layout in the files of the last checkpoint, and notes about which of them are left."""
    refuse_other_shape(options, dropped=sorted(found.keys() - {tensor.name for tensor in kept}), updates=bool(updates))
    files = same_files(series.last, without_optimizer=options.without_optimizer)
    notes = [f"{listed(list(files.left_out))}: of an optimizer, and left out"] if files.left_out else []
    notes += [
        f"{name} is a link that leads out of its checkpoint, or to its weights; it is not copied"
        for name in files.outside
    ]
    return lay_out_same(series, kept, files), notes


def _companions(series: Series, targets: Iterable[Target]) -> tuple[Companions, list[str]]:
    """What lies beside the weights of the last checkpoint, and notes about what of it is not copied."""
    if series.last.directory is None or all(target.is_file for target in targets):
        return Companions([], [], []), []
    weights = series.last.weights
    found = companions(series.last.directory, {name for name, _ in weights.named_files()}, weights.parts)
    return found, [*found.notes, *companions_above(series.last)]


def _carried(
    series: Series, kept: Sequence[PlannedTensor], options: PlanOptions
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """By folder, the metadata that all checkpoints have; and notes about what of it is left."""
    carried, left = {}, set()
    for folder, last in series.last.weights.components.items():
        found = agreed_metadata(
            [part for c in series.checkpoints if (part := c.weights.components.get(folder))],
            {without(folder, tensor.name) for tensor in kept if tensor.folder == folder},
            last.aliases,
            untrue_metadata(options),
        )
        carried[folder] = found.carried
        left |= set(found.left)
    return carried, Metadata({}, sorted(left)).notes


def _plan_buffers(
    sources: Sequence[Checkpoint],
    options: PlanOptions,
    engine: str,
    pieces: Iterable[PlannedTensor],
    outputs: Sequence[PlannedOutput],
) -> Buffers:
    source_bytes, output_bytes = widest_elements(pieces)
    remote = any(is_remote(file.path) for checkpoint in sources for file in checkpoint.files)
    in_pieces = any(isinstance(place, StoredPieces) for place in (sources[-1].weights.places or {}).values())
    read = np.any([output.coefficients for output in outputs], axis=0)
    return plan_buffers(
        outputs=len(outputs),
        checkpoints=int(np.count_nonzero(read)),
        source_bytes=source_bytes,
        output_bytes=output_bytes,
        threads=options.threads,
        max_memory=parse_size(options.max_memory or DEFAULT_MAX_MEMORY, "--max-memory"),
        chunk=options.chunk,
        shape=FAR_AWAY if remote else FEW_CALLS if in_pieces or engine == TORCH else IN_CACHE,
    )


def _other_names(series: Series) -> list[str]:
    """Names that options may speak of, beside those of tensors: what cannot be read, and second names."""
    weights = [checkpoint.weights for checkpoint in series.checkpoints]
    return [name for found in weights for name in (*found.unreadable, *found.aliases)]


def _all_tensors(series: Series) -> dict[str, Tensor]:
    """Every tensor of every checkpoint, as the last one that has it has it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for checkpoint in reversed(series.checkpoints):
        if id(checkpoint.tensors) not in seen:
            seen.add(id(checkpoint.tensors))
            found = {**checkpoint.tensors, **found}
    return found


def _plan_tensor(tensor: Tensor, options: PlanOptions, rank_axis: int | None, folder: str) -> PlannedTensor:
    action = options.policies.action(tensor.name, tensor.dtype) if rank_axis is None else DELTA
    if rank_axis is not None and options.lora_rank is not None:
        tensor = tensor._replace(shape=of_rank(tensor, options.lora_rank, rank_axis))
    converted = options.dtype != "same" and DTYPES[tensor.dtype].averageable
    dtype = BY_NAME[options.dtype].code if converted else tensor.dtype
    nbytes = tensor.elements * DTYPES[dtype].bits // 8
    return PlannedTensor(tensor.name, action, tensor.dtype, dtype, tensor.shape, tensor.elements, nbytes, folder=folder)


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


def _plan_output(
    series: Series, asked: Rule, target: Target | None, record: Callable[[Rule, list[float], Target | None], Record]
) -> PlannedOutput:
    rule = asked.told(SeriesFacts(series)).resolve(series.ticks, series.unit)
    coefficients = rule.coefficients(series.ticks)
    coefficients.flags.writeable = False
    return PlannedOutput(
        rule=rule,
        coefficients=coefficients,
        summary=summarize(coefficients, series.ticks),
        reference=_reference(rule, series.ticks),
        target=target,
        record=record(rule, coefficients.tolist(), target),
    )


def _reference(rule: Rule, ticks: Sequence[int]) -> tuple[str, float] | None:
    """A rule to compare the mean lag with, and its lag in ticks."""
    if (found := rule.reference()) is None:
        return None
    name, other = found
    return name, summarize(other.coefficients(ticks), ticks).mean_lag


def _record_maker(
    series: Series,
    options: PlanOptions,
    tensors: Sequence[PlannedTensor],
    shards: Sequence[Shard],
    copies: Sequence[str],
    folders: list[str],
    chosen: Mapping[str, Any] | None,
) -> Callable[[Rule, list[float], Target | None], Record]:
    """What makes the record of one output of a plan; all but the rule and the copies is the same for all of them."""
    names = {tensor.name for tensor in tensors}
    weights, same = series.last.weights, options.format == SAME

    def make(rule: Rule, coefficients: list[float], target: Target | None) -> Record:
        return Record(
            rule=rule,
            unit=series.unit,
            series=recorded_checkpoints(series, coefficients),
            policies=asdict(options.policies),
            dtype=options.dtype,
            command=canonical_command(series, rule, options.arguments()),
            copies={} if target is None or target.is_file else dict.fromkeys(copies, PLACEHOLDER),
            aliases={name: kept for name, kept in weights.aliases.items() if kept in names},
            components=tuple(weights.parts if same else folders) if weights.parts else (),
            lora=options.lora,
            left_out=tuple(series.left_out),
            chosen=chosen,
            digests={} if same else {tensor.name: PLACEHOLDER for tensor in tensors},
            files=files_of(target, [shard.name for shard in shards]) if same else {},
        )

    return make


def _warnings(
    series: Series, outputs: Sequence[PlannedOutput], tensors: list[PlannedTensor], led_outside: Sequence[str]
) -> Iterable[str]:
    several = len(outputs) > 1
    for output in outputs:
        prefix = f"{output.target.path}: " if several and output.target else ""
        yield from (prefix + warning for warning in rule_warnings(series, output.rule, output.coefficients))
    yield from tensor_warnings(series, tensors)
    yield from learning_rate_warnings(series)
    yield from order_warnings(series, [output.rule for output in outputs])
    yield from left_out_warnings(series)
    yield from served_twice(series)
    yield from (f"{name} is a link that leads out of its checkpoint; it is not copied" for name in led_outside)
