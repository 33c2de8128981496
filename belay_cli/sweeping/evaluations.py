"""The evaluations of many candidates: several at a time, each scored as soon as all of its runs have ended."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Protocol, TypedDict

from belay_cli.sweeping.evaluation import Ended, Evaluation, Groups
from belay_cli.sweeping.measures import NoResult
from belay_cli.sweeping.metric import Score, mean_of
from belay_cli.sweeping.options import EvaluationOptions
from belay_cli.sweeping.store import Store

_LOOK = 0.2  # seconds between two looks at what runs, for an interrupt


class Named(Protocol):
    """A candidate: what its files are called, and its rule as JSON has it."""

    @property
    def name(self) -> str:
        """As a file is called."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Method, unit and every parameter."""


class Found(TypedDict):
    """A score, or why there is none; every metric by name; and the seconds that it took, None if not known."""

    score: Score | None
    failure: str
    measured: Mapping[str, float]
    seconds: float | None


class Evaluations:
    """Those of one sweep. shares: environment variables for each of the evaluations that run at a time."""

    def __init__(
        self,
        options: EvaluationOptions,
        store: Store,
        series_id: str,
        groups: Groups,
        shares: Iterable[dict[str, str]],
    ) -> None:
        self._options, self._store, self._series_id, self._groups = options, store, series_id, groups
        self._slots: SimpleQueue[dict[str, str]] = SimpleQueue()
        for share in shares:
            self._slots.put(share)
        self.judge = options.judge()
        self.count = 0  # of those that were run, and not found

    def is_known(self, one: Named) -> bool:
        """Whether all of a candidate's evaluations have ended, so that its weights are not needed."""
        return all(each.ended() and not self._again(each) for each in self._runs(one))

    def all(self, several: Sequence[Named], told: Callable[[int, int], None]) -> list[Found]:
        """Evaluate candidates, and say how far that is: how many runs have ended, of how many.

        Raises UsageError if it is not known which metric is meant; what runs then is ended.
        """
        runs = [(number, each) for number, one in enumerate(several) for each in self._runs(one)]
        ended: list[list[tuple[Evaluation, Ended]]] = [[] for _ in several]
        with ThreadPoolExecutor(self._options.jobs) as pool:
            pending: dict[Future[Ended], tuple[int, Evaluation]] = {}
            try:
                pending = {pool.submit(self._run, each): (number, each) for number, each in runs}
                while pending:
                    done, _ = wait(pending, timeout=_LOOK, return_when=FIRST_COMPLETED)
                    for future in done:
                        number, each = pending.pop(future)
                        ended[number].append((each, future.result()))
                        told(len(runs) - len(pending), len(runs))
                        if len(ended[number]) == self._options.repeat:
                            self._judged(ended[number])  # now, as it may have to ask which metric is meant
            except BaseException:
                for future in pending:
                    future.cancel()
                self._groups.close()
                raise
        # Once more, by what is settled now: which of them ended first changes nothing.
        return [self._judged(each) for each in ended]

    def is_confirmed(self, one: Named) -> bool:
        """Whether the second command has judged a candidate already."""
        (each,) = self._runs(one, self._options.confirm, "confirm")
        return each.ended() is not None and not self._again(each)

    def confirmed(self, one: Named) -> Found:
        """What the second command says of a candidate."""
        (each,) = self._runs(one, self._options.confirm, "confirm")
        return self._judged([(each, self._run(each))])

    def _runs(self, one: Named, command: str | None = None, kind: str = "") -> list[Evaluation]:
        """The evaluations of a candidate, by the command or by another one, of a kind of its own."""
        identity = {"rule": one.parameters, "series": self._series_id}
        places = [
            self._store.evaluation(one.name, n, kind) for n in range(1, (1 if kind else self._options.repeat) + 1)
        ]
        line, model = command or str(self._options.eval), self._store.candidate(one.name)
        return [Evaluation(place, line, model, identity, self._options.limit) for place in places]

    def _again(self, each: Evaluation) -> bool:
        """Whether it failed, and is to be tried again."""
        ended = each.ended()
        if not (self._options.retry and ended):
            return False
        try:
            self.judge.score(each.measures(ended))
        except NoResult:
            return True
        return False

    def _run(self, each: Evaluation) -> Ended:
        if self._again(each):
            shutil.rmtree(each.directory)
        if (known := each.ended()) is not None:
            return known
        share = self._slots.get()
        try:
            found = replace(each, environment=share).run(self._groups)
        finally:
            self._slots.put(share)
        self.count += 1
        return found

    def _judged(self, ended: Sequence[tuple[Evaluation, Ended]]) -> Found:
        seconds = [end.seconds for _, end in ended if end.seconds is not None]
        scores: list[Score] = []
        measured: dict[str, float] = {}
        why = ""
        try:
            for each, end in ended:
                measures = each.measures(end)
                scores.append(self.judge.score(measures))
                measured = {str(key): one.value for key, one in measures.items() if math.isfinite(one.value)}
        except NoResult as error:
            why = str(error)
        took = math.fsum(seconds) if seconds else None
        return Found(score=None if why else mean_of(scores), failure=why, measured=measured, seconds=took)
