"""Policies: by its name, is a tensor averaged, taken from the last checkpoint, or dropped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from belay_cli.checkpoints.dtypes import DTYPES, NOT_AVERAGEABLE_FLOATS
from belay_cli.checkpoints.safetensors_header import Tensor
from belay_cli.errors import SeriesError, UsageError, glob_for

AVERAGE, LAST, DROP = "average", "last", "drop"


@dataclass(frozen=True)
class Policies:
    """Globs over tensor names; `drop` goes before `last`, and `last` before `average`.

    Without `average`, every floating point tensor is averaged; with it, only those that match. All the
    rest comes from the last checkpoint.
    """

    average: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    def action(self, name: str, dtype: str) -> str:
        """AVERAGE, LAST or DROP for a tensor of this name and dtype code."""
        if _matches(name, self.drop):
            return DROP
        if _matches(name, self.last) or not DTYPES[dtype].averageable:
            return LAST
        return AVERAGE if not self.average or _matches(name, self.average) else LAST

    def exempts(self, name: str) -> bool:
        """Whether the tensor need not be in every checkpoint, because a person decided what becomes of it."""
        return _matches(name, self.drop) or _matches(name, self.last)

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raise UsageError for a glob that matches no tensor, SeriesError for a dtype that nobody decided about."""
        tensors = list(tensors)
        for option, globs in ((AVERAGE, self.average), (LAST, self.last), (DROP, self.drop)):
            for glob in globs:
                matched = [tensor for tensor in tensors if fnmatchcase(tensor.name, glob)]
                if not matched:
                    raise UsageError(
                        f"--{option} '{glob}' matches no tensor", hint="belay inspect --tensors lists them"
                    )
                if option == AVERAGE and not any(DTYPES[tensor.dtype].averageable for tensor in matched):
                    raise UsageError(f"--average '{glob}' matches no floating point tensor")
        for tensor in tensors:
            if tensor.dtype in NOT_AVERAGEABLE_FLOATS and not self.exempts(tensor.name):
                raise SeriesError(
                    f"{tensor.name!r} is {DTYPES[tensor.dtype].name}, whose numbers mean nothing without their scales",
                    tensor=tensor.name,
                    hint=f"average before quantization; to keep the last one's: --last {glob_for(tensor.name)}",
                )

    def arguments(self) -> list[str]:
        """The command-line options that say the same."""
        pairs = ((AVERAGE, self.average), (LAST, self.last), (DROP, self.drop))
        return [word for option, globs in pairs for glob in globs for word in (f"--{option}", glob)]


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
