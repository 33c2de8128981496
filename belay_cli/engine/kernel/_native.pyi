from collections.abc import Sequence

from belay_cli.engine.contract import Bytes, Bytes2D, Coefficients, Sums

def available() -> tuple[str, ...]: ...
def average(
    kernel: str,
    source: str,
    into: str,
    outputs: int,
    elements: int,
    rows: Sequence[Bytes],
    coefficients: Coefficients,
    sums: Sums,
    results: Sequence[Bytes] | None,
    begins: bool,
    /,
) -> bytes: ...
def replay(
    kernel: str,
    source: str,
    into: str,
    outputs: int,
    elements: int,
    places: Sequence[tuple[int, int]],
    coefficients: Coefficients,
    held: int,
    block: int,
    rows: Bytes2D,
    sums: Sums,
    results: Sequence[Bytes],
    /,
) -> bytes | int: ...
