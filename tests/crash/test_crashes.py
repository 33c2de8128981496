"""A short version of `make crash`, with a fixed seed: the harness itself, and a sample of its cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_run
from tests.crash.looking import views, what_loads
from tests.crash.shim import WORKS_HERE, Fault, build, calls
from tests.crash.worker import Job, start

pytestmark = pytest.mark.skipif(not WORKS_HERE, reason="takes Linux and a C compiler")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and the series."""
    directory = tmp_path_factory.mktemp("crash")
    build(directory)
    make_run(directory / "run")
    return directory


def broken(
    made: Path, tmp_path: Path, program: str, fault: Fault
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """A program with one call broken, and what it called below `tmp_path`."""
    arm = fault.environment(made / "shim.so", tmp_path, made)
    environment = os.environ | arm | {"CRASH_LOG": str(made / "log")}
    (made / "log").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", f"import os\n{program}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    return done, [f"{call.name} {call.number} {Path(call.path).name}" for call in calls(made / "log")]


EVERYTHING = """
os.mkdir('folder')
descriptor = os.open('folder/file', os.O_RDWR | os.O_CREAT)
os.ftruncate(descriptor, 10)
os.pwrite(descriptor, b'0123456789', 0)
os.pwritev(descriptor, [b'ab', b'cd'], 0)
os.write(descriptor, b'01')
os.fsync(descriptor)
os.link('folder/file', 'folder/twin')
folder = os.open('folder', os.O_RDONLY)
os.rename('file', 'renamed', src_dir_fd=folder, dst_dir_fd=folder)
os.symlink('renamed', 'folder/link')
os.chmod('folder/renamed', 0o600)
open('/dev/null', 'wb').write(b'elsewhere')
import ctypes
ctypes.CDLL('libc.so.6').renameat2(-100, b'folder/twin', -100, b'folder/other', 1)
number = 316 if os.uname().machine == 'x86_64' else 276
ctypes.CDLL(None).syscall(number, -100, b'folder/other', -100, b'folder/last', 1)
os.unlink('folder/last')
import shutil
shutil.rmtree('folder')
"""


def test_every_change_is_counted(made: Path, tmp_path: Path) -> None:
    done, counted = broken(made, tmp_path, EVERYTHING, Fault("count"))
    assert done.returncode == 0, done.stderr
    names = [line.split()[0].removesuffix("v2").removesuffix("64") for line in counted]
    assert names == [
        *("mkdir", "open", "ftruncate", "pwrite", "pwritev", "write", "fsync", "link", "renameat", "symlink", "chmod"),
        *("renameat2", "renameat2", "unlink", "unlinkat", "unlinkat", "rmdir"),
    ]
    assert [int(line.split()[1]) for line in counted] == list(range(1, len(counted) + 1))


@pytest.mark.parametrize(
    ("kind", "at", "code", "left"),
    [
        ("kill-before", 1, -9, []),
        ("kill-after", 1, -9, ["folder"]),
        ("ENOSPC", 1, 1, []),
        ("EIO-after", 1, 1, ["folder"]),
        ("EIO+1", 1, 1, []),
        ("EIO", 2, 1, ["folder"]),
        ("ENOSPC-on", 2, 1, ["folder"]),
        ("SIGTERM", 2, -15, ["folder"]),
    ],
)
def test_a_call_is_broken(made: Path, tmp_path: Path, kind: str, at: int, code: int, left: list[str]) -> None:
    shutil.rmtree(tmp_path / "work")
    done, _ = broken(made, tmp_path, "os.mkdir('folder')\nos.mkdir('folder/inner')", Fault(kind, at))
    assert done.returncode == code
    assert [name for name in os.listdir(tmp_path) if name != "tmp"] == left
    assert kind not in ("ENOSPC", "EIO") or os.strerror({"ENOSPC": 28, "EIO": 5}[kind]) in done.stderr


def test_half_is_written_and_read_and_a_call_is_missing(made: Path, tmp_path: Path) -> None:
    written = "print(os.write(os.open('file', os.O_WRONLY | os.O_CREAT), b'012345'))"
    assert broken(made, tmp_path, written, Fault("short", 2))[0].stdout == "3\n"
    file = made / "run/checkpoint-100/config.json"
    read = f"print(len(os.pread(os.open({str(file)!r}, os.O_RDONLY), 40, 0)))"
    assert broken(made, tmp_path, read, Fault("read-short", 1))[0].stdout == "20\n"
    assert "Input/output error" in broken(made, tmp_path, read, Fault("read-EIO", 1))[0].stderr
    done, counted = broken(made, tmp_path, "os.link('file', 'twin')", Fault("count", 0, "link,linkat"))
    assert "Operation not permitted" in done.stderr
    assert [line.split()[1] for line in counted] == ["0"]


def test_a_mixture_is_seen(made: Path, tmp_path: Path) -> None:
    from belay_cli import average

    average([made / "run"], "old", max_shard_size="1500", to_step=300)
    average([made / "run"], "new", max_shard_size="1500")
    (old,), (new,) = views(Path("old")), views(Path("new"))
    assert old is not None
    assert new is not None
    seen = {what_loads(Path(name), old, new) for name in ("old", "new", "none")}
    assert seen == {"old", "new", "nothing"}
    shutil.copytree("old", "mixed")
    shutil.copy("new/config.json", "mixed")
    assert what_loads(Path("mixed"), old, new) == "old weights beside other files"
    shutil.copy("new/model-00002-of-00003.safetensors", "mixed")
    assert what_loads(Path("mixed"), old, new) == "a mixture"
    average([made / "run"], "single")
    shutil.copy("single/model.safetensors", "mixed")
    assert what_loads(Path("mixed"), old, new).startswith("both ")
    os.unlink("mixed/model.safetensors")
    os.unlink("mixed/model-00001-of-00003.safetensors")
    assert what_loads(Path("mixed"), old, new) == "a broken output"
    os.unlink("mixed/model.safetensors.index.json")
    assert what_loads(Path("mixed"), old, new) == "nothing"


@pytest.mark.parametrize(
    "situation", ["new file", "empty directory", "older directory of one file", "older directory with a foreign file"]
)
def test_whatever_breaks_the_output_is_whole(made: Path, tmp_path: Path, situation: str) -> None:
    job = Job(situation, str(made / "run"), str(tmp_path / "place"), str(made / "shim.so"), most=20)
    result = start(job)
    assert result.cases.total() == 20
    assert result.faults == []


def test_a_process_of_its_own(made: Path, tmp_path: Path) -> None:
    library, place = str(made / "shim.so"), str(tmp_path / "place")
    result = start(Job("new directory", str(made / "run"), place, library, ("kill-after",), most=2, real=True))
    assert result.cases == {"kill-after": 2}
    assert result.faults == []
