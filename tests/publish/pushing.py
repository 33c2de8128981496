"""What the tests of `belay push` share."""

from __future__ import annotations

from pathlib import Path

from belay_cli.show.pictures import coefficients_png

TOKENS = {"hf_w": "write", "hf_r": "read", "hf_old": "expired"}
FILES = [
    *(".gitattributes", "README.md", "belay.json", "coefficients.png", "config.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    "tokenizer.json",
]


def local(output="out"):
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in Path(output).rglob("*")
        if path.is_file() and ".belay" not in path.parts
    }


def published(server, revision="main"):
    """The commits that belay made, and what the newest commit holds."""
    repo = server.repo("org/name")
    return [c for c in repo.commits(revision) if "belay.json" in c.files], repo.files(revision)


def check_whole(server, revision="main", commits=1):
    made, files = published(server, revision)
    assert len(made) == commits
    assert sorted(files) == FILES
    for name, content in local().items():
        assert files[name] == content, name


PICTURES = {}


def drawn_once(ticks, coefficients, **labels):
    """The picture of coefficients, which takes longer to draw than to push; the same input gives the same bytes."""
    key = (*ticks, *coefficients, *labels.items())
    if key not in PICTURES:
        PICTURES[key] = coefficients_png(ticks, coefficients, **labels)
    return PICTURES[key]
