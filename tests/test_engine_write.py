"""The writer: complete and exact, or absent, whatever breaks; and never over what belay did not write."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli import average
from belay_cli.engine import stream
from belay_cli.errors import CheckpointError, OutputError, UsageError
from belay_cli.plan import make
from tests.conftest import belay_process, everything_in, make_files, make_run, tensors


def test_a_new_directory_is_a_hub_directory(tmp_path):
    average([make_run(tmp_path / "run")], "out", max_shard_size="1500")
    assert everything_in(Path("out")) == [
        ".belay",
        ".belay/local.json",
        "belay.json",
        "config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert json.loads(Path("out/config.json").read_text())["step"] == 400
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    loaded = {name: load_file(f"out/{file}")[name] for name, file in index["weight_map"].items()}
    assert set(loaded) == set(tensors())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in loaded.values())
    assert os.listdir(".") == ["out"]


def test_files_and_directories_have_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        average([make_run(tmp_path / "run")], "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("out").stat().st_mode) == 0o750
    assert stat.S_IMODE(Path("out/model.safetensors").stat().st_mode) == 0o640


def test_tensors_are_aligned_and_the_library_reads_them(tmp_path):
    for i in range(3):
        odd = {
            "b": torch.ones(3, dtype=torch.bool),
            "h": torch.ones(3, dtype=torch.float16),
            "d": torch.ones(1).double(),
        }
        save_file(odd, tmp_path / f"step-{i}.safetensors")
    average([tmp_path], "out.safetensors")
    content = Path("out.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert [name for name in header if name != "__metadata__"] == ["d", "h", "b"]
    assert {k: v.tolist() for k, v in load_file("out.safetensors").items()} == {
        "b": [True] * 3,
        "h": [1.0] * 3,
        "d": [1.0],
    }


class Break:
    """Fails at the n-th call of any of these functions of os, and counts calls."""

    NAMES = ("mkdir", "ftruncate", "pwrite", "fsync", "rename", "link", "replace", "unlink")

    def __init__(self, monkeypatch, at, error):
        self.calls, self.at, self.error = 0, at, error
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, function):
        def wrapped(*arguments, **keywords):
            if any(frame in sys._getframe(1).f_code.co_filename for frame in ("shutil", "pytest", "threading")):
                return function(*arguments, **keywords)  # the clean-up itself
            self.calls += 1
            if self.calls == self.at:
                raise self.error
            return function(*arguments, **keywords)

        return wrapped


def run_broken(tmp_path, at, error, target, **options):
    with pytest.MonkeyPatch.context() as monkeypatch:
        broken = Break(monkeypatch, at, error)
        try:
            average([tmp_path / "run"], target, **options)
        except (OutputError, KeyboardInterrupt):
            return broken.calls, False
        return broken.calls, True


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_whatever_step_breaks_the_output_is_whole_or_absent(tmp_path, target, error):
    make_run(tmp_path / "run")
    options = {"max_shard_size": "1500"} if target == "out" else {}
    average([tmp_path / "run"], "whole" + target[3:], **options)
    whole = everything_in(Path("whole")) if target == "out" else None
    at, finished = 0, False
    while not finished:
        at += 1
        calls, finished = run_broken(tmp_path, at, error, target, **options)
        left = {name for name in os.listdir(".") if not name.startswith("whole")}
        assert left <= {target}, f"step {at} of {calls}"
        if left and target == "out":
            assert everything_in(Path("out")) == whole
        if left:
            shutil.rmtree("out") if target == "out" else os.unlink(target)
    assert at > 8


def contents(directory):
    return {name: Path(directory, name).read_bytes() for name in everything_in(Path(directory)) if name != ".belay"}


def loads(directory):
    """Whether a loader would find weights there: a single file, or an index with all its shards."""
    index = Path(directory, "model.safetensors.index.json")
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return all(Path(directory, name).exists() for name in names)


@pytest.mark.parametrize(("old", "new"), [("1500", "5GB"), ("5GB", "1500"), ("1500", "900"), ("5GB", "5GB")])
def test_overwriting_never_leaves_a_mixture(tmp_path, old, new):
    make_run(tmp_path / "run")
    average([tmp_path / "run"], "new", method="belay", max_shard_size=new)
    expected = contents("new")
    at, finished = 0, False
    while not finished:
        at += 1
        shutil.rmtree("out", ignore_errors=True)
        average([tmp_path / "run"], "out", max_shard_size=old)
        before = contents("out")
        error = OSError(errno.EIO, "Input/output error")
        _, finished = run_broken(tmp_path, at, error, "out", method="belay", max_shard_size=new, overwrite=True)
        after = contents("out")
        assert after in (before, expected), f"step {at}"
        assert sorted(os.listdir(".")) == ["new", "out"]
    assert after == expected


class Killed(BaseException):
    """Stands for SIGKILL: nothing that would have come after it happens."""


@pytest.mark.parametrize(("old", "new"), [("1500", "5GB"), ("5GB", "1500"), ("1500", "900")])
def test_a_run_that_was_killed_while_it_overwrote_can_be_run_again(tmp_path, old, new):
    make_run(tmp_path / "run")
    average([tmp_path / "run"], "new", method="belay", max_shard_size=new)
    expected = contents("new")
    for at in range(1, 40):
        shutil.rmtree("out", ignore_errors=True)
        average([tmp_path / "run"], "out", max_shard_size=old)
        Path("out/notes.md").write_text("mine")
        count = 0

        def counted(real):
            def operation(*arguments, **keywords):
                nonlocal count
                count += 1
                if count >= at:  # noqa: B023
                    raise Killed
                return real(*arguments, **keywords)

            return operation

        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((os, "link"), (Path, "rename"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(module, name, counted(getattr(module, name)))
            patch.setattr(shutil, "rmtree", lambda *arguments, **keywords: None)
            try:
                average([tmp_path / "run"], "out", method="belay", max_shard_size=new, overwrite=True)
            except Killed:
                pass
            else:
                break
        average([tmp_path / "run"], "out", method="belay", max_shard_size=new, overwrite=True)
        assert Path("out/notes.md").read_text() == "mine"
        Path("out/notes.md").unlink()
        assert contents("out") == expected, f"step {at}"
    assert at > 6


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["here", "link"])
def test_a_directory_that_cannot_be_renamed_over(tmp_path, monkeypatch, what, overwrite):
    run = make_run(tmp_path / "run")
    average([run], "beside")
    expected = contents("beside")
    Path("real").mkdir()
    if overwrite:
        average([run], "real", method="belay")
    target = "real"
    if what == "link":
        Path("link").symlink_to("real")
        target = "link"
    else:
        monkeypatch.chdir("real")
        target = "."
    average([run], target, overwrite=overwrite)
    assert contents(target) == expected
    assert what == "here" or Path("link").is_symlink()


def test_what_is_synced_and_what_moves_when(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    average([run], "out", max_shard_size="1500")
    steps = []

    def noted(module, name, place):
        real = getattr(module, name)

        def operation(*arguments, **keywords):
            steps.append((name, Path(place(*arguments)).name))
            return real(*arguments, **keywords)

        monkeypatch.setattr(module, name, operation)

    noted(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    noted(os, "link", lambda source, target: target)
    noted(Path, "rename", lambda path, target: target)
    average([run], "out", max_shard_size="1500", overwrite=True, method="belay")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index, record = "model.safetensors.index.json", "belay.json"
    synced = [name for how, name in steps if how == "fsync"]
    moved = [name for how, name in steps if how == "link"]
    aside = [name for how, name in steps if how == "rename"]
    assert {*names, index, record, "config.json", "tokenizer.json", "local.json", "out"} <= set(synced)
    assert aside[0] == index
    assert aside[-1] == record
    assert moved[0] == record
    assert moved[-1] == index
    assert sorted(moved[-4:-1]) == names
    last_sync = max(i for i, (how, name) in enumerate(steps) if how == "fsync" and name in names)
    assert last_sync < steps.index(("rename", index))


def test_an_index_of_somebody_else_stays(tmp_path):
    run = make_run(tmp_path / "run")
    average([run], "out", max_shard_size="1500")
    theirs = '{"weight_map": {"a": "adapter-00001-of-00002.safetensors"}}'
    Path("out/adapter.safetensors.index.json").write_text(theirs)
    average([run], "out", overwrite=True)
    assert Path("out/adapter.safetensors.index.json").read_text() == theirs
    assert not Path("out/model.safetensors.index.json").exists()


def test_a_tensor_with_the_name_that_safetensors_keeps(tmp_path):
    for i in range(2):
        torch.save({"w": torch.ones(2), "__metadata__": torch.ones(2)}, tmp_path / f"step-{i}.pt")
    with pytest.raises(CheckpointError, match="holds a tensor named __metadata__, a name that safetensors keeps"):
        average([tmp_path / "step-0.pt", tmp_path / "step-1.pt"], "out.safetensors")
    average([tmp_path / "step-0.pt", tmp_path / "step-1.pt"], "out.safetensors", drop="__metadata__")
    assert list(load_file("out.safetensors")) == ["w"]


def test_a_header_that_nobody_could_read(tmp_path, monkeypatch):
    paths = make_files(tmp_path)
    average(paths, "out.safetensors")
    length = 8 + int.from_bytes(Path("out.safetensors").read_bytes()[:8], "little")
    monkeypatch.setattr(make, "LARGEST_HEADER", length)
    average(paths, "out.safetensors", overwrite=True)
    monkeypatch.setattr(make, "LARGEST_HEADER", length - 1)
    with pytest.raises(UsageError) as raised:
        average(paths, "more.safetensors")
    assert str(raised.value) == f"the output's header would have {length} bytes; safetensors allows {length - 1}"


def test_more_shards_than_files_may_be_open(tmp_path):
    for i in range(2):
        save_file({f"w{j:03}": torch.randn(64) for j in range(300)}, tmp_path / f"step-{i}.safetensors")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, int(sys.argv.pop(1)))); "
        "from belay_cli.cli import main; main(sys.argv[1:])"
    )
    arguments = ["average", str(tmp_path), "-o", "out", "--max-shard-size", "256", "-q"]
    for hard, code in ((500, 1), (1000, 0)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(hard), *arguments], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr
        if code:
            assert done.stderr == (
                "belay: out: takes 728 open files, and 500 are allowed\n"
                "       write fewer, larger files: --max-shard-size\n"
            )


def test_paths_that_are_no_unicode(tmp_path):
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    average([make_run(directory)], "out")
    done = belay_process("verify", "out")
    assert done.returncode == 0, done.stdout + done.stderr


def test_overwriting_removes_stale_shards_and_keeps_foreign_files(tmp_path):
    run = make_run(tmp_path / "run")
    average([run], "out", max_shard_size="900")
    Path("out/notes.md").write_text("mine")
    Path("out/logs").mkdir()
    (run / "checkpoint-400/tokenizer.json").unlink()
    with pytest.raises(OutputError, match="out: exists"):
        average([run], "out")
    average([run], "out", overwrite=True)
    assert everything_in(Path("out")) == [
        *(".belay", ".belay/local.json", "belay.json", "config.json", "logs", "model.safetensors", "notes.md")
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", "config.json"])
def test_foreign_files_are_never_replaced(tmp_path, name):
    run = make_run(tmp_path / "run")
    Path("out").mkdir()
    if name.endswith(".safetensors"):
        save_file(tensors(), f"out/{name}")
    else:
        Path("out", name).write_text("mine")
    content = Path("out", name).read_bytes()
    with pytest.raises(OutputError, match=f"out: holds {name}, which belay did not write"):
        average([run], "out", overwrite=True)
    assert Path("out", name).read_bytes() == content


def test_a_foreign_file_is_not_overwritten(tmp_path):
    paths = make_files(tmp_path)
    save_file(tensors(), "mine.safetensors")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="mine.safetensors: exists, and belay did not write it"):
            average(paths, "mine.safetensors", overwrite=overwrite)
    average(paths, "ours.safetensors")
    with pytest.raises(OutputError, match="ours.safetensors: exists"):
        average(paths, "ours.safetensors")
    average(paths, "ours.safetensors", overwrite=True, decay=0.5)


def test_a_recorded_copy_cannot_lead_out_of_the_output(tmp_path):
    run = make_run(tmp_path / "run")
    Path("precious.json").write_text("mine")
    Path("out").mkdir()
    metadata = {"belay.version": "0", "belay.copies": json.dumps(["../precious.json", "/etc/hostname", "..", 5])}
    save_file(tensors(), "out/model.safetensors", metadata=metadata)
    average([run], "out", overwrite=True)
    assert Path("precious.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("run/checkpoint-200/average", "lies inside the input"),
        ("run/checkpoint-200", "lies inside the input"),
        ("run", "holds the input"),
        ("run/checkpoint-200/model.safetensors", "lies inside the input"),
        ("nowhere/out", "its directory does not exist"),
    ],
)
def test_outputs_that_lie_wrong(tmp_path, monkeypatch, output, message):
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = everything_in(tmp_path)
    with pytest.raises(OutputError, match=message):
        average(["run"], output, overwrite=True)
    assert everything_in(tmp_path) == before


def test_an_output_that_is_an_input_file(tmp_path):
    paths = make_files(tmp_path)
    with pytest.raises(OutputError, match="lies inside the input"):
        average(paths, paths[1], overwrite=True)
    with pytest.raises(OutputError, match="holds the input"):
        average(paths, tmp_path, overwrite=True)


def test_an_empty_directory_is_taken(tmp_path):
    Path("out").mkdir()
    average([make_run(tmp_path / "run")], "out")
    assert loads("out")


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    paths = make_files(tmp_path)
    link = os.link

    def appears(source, target, **keywords):
        Path("out.safetensors").write_text("somebody else's")
        link(source, target, **keywords)

    monkeypatch.setattr(os, "link", appears)
    with pytest.raises(OutputError, match="cannot be written: file exists"):
        average(paths, "out.safetensors")
    assert Path("out.safetensors").read_text() == "somebody else's"
    assert os.listdir(".") == ["out.safetensors"]


def test_an_interrupt_during_the_clean_up(tmp_path, monkeypatch):
    paths = make_files(tmp_path)
    rmtree, held = shutil.rmtree, []

    def interrupted(path, **keywords):
        signal.raise_signal(signal.SIGINT)
        held.append(path)
        rmtree(path, **keywords)

    def fails(*arguments):
        raise CheckpointError("is broken")

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    monkeypatch.setattr(stream, "replay_on_cpu", fails)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            average(paths, "out.safetensors")
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(held) == 1
    assert os.listdir(".") == []


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_input_that_is_written_meanwhile(tmp_path, monkeypatch, replaced, suffix):
    paths = make_files(tmp_path)
    if suffix == ".pt":
        for path in paths:
            torch.save(load_file(path), path.with_suffix(".pt"))
        paths = [path.with_suffix(".pt") for path in paths]
    content = paths[1].read_bytes()
    write_updates = stream.write_updates

    def writes(*arguments):
        if replaced:
            paths[1].unlink()
        paths[1].write_bytes(content)
        return write_updates(*arguments)

    monkeypatch.setattr(stream, "write_updates", writes)
    with pytest.raises(CheckpointError) as raised:
        average(paths, "out.safetensors")
    assert str(raised.value) == f"{paths[1]}: changed while it was read"
    assert raised.value.hint == "run the same command again when nothing writes to it"
    assert os.listdir(".") == []


def test_an_input_that_is_removed_after_it_was_read(tmp_path, monkeypatch):
    paths = make_files(tmp_path)
    write_updates = stream.write_updates

    def removes(*arguments):
        paths[0].unlink()
        return write_updates(*arguments)

    monkeypatch.setattr(stream, "write_updates", removes)
    average(paths, "out.safetensors")
    assert os.listdir(".") == ["out.safetensors"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refused(source, target, **keywords):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    average(make_files(tmp_path), "out.safetensors")
    assert os.listdir(".") == ["out.safetensors"]


def test_a_directory_that_may_not_be_written(tmp_path):
    paths = make_files(tmp_path)
    with pytest.raises(OutputError) as caught:
        average(paths, "/proc/out.safetensors")
    assert caught.value.message.startswith("cannot be written:")


def test_too_little_room_is_said_before_anything_is_read(tmp_path, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="it takes 4.22 kB, and 1.00 kB are free"):
        average(make_files(tmp_path), "out.safetensors")


def test_a_disk_that_is_full(tmp_path):
    """A real limit of the kernel's, met in the middle of a write."""
    for i in range(2):
        save_file({"w": torch.randn(1 << 20)}, tmp_path / f"step-{i}.safetensors")
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        "from belay_cli.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "average", str(tmp_path), "-o", "out.safetensors", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert (
        done.stderr
        == "belay: out.safetensors: cannot be written: file too large\n       make room, or write somewhere else: -o\n"
    )
    assert os.listdir(".") == []


