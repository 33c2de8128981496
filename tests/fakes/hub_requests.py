"""What the tests of the local Hub send it."""

from __future__ import annotations

import hashlib

from huggingface_hub import CommitOperationAdd

TOKENS = {"hf_w": "write", "hf_r": "read", "hf_old": "expired"}
WEIGHTS = bytes(range(256)) * 40
COMMIT = "POST .*/commit/"


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}", "sub/a.txt": b"a", "sub/deep/b.txt": b"b"}
