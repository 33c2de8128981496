"""Run pytest with a kernel that was built elsewhere: `python tests/engine/sanitized.py KERNEL.so PYTEST_ARGUMENTS…`.

`make sanitize` gives it one that stops at reads and writes outside of memory, and at what C leaves undefined.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

NAME = "belay_cli.engine.kernel._native"


def main(built: Path, arguments: list[str]) -> int:
    """The exit code of pytest."""
    spec = importlib.util.spec_from_file_location(NAME, built)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    from belay_cli.engine import kernel

    assert kernel._native is module
    print(f"kernels of {built}: {', '.join(kernel.KERNELS)}", flush=True)
    return int(pytest.main(arguments))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
