"""Formats: bytes into named entries and metadata. What these mean is not asked here.

contents            what any format gives
safetensors         files of safetensors
torch               files of torch.save
dcp                 directories of torch.distributed.checkpoint
shards              several files under an index
restricted_pickle   pickles, of which nothing is run
pickle_scan         what a pickle would import
forbidden_names     what no pickle may name
unknown             objects of classes that are not known
foreign             what cannot be read, and how to get from there
dtypes              the element types
floats              their numbers
text                what a file claims, as text that fits on a line

A format is a row of FILES or DIRECTORIES: everything else follows from what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from belay_cli.formats.contents import Contents
from belay_cli.formats.dcp import dcp_archives, is_dcp, read_dcp
from belay_cli.formats.safetensors import read_safetensors
from belay_cli.formats.torch.file import read_torch
from belay_cli.storage.files import AnyPath

SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".tar")  # .tar is that of .pth.tar


class FileFormat(NamedTuple):
    """How the names of its files end, and what reads those that hold one checkpoint together.

    In a directory that holds files of several formats, those of the first in FILES are the weights.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Sequence[AnyPath]], AbstractContextManager[Contents]]


class DirectoryFormat(NamedTuple):
    """Whether a directory is of this format, what reads it, and where in its files, by name, those of torch.save lie.

    Each of these from one byte up to another.
    """

    matches: Callable[[AnyPath], bool]
    read: Callable[[AnyPath], AbstractContextManager[Contents]]
    archives: Callable[[AnyPath], Mapping[str, Sequence[tuple[int, int]]]]


FILES = (
    FileFormat((SUFFIX,), read_safetensors),
    FileFormat(TORCH_SUFFIXES, read_torch),
)
DIRECTORIES = (DirectoryFormat(is_dcp, read_dcp, dcp_archives),)


def file_format(suffix: str) -> FileFormat | None:
    """The format of files whose names end so."""
    return next((found for found in FILES if suffix in found.suffixes), None)


def directory_format(directory: AnyPath) -> DirectoryFormat | None:
    """The format that a directory itself is of, as none of its files is a checkpoint by itself."""
    return next((found for found in DIRECTORIES if found.matches(directory)), None)


def is_directory_format(directory: AnyPath) -> bool:
    """Whether a directory is a checkpoint as a whole."""
    return directory_format(directory) is not None
