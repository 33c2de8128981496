"""A sweep by a command, into a directory: candidates into averages and evaluations, and what is best of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from belay_cli import words
from belay_cli.api.average import Checkpoints, listed_paths, run
from belay_cli.api.tries import Try, planned_tries
from belay_cli.checkpoints import Selection, Series, find_series
from belay_cli.checkpoints.fingerprint import Fingerprints
from belay_cli.engine.arithmetic import chosen_engine
from belay_cli.engine.device import gpu_count
from belay_cli.errors import OutputError, UsageError
from belay_cli.planning import Plan, PlanOptions, make_plan
from belay_cli.show import pictures
from belay_cli.show.listener import Listener, Nobody, Progress
from belay_cli.show.sweep import SweepReport, curves
from belay_cli.storage.files import is_remote
from belay_cli.sweeping.evaluation import Groups, running_groups, shares_of_gpus
from belay_cli.sweeping.evaluations import Evaluations
from belay_cli.sweeping.grid import LAST, Grid, as_typed, baselines, refined
from belay_cli.sweeping.metric import Score
from belay_cli.sweeping.options import EvaluationOptions, SweepOptions
from belay_cli.sweeping.outcome import Outcome, Tried
from belay_cli.sweeping.store import Store
from belay_cli.verification import recorded

_MOST_AT_ONCE = 64  # outputs of one read
_OF_THE_DISK = 0.9  # that is free, which candidates may take


class _Quiet(Nobody):
    """Shows progress, and says nothing twice."""

    def __init__(self, hears: Listener) -> None:
        self._hears = hears

    def phase(
        self, description: str, total_bytes: int | None = None, *, keep: bool = False
    ) -> AbstractContextManager[Progress]:
        """The same."""
        return self._hears.phase(description, total_bytes)


def sweep_by_command(
    checkpoints: Checkpoints,
    grid: Grid,
    output: Path,
    selection: Selection,
    planned: PlanOptions,
    evaluation: EvaluationOptions,
    options: SweepOptions,
    hears: Listener,
) -> SweepReport:
    """Judge averages by a command, and leave the best of them in `output`. Raises a BelayError."""
    began = time.monotonic()
    with Fingerprints() as marks:
        with hears.phase("Opening the checkpoints"):
            series = find_series(listed_paths(checkpoints), selection, marks.take)
            wanted = grid.candidates(len(series.checkpoints))
        if len(wanted) > options.most:
            raise UsageError(
                f"the grid has {len(wanted)} candidates, and each is evaluated",
                hint=f"a smaller one, or --most {len(wanted)} if that is meant",
            )
        with as_typed():
            tries = planned_tries(series, wanted, planned)
        store = Store(output, files=series.last.directory is None)
        _keep_clear(store, series)
        series_id = _identity(series, planned, marks.of(series.checkpoints))
        with store.opened(series_id, overwrite=planned.overwrite), running_groups() as groups:
            work = _Sweep(series, planned, evaluation, options, store, series_id, hears, marks, groups)
            work.try_all(tries)
            for _ in range(options.refine if evaluation.eval else 0):
                if not work.refine():
                    break
            return work.finish(began)


def _keep_clear(store: Store, series: Series) -> None:
    """Raise OutputError if the sweep would lie in a checkpoint."""
    target = store.path.resolve()
    for checkpoint in series.checkpoints:
        if not is_remote(checkpoint.path) and target.is_relative_to(Path(str(checkpoint.path)).resolve()):
            raise OutputError(f"lies inside the input {checkpoint.path}", file=store.path, hint="write elsewhere: -o")


def _identity(series: Series, planned: PlanOptions, marks: Sequence[str]) -> str:
    """Of what the bytes of a candidate depend on beside its rule."""
    parts = zip(series.checkpoints, series.ticks, marks, strict=True)
    opening = [series.selection.subfolder, series.selection.state_key, series.selection.source]
    told = [
        opening,
        series.unit,
        planned.arguments(),
        planned.max_shard_size,
        [[c.name, t, c.bytes, mark] for c, t, mark in parts],
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@dataclass
class _Sweep:
    """A sweep at work."""

    series: Series
    planned: PlanOptions
    evaluation: EvaluationOptions
    options: SweepOptions
    store: Store
    series_id: str
    hears: Listener
    marks: Fingerprints
    groups: Groups
    tries: list[Try] = field(default_factory=list)
    found: dict[str, Tried] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        shares = shares_of_gpus(self.evaluation.jobs, gpu_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.judged = Evaluations(self.evaluation, self.store, self.series_id, self.groups, shares)

    def try_all(self, tries: Sequence[Try]) -> None:
        """Average and evaluate these, as many at a time as there is room for."""
        begins = not self.tries
        self.tries += tries
        known = [one for one in tries if self._is_known(one)]
        left = [one for one in tries if one not in known]
        size = self._at_once(left)
        if begins:
            self._announce(len(known), len(left), size)
        if known:
            self._evaluate(known)
        for first in range(0, len(left), size or 1):
            batch = left[first : first + size]
            self._average(batch)
            self._evaluate(batch)
            if self.options.keep != "all":
                for one in batch:
                    self.store.remove_candidate(one.name)
        self.store.tidy()

    def _is_known(self, one: Try) -> bool:
        """Whether all its evaluations have ended, so that its weights are not needed."""
        if self.options.keep == "all" and not self.store.candidate(one.name).exists():
            return False
        return bool(self.evaluation.eval) and self.judged.is_known(one)

    def _at_once(self, tries: Sequence[Try]) -> int:
        """How many outputs one read makes. Raises OutputError if there is no room for one."""
        if not tries:
            return 0
        each = sum(tensor.nbytes for tensor in tries[0].plan.tensors) + (1 << 20)
        free = int(_OF_THE_DISK * shutil.disk_usage(self.store.path).free)
        wanted = len(tries) if self.options.keep == "all" else 1
        if wanted * each > free:
            many = f"{words.plural(wanted, 'candidate')} of {words.size(each)}"
            raise OutputError(
                f"has no room: {many}, and {words.size(free)} are free",
                file=self.store.path,
                hint="make room, write elsewhere: -o" + (", or --keep best" if wanted > 1 else ""),
            )
        size = min(
            len(tries), self.options.at_once or _best_at_once(tries[0].plan.data_read, each), max(1, free // each)
        )
        while size > 1 and not self._fits(tries[:size]):
            size = (size + 1) // 2
        return size

    def _fits(self, tries: Sequence[Try]) -> bool:
        """Whether so many outputs fit into the memory for buffers."""
        try:
            make_plan(self.series, [one.candidate.rule for one in tries], None, self.planned, engine=chosen_engine())
        except UsageError:
            return False
        return True

    def _announce(self, known: int, left: int, size: int) -> None:
        """What is going to happen, and what is to be known of the series."""
        plan = self.tries[0].plan
        uniform = make_plan(self.series, [baselines()[1].rule], None, self.planned, engine=chosen_engine())
        self._tell(uniform.warnings, self.series.notes)
        batches = -(-left // size) if size else 0
        text = f"{words.plural(known + left, 'candidate')} of {self.series.name}"
        text += f", {known} of them evaluated before" if known else ""
        if left:
            reads = f"{words.plural(batches, 'read')} of {words.size(plan.data_read)}"
            written = size * sum(tensor.nbytes for tensor in plan.tensors)
            text += f"; {size} at a time: {reads}, {words.size(written)} on disk"
        self.hears.note(text)

    def _tell(self, warnings: Sequence[str], notes: Sequence[str]) -> None:
        """Say what has not been said yet."""
        for warning in [text for text in warnings if text not in self.warnings]:
            self.warnings.append(warning)
            self.hears.warn(warning)
        for note in [text for text in notes if text not in self.notes]:
            self.notes.append(note)
            self.hears.note(note)

    def _run(self, plan: Plan) -> None:
        """Run a plan, and say what only the content of the checkpoints shows; of each output apart nothing is said."""
        done = run(plan, _Quiet(self.hears), self.marks)[0]
        self._tell([text for text in done.warnings if text not in plan.warnings], done.notes)

    def _average(self, batch: Sequence[Try]) -> None:
        """Write the candidates that are not there; one that is there is whole."""
        missing = [one for one in batch if not self.store.candidate(one.name).exists()]
        if not missing:
            return
        (self.store.path / "candidates").mkdir(exist_ok=True)
        places = [self.store.candidate(one.name) for one in missing]
        options = replace(self.planned, overwrite=False, sync=self.planned.sync and self.options.keep == "all")
        rules = [one.candidate.rule for one in missing]
        plan = make_plan(self.series, rules, places, options, engine=chosen_engine())
        self._run(plan)

    def _evaluate(self, batch: Sequence[Try]) -> None:
        """Score these; without a command there is nothing to say of them but what they are."""
        if not self.evaluation.eval:
            self.found |= {one.candidate.label: Tried(one.candidate, one.summary) for one in batch}
            return
        with self.hears.share("Evaluating") as progress:

            def told(done: int, total: int) -> None:
                progress(done / total)
                progress.describe(f"Evaluating, {done} of {total}")

            for one, found in zip(batch, self.judged.all(batch, told), strict=True):
                self.found[one.candidate.label] = Tried(one.candidate, one.summary, **found)

    @property
    def outcome(self) -> Outcome:
        """What is known so far."""
        return Outcome([self.found[one.candidate.label] for one in self.tries], bool(self.judged.judge.higher))

    def refine(self) -> bool:
        """Try the grid around the best; False if there is nothing between its points."""
        best = self.outcome.best
        if best is None:
            return False
        known = {one.candidate.label for one in self.tries}
        tried = [one.candidate for one in self.tries]
        more = [one for one in refined(tried, best.candidate) if one.label not in known]
        if not more:
            return False
        seen = {one.coefficients for one in self.tries}
        tries = [t for t in planned_tries(self.series, more, self.planned) if t.coefficients not in seen]
        self.try_all(tries)
        return bool(tries)

    def finish(self, began: float) -> SweepReport:
        """Write the winner, ask the second command, and say what was found."""
        outcome = self.outcome
        best = next((one for one in self.tries if outcome.best and one.candidate is outcome.best.candidate), None)
        confirmed = self._confirmed(best) if best and self.evaluation.confirm else None
        written = ""
        if best is not None and self.options.keep != "none":
            self._write_best(best, outcome, confirmed)
            written = str(self.store.best)
        else:
            self.store.remove_best()  # of an earlier grid
        report = SweepReport(
            series=self.series.name,
            unit=self.series.unit,
            metric=self.judged.judge.name,
            outcome=outcome,
            rules={one.candidate.label: one.parameters for one in self.tries},
            output=str(self.store.path),
            best_output=written,
            evaluated=self.judged.count,
            confirmed=confirmed,
            warnings=tuple(self.warnings),
            pictures=self._draw(outcome),
        )
        report = replace(report, seconds=time.monotonic() - began)
        self.store.write(self.series_id, report.to_json())
        self.store.tidy()
        return report

    def _confirmed(self, best: Try) -> tuple[Score | None, Score | None]:
        """The scores of the winner and of the last checkpoint by the second command."""
        last = next(one for one in self.tries if one.candidate.label == LAST)
        both = [best, last]
        self._average([one for one in both if not self.judged.is_confirmed(one)])
        scores: list[Score | None] = []
        for one in both:
            with self.hears.phase("Confirming"):
                found = self.judged.confirmed(one)
            if found["failure"]:
                self.hears.warn(f"--confirm: {one.candidate.label} {found['failure']}")
            scores.append(found["score"])
        if self.options.keep != "all":
            for one in both:
                self.store.remove_candidate(one.name)
        return scores[0], scores[1]

    def _write_best(self, best: Try, outcome: Outcome, confirmed: tuple[Score | None, Score | None] | None) -> None:
        """The winner as average writes it, with what the sweep found in its record, unless it is there already."""
        chosen = _chosen(outcome, self.judged.judge.name, confirmed)
        there = recorded(self.store.best)
        parameters = {"method": there.rule.method, "unit": there.unit, **there.rule.parameters()} if there else None
        if there is not None and parameters == best.parameters and there.chosen == chosen:
            return
        options = replace(self.planned, overwrite=True)
        plan = make_plan(
            self.series, [best.candidate.rule], [self.store.best], options, engine=chosen_engine(), chosen=chosen
        )
        self._tell(plan.warnings, ())
        self._run(plan)

    def _draw(self, outcome: Outcome) -> tuple[str, ...]:
        if len(outcome.ranked) < 2:
            return ()
        if not pictures.have_matplotlib():
            self.hears.note("no picture is drawn: that takes matplotlib; pip install matplotlib")
            return ()
        last = outcome.last
        score = last.score.value if last is not None and last.score is not None else None
        paths = [self.store.path / f"sweep.{form}" for form in ("png", "svg")]
        for path in paths:
            pictures.draw_sweep(path, curves(outcome), metric=self.judged.judge.name, unit=self.series.unit, last=score)
        return tuple(map(str, paths))


def _best_at_once(read: int, each: int) -> int:
    """How many outputs of `each` bytes go fastest with one read of so many: as many as possible, where reads are dear.

    A series that the system's cache holds is cheap to read again, and candidates that are judged and removed before
    they are due on the disk never get there: then as many as a system lets wait, a fifth of the memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if read > memory // 2:
        return _MOST_AT_ONCE
    return max(1, min(_MOST_AT_ONCE, memory // 5 // each))


def _chosen(
    outcome: Outcome, metric: str, confirmed: tuple[Score | None, Score | None] | None
) -> Mapping[str, Any] | None:
    """What the record of the winner says of the sweep."""
    best, last = outcome.best, outcome.last
    if best is None or best.score is None:
        return None
    both = confirmed or (None, None)
    told = {
        "metric": metric,
        "higher_is_better": outcome.higher,
        "candidates": len(outcome.ranked),
        "score": best.score.value,
        "standard_error": best.score.error,
        "last_score": last.score.value if last and last.score else None,
        "confirmed": both[0].value if both[0] else None,
        "last_confirmed": both[1].value if both[1] else None,
    }
    return {name: value for name, value in told.items() if value is not None}
