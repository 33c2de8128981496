"""The commands of README.md and docs/: each is run, and what it prints stands in the page.

    python docs/transcripts.py [PAGE ...]     write what the commands print into the pages
    python docs/transcripts.py --check        say which pages would change; exit code 1 if any would

The fences of a page say what their content is:

    console                `$ command`, and below it what the command prints, stdout and stderr
    sh                     commands, whose output is not shown; they end with exit code 0
    python                 a program; a `text title="prints"` right below shows what it prints
    yaml                   a job of CI, whose `run:` lines are commands

A page is one session: its commands run in order, in a directory that begins with `sample_checkpoints/`, `ckpts/`
(files), `run/` (a run of the Trainer) and `evaluate.py`. The Hub is a server on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from belay_cli import cli  # noqa: E402
from tests.conftest import make_files, make_run  # noqa: E402
from tests.fakes.hub import HubServer, hub_client  # noqa: E402

# Held by a test of their own, against the libraries that they are about.
ELSEWHERE = ("ema-of-libraries.md",)

PAGES = (
    ROOT / "README.md",
    ROOT / "sample_checkpoints/README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in ELSEWHERE),
)

# What sets a machine up or needs a person; the tests see that the targets and the extras are there.
NOT_RUN = ("git clone", "cd ", "pip install", "make ", "hf auth login", "pre-commit ", "python -m venv")

# What differs between machines, or from run to run.
_OF_THE_MACHINE = (
    r"\d+ threads?(, about [\d.]+ \w+ here)?",
    r"\d+(\.\d+)?(?= s\b)",
    r"[\d.]+ [kMG]?B(?= of (buffers|memory))",
    r"[\d.]+ [kMG]?B/s",
    r"(?<= s · )(cpu|cuda).*",
    r"(?<=/commit/)[0-9a-f]+",
    r"[\d.]+ k?B(?=  upload)|(?<=files, )[\d.]+ k?B",  # pictures are as large as matplotlib makes them
    r"(?<=\b0\.\d{3})\d\b",  # a loss: processors round differently
)


@dataclass
class Step:
    """A command or a program of a page, and the lines of the page that show what it prints."""

    text: str
    language: str
    shown: slice | None  # of the page's lines; None where the output is not shown


@dataclass
class Ran:
    """What a step printed, stdout and stderr as they came, and its exit code."""

    text: str
    code: int

    @property
    def failed(self) -> bool:
        """Whether belay said that it failed."""
        return bool(re.search(r"^belay: ", self.text, re.MULTILINE))


@dataclass
class Fence:
    """A fenced block: the words after the fence, and its first and last line of content, 0-based, last excluded."""

    info: str
    first: int
    last: int

    @property
    def language(self) -> str:
        """The first word after the fence."""
        return self.info.split()[0] if self.info else ""


def fences(lines: Sequence[str]) -> Iterator[Fence]:
    """The fenced blocks of a page."""
    opened: Fence | None = None
    for number, line in enumerate(lines):
        if opened is None and line.startswith("```"):
            opened = Fence(line[3:].strip(), number + 1, number + 1)
        elif opened is not None and line.rstrip() == "```":
            opened.last = number
            yield opened
            opened = None
    if opened is not None:
        raise ValueError(f"a fence is not closed: line {opened.first}")


def steps(lines: Sequence[str]) -> Iterator[Step]:
    """What is to be run of a page, in order."""
    blocks = list(fences(lines))
    for number, block in enumerate(blocks):
        content = lines[block.first : block.last]
        following = blocks[number + 1] if number + 1 < len(blocks) else None
        if block.language == "console":
            yield from _session(lines, block)
        elif block.language == "sh":
            joined = "\n".join(content).replace("\\\n", " ")
            commands = [line for line in joined.split("\n") if line.strip() and not line.startswith("#")]
            yield from (Step(command.partition("   #")[0].strip(), "sh", None) for command in commands)
        elif block.language == "yaml":
            yield from (Step(command, "sh", None) for command in _job("\n".join(content)))
        elif block.language == "python":
            prints = following is not None and following.info == 'text title="prints"'
            shown = slice(following.first, following.last) if following is not None and prints else None
            yield Step("\n".join(content), "python", shown)


def _session(lines: Sequence[str], block: Fence) -> Iterator[Step]:
    """The commands of a console, each with what follows it until the next one or the end."""
    prompts = [number for number in range(block.first, block.last) if lines[number].startswith("$ ")]
    if not prompts or prompts[0] != block.first:
        raise ValueError(f"a console begins with a command: line {block.first + 1}")
    for number, end in zip(prompts, [*prompts[1:], block.last], strict=True):
        while end > number + 1 and end != block.last and not lines[end - 1]:
            end -= 1  # the empty line before the next command
        yield Step(lines[number][2:], "sh", slice(number + 1, end))


def _job(text: str) -> Iterator[str]:
    """The commands of a workflow's jobs, with the input `run` as a person gives it."""
    for job in (yaml.safe_load(text).get("jobs") or {}).values():
        for step in job["steps"]:
            for command in str(step.get("run", "")).splitlines():
                yield command.replace('"$RUN"', "run")


