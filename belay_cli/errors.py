"""Every error that belay raises on purpose.

BelayError              exit 1   a failure: what happened, to which file and tensor, and the mend
├── UsageError          exit 2   an option, or a combination of options, that cannot be right
├── CheckpointError              one checkpoint cannot be read: absent, cut short, or its header lies
├── SeriesError                  the checkpoints are not one series: keys, shapes, dtypes, steps, order
├── NumericError                 a weight is not finite, or an average overflows the output's dtype
├── DeviceError                  the device asked for is not there, or has too little memory
├── OutputError                  the output cannot be written
│   └── InTheWayError            it exists, or something else stands in its place
├── LostRank                     one of the processes that run a plan together is gone, or has failed
└── PublishError                 the Hub refuses, cannot be reached, or something must not be published

An error is made once, at the place that knows the file and the tensor. `belay_cli.cli` turns it into a line and an exit
code; in between it is caught only where it has an answer, such as another format, or a list of all that is wrong.
"""

from __future__ import annotations

import glob
import os
import shlex


class BelayError(Exception):
    """A failure that a person can act on.

    `message` is one line without the file's name; `file` and `tensor` say where; `hint` is the mend.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _as_text(message)
        self.file = None if file is None else _as_text(os.fspath(file))
        self.tensor = tensor
        self.hint = None if hint is None else _as_text(hint)

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}: "
        return f"{where}{self.message}"


def _as_text(text: str) -> str:
    """Text that can be written anywhere, whatever half characters a file has put into it."""
    return text.encode("utf-8", "backslashreplace").decode()


class Terminated(BaseException):
    """SIGTERM, as an exception, so that everything is put in order on the way out. `hint` says what is left."""

    def __init__(self, hint: str = "no unfinished output is left behind") -> None:
        super().__init__()
        self.hint = hint


class UsageError(BelayError):
    """An option, or a combination of options, that cannot be right."""

    exit_code = 2


class CheckpointError(BelayError):
    """One checkpoint cannot be read."""


class SeriesError(BelayError):
    """The checkpoints do not form one series."""


class NumericError(BelayError):
    """A value that is not finite, or that the output's dtype cannot hold."""


class DeviceError(BelayError):
    """The device asked for is not there, or is too small."""


class OutputError(BelayError):
    """The output cannot be written."""


class InTheWayError(OutputError):
    """Something stands where the output would go, and is not to be replaced."""


class LostRank(BelayError):  # noqa: N818 - it reads as what it is
    """One of the processes that run a plan together is gone, or has failed; `terminated`: by SIGTERM."""

    def __init__(self, message: str, hint: str | None = None, *, terminated: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.terminated = terminated


class PublishError(BelayError):
    """The output cannot be published."""


def glob_for(tensor: str) -> str:
    """A tensor's name as the value of --last or --drop, quoted: brackets and stars are meant as they stand."""
    pattern = glob.escape(tensor)
    return shlex.quote(pattern) if "'" in pattern else f"'{pattern}'"
