"""What a run takes beyond this machine: the model of belay_cli.planning.estimate at assumed rates, as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from measure import table

from belay_cli import words
from belay_cli.checkpoints.fingerprint import BLOCK_BYTES, BLOCKS
from belay_cli.planning.estimate import Cluster, Estimate, Rates, Work, estimate

RANKS, THREADS = 8, 8  # of a node, and of a rank
NODES = (1, 8, 64)
CHUNK = 512 << 10  # elements that a thread makes at a time
SHARD = 5e9  # bytes of a file of safetensors

# Assumed of a node with 64 threads, of which each does a little less than one does here by itself.
NODE = Rates(
    read=100e9,
    arithmetic=400e9,
    write=40e9,
    sha256=80e9,
    store=20e9,
    deliver=20e9,
    threads=RANKS * THREADS,
    open=1e-3,
    header=2e-3,
)
SLOW_NODE = replace(NODE, deliver=5e9, store=5e9)
# Assumed of a parallel file system.
SHARED = Cluster(deliver=500e9, store=250e9, opens=20e3, barriers=4, barrier=0.5)
FAST = replace(SHARED, deliver=1e12, store=500e9)

STORAGE = {
    "5 GB/s a node": (SLOW_NODE, SHARED),
    "20 GB/s a node, 500 GB/s in all": (NODE, SHARED),
    "20 GB/s a node, 1 TB/s in all": (NODE, FAST),
}


@dataclass(frozen=True)
class Series:
    """Checkpoints of a model in bfloat16. `parts`: the ranks that saved each in DCP, a file each; 0 for safetensors."""

    name: str
    parameters: float
    checkpoints: int
    tensors: int
    parts: int = 0

    @property
    def bytes(self) -> float:
        """Of the weights of one checkpoint, all that is read of it."""
        return 2 * self.parameters

    @property
    def files(self) -> int:
        """Of one checkpoint."""
        return self.parts or math.ceil(self.bytes / SHARD)

    def work(self, nodes: int) -> Work:
        """What averaging it into one output is on so many nodes.

        Every thread opens the files in which its rank's bytes lie. Of DCP there are more than a process may keep open,
        and a thread opens one of each checkpoint for each chunk.
        """
        ranks = nodes * RANKS
        opens = self.parameters / CHUNK if self.parts else THREADS * (self.files + ranks)
        return Work(
            read=int(self.bytes * self.checkpoints),
            written=int(self.bytes),
            headers=self.checkpoints * (1 if self.parts else self.files),
            opens=int(self.checkpoints * opens),
            fingerprinted=self.checkpoints * self.files * BLOCKS * BLOCK_BYTES,
            tensors=self.tensors,
        )


SERIES = (
    Series("70 B × 200, safetensors", 70e9, 200, 723),
    Series("70 B × 200, DCP of 512 ranks", 70e9, 200, 723, 512),
    Series("1 T × 1,000, safetensors", 1e12, 1000, 2000),
    Series("1 T × 1,000, DCP of 4,096 ranks", 1e12, 1000, 2000, 4096),
)

WORDS = {
    "planning": "headers, read by rank 0",
    "opening": "opening files",
    "reading": "copies in memory",
    "fingerprints": "fingerprints",
}


def estimated(series: Series, nodes: int, storage: str) -> Estimate:
    """One cell of the tables."""
    node, shared = STORAGE[storage]
    return estimate(series.work(nodes), node, replace(shared, nodes=nodes))


def bottleneck(series: Series, nodes: int, storage: str) -> str:
    """What takes longest, in words."""
    found = estimated(series, nodes, storage)
    if found.bottleneck in ("waiting", "sync"):
        node, shared = STORAGE[storage]
        limited = nodes * node.deliver > shared.deliver
        return "the file system" if limited else "the network of the nodes"
    return WORDS.get(found.bottleneck, found.bottleneck)


def assumed_table() -> str:
    """The rates of a node."""
    gigabytes = (
        ("copies in memory", NODE.read),
        ("arithmetic", NODE.arithmetic),
        ("writing into the page cache", NODE.write),
        ("SHA-256", NODE.sha256),
    )
    rows = [[name, f"{rate / 1e9:.0f} GB/s a node"] for name, rate in gigabytes]
    rows += [
        ["from and to the file system", f"{SLOW_NODE.deliver / 1e9:.0f} or {NODE.deliver / 1e9:.0f} GB/s a node"],
        ["reading, all nodes together", f"{SHARED.deliver / 1e9:.0f} or {FAST.deliver / 1e9:,.0f} GB/s"],
        ["writing, all nodes together", f"{SHARED.store / 1e9:.0f} or {FAST.store / 1e9:.0f} GB/s"],
        ["opening a file", f"{NODE.open * 1e3:.0f} ms, and {SHARED.opens:,.0f} a second in all"],
        ["reading a header", f"{NODE.header * 1e3:.0f} ms"],
        ["a barrier", f"{SHARED.barrier:.1f} s, of which there are {SHARED.barriers}"],
    ]
    return table(["assumed", ""], rows)


def series_table() -> str:
    """What there is to read."""
    rows = [
        [
            series.name,
            terabytes(series.bytes * series.checkpoints),
            terabytes(series.bytes),
            f"{series.files * series.checkpoints:,}",
            f"{series.work(8).opens:,}",
        ]
        for series in SERIES
    ]
    return table(["series", "read", "written", "files", "opened, on 8 nodes"], rows)


def time_table(storage: str) -> str:
    """Times by series and number of nodes."""
    rows = [
        [
            series.name,
            *(words.duration(estimated(series, nodes, storage).seconds) for nodes in NODES),
            bottleneck(series, NODES[0], storage),
            bottleneck(series, NODES[-1], storage),
        ]
        for series in SERIES
    ]
    heads = [f"{nodes} node{'s' if nodes > 1 else ''}" for nodes in NODES]
    return table([storage, *heads, f"limit on {NODES[0]}", f"on {NODES[-1]}"], rows)


def parts_table(storage: str = "20 GB/s a node, 500 GB/s in all", nodes: int = 64) -> str:
    """Seconds of every part of a run."""
    found = [estimated(series, nodes, storage) for series in SERIES]
    rows = [[part, *(f"{one.parts[part]:,.1f}" for one in found)] for part in found[0].parts]
    rows += [["in all", *(f"{one.seconds:,.1f}" for one in found)]]
    return table([f"seconds on {nodes} nodes", *(series.name for series in SERIES)], rows)


def tables() -> list[str]:
    """Those of docs/scale.md that the model alone makes."""
    return [assumed_table(), series_table(), *map(time_table, STORAGE), parts_table()]


def terabytes(nbytes: float) -> str:
    """`28 TB`, `2,000 TB`, `0.14 TB`."""
    return f"{nbytes / 1e12:,.0f} TB" if nbytes >= 1e13 else f"{nbytes / 1e12:.3g} TB"
