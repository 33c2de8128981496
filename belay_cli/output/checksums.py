"""Checksums inside the files of a last checkpoint, taken of what was written into them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from belay_cli.engine.checksum import crc32
from belay_cli.output.blocks import Read
from belay_cli.planning.same import Renewed


def renew(renewed: Sequence[Renewed], descriptors: Sequence[int], read: Read, threads: ThreadPoolExecutor) -> None:
    """Take the CRC-32 of the bytes that each is of, and write it wherever it stands. Raises OSError."""

    def one(checksum: Renewed) -> None:
        shard, (begin, end, places) = checksum
        crc = 0
        for data in read(shard, begin, end):
            crc = crc32(data, crc)
        for place in places:
            if os.pwrite(descriptors[shard], crc.to_bytes(4, "little"), place) != 4:
                raise OSError("a checksum could not be written")

    for _ in threads.map(one, renewed):
        pass
