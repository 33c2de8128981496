from collections.abc import Sequence

from belay_cli.engine.contract import Bytes, Bytes2D, Checksums, Coefficients, Sums

def available() -> tuple[str, ...]: ...
def crc32(data: bytes | bytearray | memoryview | Bytes, value: int, /) -> int: ...
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
    crcs: Checksums | None,
    /,
) -> bytes | int: ...
