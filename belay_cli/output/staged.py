"""Outputs from the first byte to the last step: begun or gone on with, written, whole, and put in place together."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

from belay_cli import words
from belay_cli.engine.ranks import Alone, Ranks, check_terminated
from belay_cli.engine.shares import divide
from belay_cli.engine.spans import Line, Spans
from belay_cli.errors import LostRank, OutputError, Terminated
from belay_cli.output.journal import identity_of
from belay_cli.output.signals import Heard, meanwhile, signals_held
from belay_cli.output.writer import OutputWriter, target_of
from belay_cli.planning import Plan

_OTHER_FILES = 128  # standard streams, libraries, directories
_GOES_ON = "the same command goes on where it stopped"


class Staged(NamedTuple):
    """Outputs under construction: a writer for each, and what of all of them is left for this process to do.

    `heard` is to be called between steps: it raises what a signal stands for, or that another process is gone.
    """

    writers: list[OutputWriter]
    todo: Spans
    heard: Heard


@contextlib.contextmanager
def staged_outputs(
    plan: Plan,
    fingerprints: Sequence[str],
    *,
    device: str = "cpu",
    ranks: Ranks = Alone(),  # noqa: B008
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Staged]:
    """The outputs of a plan, as far as an earlier run has finished them. On leaving: all whole and in place.

    After any exception nothing is in place. What was finished by then is left to the next run if the process was
    terminated, lost another one, or could not write any more; else it is removed. If one output cannot be put in
    place, those before it stay: each is whole by itself.

    fingerprints: [T], of the checkpoints; device: where the arithmetic will be done; ranks: the processes that do this
    together; note: hears of what an earlier run left.
    """
    _allow_files(plan)
    records = [output.record.with_fingerprints(fingerprints) for output in plan.outputs]
    writers = [OutputWriter(plan, output, record) for output, record in zip(plan.outputs, records, strict=True)]
    identities = [identity_of(plan, record, device) if plan.options.resume else None for record in records]
    with signals_held() as signals:

        def heard() -> None:
            try:
                signals()
            except Terminated:
                check_terminated(ranks)
                raise
            ranks.check()

        try:
            if ranks.number == 0:
                _begin(plan, writers, identities, note)
            done = ranks.from_first([writer.done for writer in writers])
            if ranks.number:
                for writer, identity, own in zip(writers, identities, done, strict=True):
                    writer.join(ranks.number, identity, Spans(own))
            left = Line(plan).whole.without(reduce(Spans.both, done))
            shares = divide(plan, left, ranks.count) if ranks.count > 1 else [left]
            yield Staged(writers, shares[ranks.number], heard)
            meanwhile(lambda: _finish(plan, writers, shares, ranks), heard)
            if ranks.number == 0:
                for writer in writers:
                    writer.put_in_place()
            ranks.from_first(True)
        except BaseException as error:
            ended = _ended_by(error, signals)
            _leave(writers, ended)
            if ended is error:
                raise
            raise ended from error


def _begin(
    plan: Plan, writers: Sequence[OutputWriter], identities: Sequence[str | None], note: Callable[[str], None]
) -> None:
    for writer in writers:
        writer.lock()
    _check_space(plan, writers)
    for writer, identity in zip(writers, identities, strict=True):
        if writer.begin(identity):
            note(f"{writer.target.path}: an earlier run had other options or checkpoints; it starts over")
    done = reduce(Spans.both, [writer.done for writer in writers])
    if done:
        share = done.nbytes / (Line(plan).nbytes or 1)
        note(f"goes on with an earlier run, of which {share:.0%} is done; --no-resume starts over")


def _finish(plan: Plan, writers: Sequence[OutputWriter], shares: Sequence[Spans], ranks: Ranks) -> None:
    """Make outputs whole: digests by whoever wrote a tensor, then the headers and other files by the first."""
    if plan.is_same:
        _finish_files(writers, ranks)
        return
    owners = _owners(plan, shares)
    own = {name for name, (owner, alone) in owners.items() if owner == ranks.number and alone}
    rest = {name for name, (owner, alone) in owners.items() if owner == ranks.number and not alone}
    found = [writer.sync_weights(own) for writer in writers]
    _together(ranks)  # from here on all is written
    if rest:
        found = [digests | writer.digests(rest) for digests, writer in zip(found, writers, strict=True)]
    gathered = ranks.to_first(found)
    if ranks.number == 0:
        for number, writer in enumerate(writers):
            together: dict[str, str] = {}
            for one in gathered:
                together |= one[number]
            writer.finish(together)


def _finish_files(writers: Sequence[OutputWriter], ranks: Ranks) -> None:
    """The same in the files of a last checkpoint: when all is written, checksums in them, then digests of them."""
    for writer in writers:
        writer.sync_weights(())
    _together(ranks)
    for writer in writers:
        writer.renew_checksums(ranks.number, ranks.count)
        writer.sync_weights(())
    _together(ranks)
    gathered = ranks.to_first([writer.block_digests(ranks.number, ranks.count) for writer in writers])
    if ranks.number == 0:
        for number, writer in enumerate(writers):
            writer.finish_files({block: digest for one in gathered for block, digest in one[number].items()})


def _together(ranks: Ranks) -> None:
    """Wait until all processes are as far."""
    ranks.to_first(None)
    ranks.from_first(True)


def _owners(plan: Plan, shares: Sequence[Spans]) -> Mapping[str, tuple[int, bool]]:
    """Which process takes the digest of each tensor, and whether nobody else writes to it now.

    One that several write goes to the first of them; those that nobody writes, as an earlier run has, are dealt out.
    """
    found: dict[str, tuple[int, bool]] = {}
    idle = 0
    updated = {name for pair in plan.updates for name in pair}  # whole matrices, which the first makes alone
    for name, begin, end in Line(plan).of_tensors():
        if name in updated:
            found[name] = (0, True)
            continue
        writing = [number for number, share in enumerate(shares) if any(share.within(begin, end))]
        if not writing:
            writing = [idle % len(shares)]
            idle += 1
        found[name] = (writing[0], len(writing) == 1)
    return found


def _ended_by(error: BaseException, signals: Heard) -> BaseException:
    """The error; or that this process was terminated, as the one was that it has lost."""
    if isinstance(error, LostRank) and error.terminated:
        try:
            signals()
        except Terminated as own:
            return own
    return error


def _leave(writers: Sequence[OutputWriter], error: BaseException) -> None:
    """Put things in order after an exception, and say in it what is left."""
    kept = False
    for writer in writers:
        if not (isinstance(error, Terminated | OutputError | LostRank) and writer.keep()):
            writer.discard()
        else:
            kept = True
    if kept and isinstance(error, Terminated):
        error.hint = _GOES_ON
    elif kept and isinstance(error, OutputError | LostRank):
        error.hint = f"{error.hint}; {_GOES_ON}" if error.hint else _GOES_ON


def _allow_files(plan: Plan) -> None:
    """Let this process open every file of the output at once, beside its inputs. Raises OutputError if it may not."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited, written = resource.RLIM_INFINITY, len(plan.outputs) * len(plan.shards)
    if soft == unlimited or written <= soft // 4:  # inputs may take half of what is allowed
        return
    needed = 2 * written + _OTHER_FILES
    if hard != unlimited and needed > hard:
        raise OutputError(
            f"takes {needed} open files, and {hard} are allowed",
            file=target_of(plan.outputs[0]).path,
            hint="leave out --format same" if plan.is_same else "write fewer, larger files: --max-shard-size",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


def _check_space(plan: Plan, writers: Sequence[OutputWriter]) -> None:
    """Raise OutputError if the disk lacks the room, before anything is read. Outputs on one disk add up."""
    needed: dict[int, int] = {}
    for output, writer in zip(plan.outputs, writers, strict=True):
        place = writer.target.place
        device = place.stat().st_dev
        files = plan.files(output)
        needed[device] = needed.get(device, 0) + sum(files.values()) - plan.weight_bytes(output) + writer.unwritten
        free = shutil.disk_usage(place).free
        if needed[device] > free:
            raise OutputError(
                f"cannot be written: it takes {words.size(needed[device])}, and {words.size(free)} are free",
                file=writer.target.path,
                hint="make room, or write somewhere else: -o",
            )
