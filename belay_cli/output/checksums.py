"""Checksums inside the files of a last checkpoint: of what was averaged, written anew; of what was copied, held."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from belay_cli.engine.checksum import crc32
from belay_cli.errors import CheckpointError
from belay_cli.formats.text import short
from belay_cli.output.blocks import Read
from belay_cli.planning.same import Summed


def renew(summed: Sequence[Summed], descriptors: Sequence[int], read: Read, threads: ThreadPoolExecutor) -> None:
    """Take the CRC-32 of every record, and write it wherever it stands, or compare it with the one that it had.

    Raises OSError, and CheckpointError for a record that was copied and is not as it was saved.
    """

    def one(record: Summed) -> None:
        if not (record.averaged or record.checksum.crc):
            return
        crc = 0
        for data in read(record.shard, record.checksum.begin, record.checksum.end):
            crc = crc32(data, crc)
        if record.averaged:
            for place in record.checksum.places:
                if os.pwrite(descriptors[record.shard], crc.to_bytes(4, "little"), place) != 4:
                    raise OSError("a checksum could not be written")
        elif crc != record.checksum.crc:
            raise CheckpointError(
                f"{short(record.checksum.name)} is not as it was saved: the CRC-32 of its bytes is another",
                file=record.path,
                hint="copy the file again, or leave the checkpoint out",
            )

    for _ in threads.map(one, summed):
        pass
