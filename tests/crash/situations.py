"""What stands at the target before a run, and the command that is given then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OLD = ("--to-step", "300")  # of steps that end at 400, so that weights and configuration differ


@dataclass(frozen=True)
class Scale:
    """What fits a series: the size of a shard of its outputs, a smaller one, and how many threads."""

    shard: str = "1500"  # three shards
    smaller: str = "900"
    threads: int = 1

    def options(self) -> list[str]:
        """Of every run."""
        return ["--threads", str(self.threads), "-q"]


SMALL, LARGE = Scale(), Scale("16MB", "8MB", 2)
ONE_FILE, AS_MANY, MORE = "one file", "as many shards", "more shards"

Average = Callable[..., None]  # of the command's arguments


@dataclass(frozen=True)
class Situation:
    """A target. `old` says in what files the output is that stands there; `output` is as given, from inside `cwd`."""

    name: str
    old: str = ""
    output: str = "out"
    cwd: str = "."
    stands: str = "out"
    empty: bool = False  # a directory with nothing in it
    foreign: bool = False
    link: bool = False  # the target is a link to the directory
    small_disk: bool = False

    @property
    def overwrites(self) -> bool:
        """Whether the command says --overwrite."""
        return bool(self.old)

    def arguments(self, run: Path, scale: Scale = SMALL) -> list[str]:
        """The command."""
        shards = [] if self.output.endswith(".safetensors") else ["--max-shard-size", scale.shard]
        overwrite = ["--overwrite"] if self.overwrites else []
        return ["average", str(run), "-o", self.output, *shards, *scale.options(), *overwrite]

    def prepare(self, place: Path, run: Path, average: Average, scale: Scale = SMALL) -> None:
        """Make what stands there, in an empty directory."""
        real = place / ("real" if self.link else self.stands)
        sizes = {AS_MANY: ["--max-shard-size", scale.shard], MORE: ["--max-shard-size", scale.smaller]}
        if self.old:
            average("average", run, "-o", real, *scale.options(), *OLD, *sizes.get(self.old, []))
        if self.empty:
            real.mkdir()
        if self.link:
            (place / self.stands).symlink_to("real")
        if self.foreign:
            (real / "notes.md").write_text("mine")
            (real / "logs").mkdir()
            (real / "logs/events.bin").write_bytes(b"mine too")
        (place / "beside.txt").write_text("another's")

    def foreign_files(self) -> list[str]:
        """Of the tree, what is not belay's."""
        return ["beside.txt", *(["out/notes.md", "out/logs/events.bin"] if self.foreign else [])]


SITUATIONS = {
    one.name: one
    for one in (
        Situation("new file", output="out.safetensors", stands="out.safetensors"),
        Situation("older file", ONE_FILE, output="out.safetensors", stands="out.safetensors"),
        Situation("new directory"),
        Situation("empty directory", empty=True),
        Situation("older directory of one file", ONE_FILE),
        Situation("older directory of as many shards", AS_MANY),
        Situation("older directory of more shards", MORE),
        Situation("older directory with a foreign file", AS_MANY, foreign=True),
        Situation("link to an older directory", AS_MANY, link=True),
        Situation("the current directory", AS_MANY, output=".", cwd="out"),
        Situation("new directory, small disk", small_disk=True),
        Situation("older directory, small disk", AS_MANY, small_disk=True),
    )
}


def restore(template: Path, place: Path) -> None:
    """The place of a case, as it was before any run."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place, symlinks=True)
