"""belay as it would be if it wrote no digests, to measure what they cost: it writes zeros in their place."""

import gc
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

gc.disable()  # as belay does before it imports torch

from belay_cli.__main__ import main  # noqa: E402
from belay_cli.engine.chunks import Part  # noqa: E402
from belay_cli.output.digests import TensorDigests  # noqa: E402
from belay_cli.output.writer import OutputWriter  # noqa: E402


def _take_nothing(self: TensorDigests, part: Part, data: memoryview) -> None:
    pass


def _no_digests(self: OutputWriter, threads: ThreadPoolExecutor, names: Collection[str]) -> Iterator[tuple[str, str]]:
    return ((name, "0" * 64) for name in names)


TensorDigests.update = _take_nothing  # type: ignore[method-assign]
OutputWriter._take_digests = _no_digests  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
