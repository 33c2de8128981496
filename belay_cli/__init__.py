"""belay: average the checkpoints of a training run after the fact, by the dynamics of EMA and BELAY.

    cli          the command line, a file a command
    api          the Python API, where the stages meet
    checkpoints  finding, ordering and opening checkpoints
    rules        ticks into coefficients
    plan         everything decided before a weight is read
    provenance   what the metadata of an output says
    engine       the plan run: arithmetic, streams, the writer
    verify       an output against its record and its checkpoints
    report       what was done, under stable names
    console      the only printer
    words        numbers as people read them
    errors       every error, as a tree

Data flows one way: cli → api → checkpoints and rules → plan → engine.

    >>> from belay_cli import average
    >>> report = average(["run/checkpoint-100", "run/checkpoint-200"], "out", method="belay")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from belay_cli._version import __version__
from belay_cli.errors import BelayError

if TYPE_CHECKING:
    from belay_cli.api import average

__all__ = ["BelayError", "__version__", "average"]


def __getattr__(name: str) -> Any:
    # On first use, so that `import belay_cli` costs nothing.
    if name == "average":
        from belay_cli.api import average

        return average
    raise AttributeError(f"module 'belay_cli' has no attribute {name!r}")
