"""URLs and names: what is one, and what a path of one says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from belay_cli.checkpoints.order.names import step_in_name
from belay_cli.storage.remote import is_url, parse
from tests.storage.remote.serving import failure, remote


@pytest.mark.parametrize(
    ("url", "name", "stem", "parent", "step"),
    [
        ("hf://org/model@step1000", "step1000", "step1000", "model", 1000),
        ("hf://org/model@step1000/unet", "unet", "unet", "step1000", None),
        ("hf://org/model", "model", "model", "model", None),
        ("hf://org/run-step500/", "run-step500", "run-step500", "run-step500", 500),
        (f"hf://org/model@{'0123456789' * 4}", "model", "model", "model", None),
        ("hf://org/model@refs/pr/3/unet", "unet", "unet", "refs/pr/3", None),
        ("hf://org/model@exp%2Fstep7", "exp/step7", "exp/step7", "model", 7),
        ("hf://gpt2@step3", "step3", "step3", "gpt2", 3),
        ("hf://org/model/odd@name.safetensors", "odd@name.safetensors", "odd@name", "model", None),
        ("s3://bucket/run/checkpoint-500/", "checkpoint-500", "checkpoint-500", "run", 500),
        ("s3://bucket", "bucket", "bucket", "bucket", None),
        ("memory://a/step-3.safetensors", "step-3.safetensors", "step-3", "a", 3),
        ("https://host/step%2D100/my%20model.safetensors", "my model.safetensors", "my model", "step-100", None),
    ],
)
def test_names(url: str, name: str, stem: str, parent: str, step: int | None) -> None:
    path = remote(url)
    assert (path.name, path.stem, path.parent.name) == (name, stem, parent)
    assert str(path) == url.rstrip("/")
    assert step_in_name(path.stem) == step


def test_what_a_url_is() -> None:
    assert is_url("hf://org/model") and is_url("s3://b/k") and is_url("memory://x")
    assert not is_url("run/checkpoint-1") and not is_url("C:\\run") and not is_url("epoch=1:step=2.ckpt")


def test_file_urls_are_paths_of_this_machine(tmp_path: Path) -> None:
    assert parse((tmp_path / "a b.safetensors").as_uri()) == tmp_path / "a b.safetensors"
    assert "another machine" in failure(lambda: parse("file://elsewhere/x")).message


def test_paths_behave_as_paths_do() -> None:
    path = remote("s3://bucket/run/step-1")
    inner = path / "unet" / "model.fp16.safetensors"
    assert inner == path / "unet/model.fp16.safetensors" == path.joinpath("unet", "model.fp16.safetensors")
    assert len({inner, path / "unet/model.fp16.safetensors", path}) == 2
    assert (inner.name, inner.stem, inner.suffix) == ("model.fp16.safetensors", "model.fp16", ".safetensors")
    assert inner.parent == path / "unet"
    assert inner.is_relative_to(path) and inner.is_relative_to(path.parent)
    assert not path.is_relative_to(inner) and not path.is_relative_to(Path("/"))
    assert not Path("/s3:").is_relative_to(path)
    assert inner.absolute() is inner and inner.resolve() is inner and not inner.is_symlink()
    assert os.fspath(inner) == str(inner)
    assert remote("s3://bucket/run") != remote("s3://bucket/walk")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..\\x"])
def test_no_name_leads_out(name: str) -> None:
    assert "leads out" in failure(lambda: remote("s3://bucket/run") / name).message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://datasets/org/data", "is one of the Hub's datasets"),
        ("hf://org/model@", "names no revision"),
        ("hf://o r g/model", "names no repository"),
        ("hf://org/model@main/../x", "names no folder"),
        ("https:///model.safetensors", "names no web server"),
        ("https://host:99999999/model.safetensors", "names no web server"),
        ("simplecache://x", "is a file system inside another"),
        ("zip://a::s3://b/c", "is a file system inside another"),
        ("simplecache::s3://b/c", "is not a URL that belay reads"),
        ("https://host/a\nb", "is not a URL that belay reads"),
    ],
)
def test_urls_that_are_none(url: str, said: str) -> None:
    assert said in failure(lambda: parse(url)).message


def test_what_has_no_driver() -> None:
    error = failure(remote("gs://bucket/run").exists)
    assert error.message == "needs gcsfs to be read" and error.hint == "pip install gcsfs"
    assert "no kind that fsspec knows: nonsense://" in failure(remote("nonsense://a/b").exists).message


def test_s3_without_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    error = failure(remote("s3://bucket/run").exists)
    assert error.message == "needs s3fs to be read" and error.hint == "pip install s3fs"
