"""What the tests of `belay push` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from belay_cli.show.pictures import coefficients_png
from tests.fakes.hub import HubServer
from tests.fakes.hub.store import Commit

TOKENS = {"hf_w": "write", "hf_r": "read", "hf_old": "expired"}
FILES = [
    *(".gitattributes", "README.md", "belay.json", "coefficients.png", "config.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    "tokenizer.json",
]


def local(output: str = "out") -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in Path(output).rglob("*")
        if path.is_file() and ".belay" not in path.parts
    }


def published(server: HubServer, revision: str = "main") -> tuple[list[Commit], dict[str, bytes]]:
    """The commits that belay made, and what the newest commit holds."""
    repo = server.repo("org/name")
    return [c for c in repo.commits(revision) if "belay.json" in c.files], repo.files(revision)


def check_whole(server: HubServer, revision: str = "main", commits: int = 1) -> None:
    made, files = published(server, revision)
    assert len(made) == commits
    assert sorted(files) == FILES
    for name, content in local().items():
        assert files[name] == content, name


PICTURES: dict[tuple[Any, ...], bytes] = {}


def drawn_once(ticks: list[int], coefficients: list[float], **labels: Any) -> bytes:
    """The picture of coefficients, which takes longer to draw than to push; the same input gives the same bytes."""
    key = (*ticks, *coefficients, *labels.items())
    if key not in PICTURES:
        PICTURES[key] = coefficients_png(ticks, coefficients, **labels)
    return PICTURES[key]
