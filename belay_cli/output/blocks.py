"""Digests of the files of an output, from those of their blocks, which several processes can take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from belay_cli.planning.layout import Shard
from belay_cli.storage.blocks import block_digest, blocks_of, of_blocks

Read: TypeAlias = Callable[[int, int, int], Iterable[bytes]]  # from a file by its number, from one byte to another
BlockDigests: TypeAlias = dict[tuple[int, int], bytes]  # by the number of a file, and where in it a block begins


def block_digests(
    shards: Sequence[Shard], read: Read, threads: ThreadPoolExecutor, turn: int, of: int
) -> Iterator[tuple[tuple[int, int], bytes]]:
    """The digests of every so manieth block of all files. Begins at once."""
    blocks = [(shard, *block) for shard, file in enumerate(shards) for block in blocks_of(file.nbytes)][turn::of]
    taken = threads.map(lambda block: block_digest(read(*block)), blocks)
    return (((shard, begin), digest) for (shard, begin, _), digest in zip(blocks, taken, strict=True))


def file_digests(shards: Sequence[Shard], digests: Mapping[tuple[int, int], bytes]) -> dict[str, str]:
    """The digest of each file by its name."""
    return {
        file.name: of_blocks(digests[shard, begin] for begin, _ in blocks_of(file.nbytes))
        for shard, file in enumerate(shards)
    }
