"""What is published of an output: the files in its directory, and nothing else.

Hidden files stay where they are, and so do links that lead out of the directory; a file that looks like a secret
stops everything. The search for secrets is ours, because the Hub's client uploads what it is given.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from belay_cli.checkpoints.companions import SECRET_NAMES
from belay_cli.errors import PublishError
from belay_cli.formats import SUFFIX

_READ_BYTES = 4 << 20
_LARGEST_TEXT = 2_000_000  # bytes; larger files are weights and tokenizers, not a place where people leave a token

_SECRET_CONTENT = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{50,}|\bglpat-[\w-]{20,}"
    rb"|\bsk-[A-Za-z0-9_-]{32,}|\bxox[abprs]-[A-Za-z0-9-]{20,}|\bAIza[\w-]{35}|\bAKIA[0-9A-Z]{16}\b"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


@dataclass(frozen=True)
class Upload:
    """One file of a publication: its path in the repository, `/` between, and a file or bytes."""

    name: str
    content: Path | bytes

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Of the content, hex: what the Hub knows a large file by."""
        return self._digest(hashlib.sha256())

    @cached_property
    def blob_id(self) -> str:
        """The name of the content in git, hex: what the Hub knows a small file by."""
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False))

    def _digest(self, digest: hashlib._Hash) -> str:
        if isinstance(self.content, bytes):
            digest.update(self.content)
            return digest.hexdigest()
        with self.content.open("rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
        return digest.hexdigest()


def bundle(output: Path, exclude: Sequence[str] = ()) -> tuple[list[Upload], list[str]]:
    """The files to publish in name order, and notes about what is left where it is.

    output: a directory, or one weight file; exclude: globs over paths in the repository. Raises PublishError for
    a file that looks like a secret.
    """
    if not output.is_dir():
        return [Upload(output.name, output)], []
    uploads, notes = [], []
    root, unused = output.resolve(), set(exclude)
    for path, name in _files(output):
        matching = {glob for glob in exclude if fnmatchcase(name, glob)}
        unused -= matching
        if matching:
            continue
        if not path.resolve().is_relative_to(root):
            notes.append(f"{name} is a link that leads out of {output}; it is not uploaded")
            continue
        _refuse_secret(path, name)
        uploads.append(Upload(name, path))
    notes += [f"--exclude {glob!r} matches no file" for glob in exclude if glob in unused]
    return uploads, notes


def _files(directory: Path) -> Iterator[tuple[Path, str]]:
    """Every file below the directory that is not hidden, with its name in the repository."""
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and (not name.startswith(".") or SECRET_NAMES.fullmatch(name)):
                yield path, path.relative_to(directory).as_posix()


def holds_secret(content: bytes) -> bool:
    """Whether something in it looks like a token or a key."""
    return _SECRET_CONTENT.search(content) is not None


def _refuse_secret(path: Path, name: str) -> None:
    small = path.suffix != SUFFIX and path.stat().st_size <= _LARGEST_TEXT
    if SECRET_NAMES.fullmatch(path.name) or (small and holds_secret(path.read_bytes())):
        raise PublishError(
            "looks like a secret; nothing was uploaded", file=path, hint=f"move it away, or say --exclude '{name}'"
        )
