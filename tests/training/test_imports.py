"""A training script pays for what it uses."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ["typer", "rich", "transformers", "lightning", "huggingface_hub", "fsspec", "torch._dynamo", "torch._inductor"]
PROGRAM = """
import json, sys, torch
before = set(sys.modules)
import belay_cli.training
print(json.dumps([name for name in {heavy!r} if name in set(sys.modules) - before]))
"""


def test_importing_it_imports_torch_and_little_else() -> None:
    program = PROGRAM.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