def slow_run(tmp_path, *options):
    """A process in the middle of a replay: its staging directory is there."""
    for i in range(4):
        save_file({f"w{j}": torch.randn(1 << 19) for j in range(16)}, tmp_path / f"step-{i}.safetensors")
    command = [sys.executable, "-m", "belay_cli", "average", str(tmp_path), "-o", "out.safetensors", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(name.startswith(".out") for name in os.listdir(".")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(tmp_path, number, code, word):
    process = slow_run(tmp_path, "--threads", "1", "-q")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was faster
        assert out == "out.safetensors\n"
        return
    assert (process.returncode, out) == (code, "")
    assert err == f"belay: {word}\n       no unfinished output is left behind\n"
    assert os.listdir(".") == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    process = slow_run(tmp_path, "--threads", "1")
    process.kill()
    process.communicate()
    left = os.listdir(".")
    Path(".other.safetensors.belay-1").mkdir()
    done = belay_process("average", tmp_path, "-o", "out.safetensors", "-q", "--overwrite")
    assert (done.returncode, done.stderr) == (0, ""), left
    assert sorted(os.listdir(".")) == [".other.safetensors.belay-1", "out.safetensors"]


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path):
    process = slow_run(tmp_path, "--threads", "1", "-q")
    other = belay_process("average", tmp_path, "-o", "out.safetensors", "-q")
    process.communicate(timeout=60)
    assert sorted([process.returncode, other.returncode]) == [0, 1]
    assert os.listdir(".") == ["out.safetensors"]
    assert len(load_file("out.safetensors")) == 16


def test_without_locks_a_run_works_and_nothing_is_cleaned_up(tmp_path, monkeypatch):
    import fcntl
    import socket

    def refused(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    other = Path(f".out.safetensors.belay-{socket.gethostname()}-00000000")
    other.mkdir()
    average(make_files(tmp_path), "out.safetensors")
    assert sorted(os.listdir(".")) == [other.name, "out.safetensors"]


def test_a_configuration_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    real = os.open

    def refused(path, *arguments, **keywords):
        if Path(path).name == "config.json" and "checkpoint-400" in str(path) and arguments[0] & os.O_WRONLY == 0:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CheckpointError, match="checkpoint-400/config.json: cannot be opened: permission denied"):
        average([run], "out")
    assert os.listdir(".") == []


def test_files_become_a_directory_that_loaders_understand(tmp_path):
    average(make_files(tmp_path), "out")
    assert sorted(os.listdir("out")) == [".belay", "belay.json", "model.safetensors"]
    with pytest.raises(OutputError, match="out.pt: is not a name for safetensors"):
        average(make_files(tmp_path), "out.pt")
