"""What the tests of URLs share: content, and files read over a server."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import s3fs

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote import open_remote, parse
from belay_cli.storage.remote.path import RemotePath
from tests.fakes.hub import HubServer

DATA = random.Random(1).randbytes(300_001)
OTHER = random.Random(2).randbytes(300_001)
TOKEN = "hf_secret_of_the_test"


def close_s3() -> None:
    from fsspec.asyn import sync

    for store in list(s3fs.S3FileSystem._cache.values()):
        if store._s3 is not None:
            sync(store.loop, store._s3.close)
    s3fs.S3FileSystem.clear_instance_cache()
    gc.collect()


def url_of(server: HubServer, path: str = "/run/step-100/model.safetensors") -> str:
    return f"{server.endpoint}{path}"


def remote(url: str) -> RemotePath:
    path = parse(url)
    assert isinstance(path, RemotePath)
    return path


def whole(path: RemotePath) -> bytes:
    with open_remote(path) as file:
        return file.read_at(0, file.size)


def in_parts(path: RemotePath, part: int = 7919) -> bytes:
    """Read in pieces by several threads that share one file."""
    with open_remote(path) as file, ThreadPoolExecutor(8) as threads:
        offsets = range(0, file.size, part)
        return b"".join(threads.map(lambda at: file.read_at(at, min(part, file.size - at)), offsets))


def failure(act: Callable[[], object]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        act()
    return caught.value


def made(server: HubServer) -> list[str]:
    """The requests that were made: method, and path without what tells revisions apart."""
    return [f"{method} {target.partition('?')[0]}" for method, target in server.requests]
