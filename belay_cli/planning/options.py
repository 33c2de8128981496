"""What a person may ask of a plan, beside the series and the rule."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from belay_cli.errors import UsageError
from belay_cli.options import Option, Options
from belay_cli.planning.policies import Policies

Dtype = Literal["same", "float64", "float32", "bfloat16", "float16"]
Lora = Literal["delta", "factors"]
Format = Literal["safetensors", "same"]

SAME = "same"  # as the last checkpoint has it

_DTYPES = {
    "fp64": "float64",
    "double": "float64",
    "f64": "float64",
    "fp32": "float32",
    "float": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "f16": "float16",
    **{f"torch.{name}": name for name in ("float64", "float32", "bfloat16", "float16")},
}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)


@dataclass(frozen=True)
class OutputOptions(Options):
    """What is written. Sizes as people write them, such as 5GB. Raises UsageError."""

    panel: ClassVar[str] = "The output"

    dtype: Annotated[Dtype, Option("Of the output.", also=_DTYPES)] = "same"
    format: Annotated[Format | None, Option("same: the last checkpoint with the average in it, to train on from.")] = (
        None
    )
    without_optimizer: Annotated[bool, Option("With --format same: leave out its files of optimizers.")] = False
    lora: Annotated[
        Lora | None,
        Option("Adapters: the updates B·A, or A and B as they are.", also={"deltas": "delta", "factor": "factors"}),
    ] = None
    lora_rank: Annotated[int | None, Option("With --lora delta: of the output.", "R")] = None
    max_shard_size: Annotated[str | None, Option("Of a directory's weight files. Default 5GB.", "SIZE")] = None
    overwrite: Annotated[bool, Option("Replace what belay wrote there before.")] = False

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        super().__post_init__()
        if self.format == SAME and self.dtype != "same":
            raise UsageError(
                f"--dtype {self.dtype} does not go with --format same, which leaves every number the room that it has",
                hint="leave one of them out",
            )
        if self.format == SAME and self.max_shard_size is not None:
            raise UsageError(
                "--max-shard-size does not go with --format same: the files are those of the last checkpoint",
                hint="leave one of them out",
            )
        if self.format == "safetensors" and self.without_optimizer:
            raise UsageError(
                "--without-optimizer goes with --format same", hint="leave it out: safetensors never hold one"
            )
        if self.lora_rank is not None and (self.lora != "delta" or self.lora_rank < 1):
            raise UsageError("--lora-rank is a number of 1 or more, and goes with --lora delta")


@dataclass(frozen=True)
class RunOptions(Options):
    """How a plan is run; no byte of the output depends on it. Raises UsageError."""

    panel: ClassVar[str] = "The run"

    device: Annotated[str, Option("auto (CUDA where it pays), cpu, cuda, cuda:N.", "NAME")] = "auto"
    threads: Annotated[int | None, Option("Default: all cores.", "N")] = None
    max_memory: Annotated[str | None, Option("For buffers. Default 300MB.", "SIZE")] = None
    sync: Annotated[bool, Option("Do not wait until the disk has it.")] = True
    resume: Annotated[bool, Option("Start over: nothing of a run that was killed is used.")] = True
    drop_cache: Annotated[bool, Option("Keep nothing of it in the system's page cache.")] = False
    allow_nonfinite: Annotated[bool, Option("Average NaN and infinity like numbers.")] = False

    def __post_init__(self) -> None:
        """Refuse a device that cannot be one."""
        super().__post_init__()
        name = self.device.lower()
        object.__setattr__(self, "device", {"gpu": "cuda"}.get(name, name))
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device {self.device} is unknown", hint="one of: auto, cpu, cuda, cuda:0, cuda:1, …")
        if self.drop_cache and not hasattr(os, "posix_fadvise"):
            raise UsageError("--drop-cache: this system has no posix_fadvise", hint="leave it out")


@dataclass(frozen=True)
class PlanOptions(OutputOptions, RunOptions):
    """Everything but the series and the rules.

    `chunk`, in elements, is for tests: no byte of the output depends on it.
    """

    policies: Policies = field(default_factory=Policies)
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuse a chunk of nothing."""
        super().__post_init__()
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"chunk must be 1 or more, not {self.chunk}")

    def arguments(self) -> list[str]:
        """The command-line words that the bytes of the tensors depend on."""
        words = [] if self.dtype == "same" else ["--dtype", self.dtype]
        words += ["--format", SAME] if self.format == SAME else []
        words += ["--without-optimizer"] if self.without_optimizer else []
        words += ["--lora", self.lora] if self.lora else []
        words += ["--lora-rank", str(self.lora_rank)] if self.lora_rank else []
        return self.policies.arguments() + words + (["--allow-nonfinite"] if self.allow_nonfinite else [])
