"""How long a run takes: the numbers of its work over the rates of what does it, part by part, in seconds and bytes.

The parts add up, since one waits for the other: a thread reads a block of every checkpoint, adds them up, writes the
result and hashes it, and begins again. Two things do happen at once: a file system delivers to some threads while
others compute, and what is left to hash is hashed while the disk takes the data.

    planning     = headers · header              by one process, before the others begin; none of a run that is planned
    fingerprints = bytes of them · (1 / sha256 + 1 / read)
    opening      = max(opens · open / threads, opens / what the file system opens in a second)
    reading      = read / read rate              into the buffers, of what the node has got
    arithmetic   = read / arithmetic
    writing      = written / write               into the page cache
    digests      = (written − later) / sha256
    delivery     = read / min(nodes · deliver, shared deliver)        and what of it is longer than
    waiting      = max(0, delivery − reading − arithmetic − writing − digests)
    sync         = max(written / min(nodes · store, shared store), later · (1 / sha256 + 1 / write)), and no less than
                   one thread takes to hash the largest of what is left, since a digest is taken from front to back
    bookkeeping  = tensors · (what one takes) + barriers

A rate of a node is that of all its threads at once, and the work of a run is shared out evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What is to be done.

    So many headers are read; files are opened so many times, by every thread for itself; `fingerprinted` bytes are
    hashed first; `later` bytes of what is written are hashed at the end, the most of them in one piece being `longest`.
    """

    read: int
    written: int
    headers: int = 0
    opens: int = 0
    fingerprinted: int = 0
    later: int = 0
    longest: int = 0
    tensors: int = 0
    synced: bool = True


@dataclass(frozen=True)
class Rates:
    """What a node does in a second, in bytes; of the bytes that are read for `arithmetic`. Then seconds of one thing.

    `read` is found by reading as a run does, so that it has in it what a disk of the machine takes. `deliver` is what
    a file system far away hands over to a node meanwhile.
    """

    read: float
    arithmetic: float
    write: float
    sha256: float
    store: float
    deliver: float = math.inf
    threads: int = 1
    open: float = 20e-6
    header: float = 120e-6
    tensor: float = 20e-6


@dataclass(frozen=True)
class Cluster:
    """How many nodes share the work, and what they share: a file system, in bytes and in files opened a second."""

    nodes: int = 1
    deliver: float = math.inf
    store: float = math.inf
    opens: float = math.inf
    barriers: int = 0
    barrier: float = 0.0


HERE = Cluster()


@dataclass(frozen=True)
class Estimate:
    """Seconds, and by part."""

    seconds: float
    parts: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)


def estimate(work: Work, rates: Rates, cluster: Cluster = HERE) -> Estimate:
    """How long the work takes at these rates."""
    nodes = cluster.nodes
    in_turn = {
        "reading": work.read / (nodes * rates.read),
        "arithmetic": work.read / (nodes * rates.arithmetic),
        "writing": work.written / (nodes * rates.write),
        "digests": (work.written - work.later) / (nodes * rates.sha256),
    }
    delivery = work.read / min(nodes * rates.deliver, cluster.deliver)
    parts = {
        "planning": work.headers * rates.header,
        "fingerprints": work.fingerprinted / nodes * (1 / rates.sha256 + 1 / rates.read),
        "opening": max(work.opens * rates.open / (nodes * rates.threads), work.opens / cluster.opens),
        "waiting": max(0.0, delivery - sum(in_turn.values())),
        **in_turn,
        "sync": _sync(work, rates, cluster),
        "bookkeeping": work.tensors * rates.tensor + cluster.barriers * cluster.barrier,
    }
    return Estimate(sum(parts.values()), parts)


def _sync(work: Work, rates: Rates, cluster: Cluster) -> float:
    in_turn = 1 / rates.sha256 + 1 / rates.write
    hashed = max(work.later / cluster.nodes, work.longest * rates.threads) * in_turn
    stored = work.written / min(cluster.nodes * rates.store, cluster.store)
    return max(stored if work.synced else 0.0, hashed)