def is_run(step: Step) -> bool:
    """Whether the step is run, rather than looked at."""
    return not step.text.startswith(NOT_RUN)


@dataclass
class Session:
    """A directory in which the steps of a page run, and the address of the Hub there."""

    directory: Path
    hub: HubServer
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, step: Step) -> Ran:
        """Run a step. What it prints has no paths or addresses of this machine."""
        ran = self._program(step.text) if step.language == "python" else self._command(step.text)
        text = ran.text.replace(f"{self.directory}/", "").replace(self.hub.endpoint, "https://huggingface.co")
        return Ran("\n".join(line.rstrip() for line in text.splitlines()), ran.code)

    def _program(self, text: str) -> Ran:
        with _captured() as printed:
            exec(compile(text, "a program of the docs", "exec"), self.names)
        return Ran(printed.getvalue(), 0)

    def _command(self, command: str) -> Ran:
        """`belay` and Python's scripts in this process, which has imported torch; all else in a shell."""
        command = os.path.expandvars(command)
        program, *arguments = shlex.split(command)
        if program not in ("belay", "python") or re.search(r"[|><&;]", command):
            return self._shell(command)
        words = [word for argument in arguments for word in _expanded(argument)]
        with _captured() as printed:
            code = cli.run(words) if program == "belay" else _script(words)
        return Ran(printed.getvalue(), code)

    def _shell(self, command: str) -> Ran:
        function = f'belay() {{ {shlex.quote(sys.executable)} -m belay_cli "$@"; }}; '
        python = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; '
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            ["bash", "-c", function + python + command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
        return Ran(done.stdout, done.returncode)


def _script(words: list[str]) -> int:
    """What `python SCRIPT ...` does, in this process; modules beside the script are its own."""
    script, before = words[0], set(sys.modules)
    argv, path = sys.argv, sys.path
    sys.argv, sys.path = words, [str(Path(script).parent.resolve()), *path]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv, sys.path = argv, path
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(script).parent.resolve():
                del sys.modules[name]
    return 0


def _expanded(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) or [word] if set(word) & set("*?[") else [word]


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """A new directory as every page finds it, and in it for as long as this lasts; no width but 80 columns."""
    with (
        tempfile.TemporaryDirectory(prefix="belay-docs-") as place,
        HubServer({"hf_w": "write"}, namespaces=("ORG",)) as hub,
        hub_client(hub, Path(place) / "home", "hf_w"),
        contextlib.chdir(Path(place)),
        _environment(
            COLUMNS="80",
            GITHUB_STEP_SUMMARY=str(Path(place) / "summary.md"),
            PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        ),
    ):
        work = Path(place).resolve() / "work"
        work.mkdir()
        os.chdir(work)
        make_files(Path("ckpts"))
        make_run(Path("run"), steps=range(1000, 13_000, 1000))
        Path("sample_checkpoints").symlink_to(ROOT / "sample_checkpoints")
        saved = {
            path.stem.replace("-", ""): {"model.safetensors": path.read_bytes()} for path in Path("ckpts").iterdir()
        }
        hub.make_repo("org/model", {"main": {}, **saved})
        Path("evaluate.py").write_text("print('{\"accuracy\": 0.96}')\n")
        yield Session(work, hub)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def same(one: str, other: str) -> bool:
    """Whether two outputs differ at most in what is of the machine."""
    return _without_the_machine(one) == _without_the_machine(other)


def _without_the_machine(text: str) -> str:
    for pattern in _OF_THE_MACHINE:
        text = re.sub(pattern, "#", text)
    return text.rstrip()


def updated(page: Path) -> str:
    """The page with what its commands print. What is shown already stays, if it differs by the machine only."""
    lines = page.read_text(encoding="utf-8").split("\n")
    replaced: list[tuple[slice, list[str]]] = []
    with session() as here:
        for step in filter(is_run, steps(lines)):
            ran = here.run(step)
            if step.shown is not None and not same(ran.text, "\n".join(lines[step.shown])):
                replaced.append((step.shown, ran.text.rstrip().split("\n")))
            elif step.shown is None and ran.code:
                raise SystemExit(f"{page.name}: {step.text}\n{ran.text}")
    for where, printed in reversed(replaced):
        lines[where] = printed
    return "\n".join(lines)


def main() -> None:
    """Write the pages anew, or with --check say which would change."""
    parser = argparse.ArgumentParser(description="Write what the commands of the docs print into their pages.")
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: README.md and docs/*.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page would change")
    options = parser.parse_args()
    changed = []
    for page in [page.resolve() for page in options.pages] or PAGES:
        text = updated(page)
        if text != page.read_text(encoding="utf-8"):
            changed.append(page)
            if not options.check:
                page.write_text(text, encoding="utf-8")
    for page in changed:
        print(page.relative_to(ROOT))
    sys.exit(bool(changed) and options.check)


if __name__ == "__main__":
    main()
