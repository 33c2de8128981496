"""A JSON file that may come from anyone: read only if it is of a size that can be right."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from belay_cli.errors import CheckpointError
from belay_cli.storage.files import AnyPath
from belay_cli.storage.local import reason

LARGEST = 100_000_000  # bytes


class JsonError(CheckpointError):
    """A file that is no JSON, or too large to be what it should be."""


def read_json(path: AnyPath, largest: int = LARGEST, *, hint: str = "copy or save it again") -> Any:
    """The value in a file of at most `largest` bytes. Raises JsonError, and CheckpointError if it cannot be read."""
    try:
        if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise JsonError("is not a file", file=path)
        if path.stat().st_size > largest:
            raise JsonError(f"is over {largest // 1_000_000} MB, too large for what it should be", file=path)
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot be read: {reason(error)}", file=path) from error
    except (ValueError, RecursionError) as error:
        raise JsonError("is not valid JSON", file=path, hint=hint) from error
