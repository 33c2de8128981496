"""What newcomers type wrong: each mistake ends with an exact message and its mend, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from belay_cli import average
from belay_cli.rules import METHODS
from tests.conftest import Ran, make_files, make_run, tensors

LOOKED_FOR = "looked for *.safetensors, *.pt, *.pth, *.bin, *.ckpt, in it and in its folders"
EXAMPLES = "write 10%, 2000steps, 3checkpoints, or a number of ticks"
OF_AN_EPOCH = "one epoch of 500 steps is 500steps; with one checkpoint an epoch, {}checkpoints"
CONVERT = "convert it to steps or checkpoints: 2000steps, 3checkpoints"
FOUR = "step-100.safetensors, step-200.safetensors, step-300.safetensors, step-400.safetensors"
ELSEWHERE = "write somewhere else: -o"


def nothing() -> None:
    """An empty directory."""


def four() -> None:
    make_files(Path("ckpts"))


def four_and_an_average() -> None:
    four()
    average("ckpts", "ema_average.safetensors")


def run() -> None:
    make_run(Path("run"))


def run_in_a_folder() -> None:
    make_run(Path("runs/first"))


def twenty() -> None:
    make_files(Path("ckpts"), steps=range(50, 1001, 50))


def two() -> None:
    make_files(Path("ckpts"), steps=(100, 200))


def notes_only() -> None:
    Path("docs/img").mkdir(parents=True)
    Path("docs/readme.md").write_text("no weights")


def empty() -> None:
    Path("empty").mkdir()


def foreign_output() -> None:
    four()
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("do not touch")


def own_output() -> None:
    four()
    save_file(tensors(), "out.safetensors", metadata={"belay.version": "0"})


def shards() -> None:
    Path("ckpt").mkdir()
    save_file(tensors(), "ckpt/model-00001-of-00002.safetensors")


def without_steps() -> None:
    for name, path in zip(("first", "last"), make_files(Path("ckpts"), steps=(1, 2)), strict=True):
        path.rename(path.with_stem(name))


def another_architecture() -> None:
    four()
    save_file(tensors() | {"scale": torch.zeros(3)}, "ckpts/step-300.safetensors")


def a_text() -> None:
    Path("state").mkdir()
    Path("state/notes.txt").write_text("a text")


class Mistake(NamedTuple):
    """Words after `belay`, what lies in the directory, the exit code, the message and the mend."""

    typed: tuple[str, ...]
    there: Callable[[], None]
    code: int
    message: str
    hint: str | None = None


def plan(
    *words: str, there: Callable[[], None] = four, code: int = 2, message: str, hint: str | None = None
) -> Mistake:
    """A mistake in the options of `belay plan ckpts`, wrong usage."""
    return Mistake(("plan", "ckpts", *words), there, code, message, hint)


def half_life(text: str, hint: str | None, *, said: str = "is not a positive half-life") -> Mistake:
    return plan("--half-life", text, message=f"--half-life '{text}' {said}", hint=hint)


def output(path: str, message: str, hint: str | None, *, there: Callable[[], None] = four, code: int = 1) -> Mistake:
    return Mistake(("average", "ckpts", "-o", path), there, code, message, hint)


PATHS = {
    "a directory that is not there": Mistake(("plan", "nowhere"), nothing, 1, "nowhere: does not exist"),
    "a home in quotes, without such a file": Mistake(
        ("plan", "~/belay-nowhere"), nothing, 1, "{home}/belay-nowhere: does not exist"
    ),
    "a home of nobody": Mistake(
        ("plan", "~nobody-of-that-name/run"), nothing, 1, "~nobody-of-that-name/run: does not exist",
        "there is no user of that name; your own files lie under ~/",
    ),
    "a variable in single quotes": Mistake(
        ("plan", "$RUN/ckpts"), nothing, 1, "$RUN/ckpts: does not exist",
        "a variable in single quotes is not filled in; use double quotes",
    ),
    "a pattern of another suffix": Mistake(
        ("plan", "ckpts/*.pt"), four, 1, "ckpts/*.pt: matches no file", f"ckpts holds {FOUR}"
    ),
    "a pattern in a directory that is not there": Mistake(
        ("plan", "nowhere/*.pt"), four, 1, "nowhere/*.pt: matches no file", "there is no directory nowhere"
    ),
    "a pattern in an empty directory": Mistake(
        ("plan", "empty/step-?00.pt"), empty, 1, "empty/step-?00.pt: matches no file", "empty is empty"
    ),
    "a pattern of folders": Mistake(
        ("plan", "run*/chekpoint-[0-9]*"), run, 1, "run*/chekpoint-[0-9]*: matches no file", ". holds run/"
    ),
    "a pattern below a file": Mistake(
        ("plan", "ckpts/step-100.safetensors/*"), four, 1, "ckpts/step-100.safetensors/*: matches no file",
        "ckpts/step-100.safetensors is a file, not a directory",
    ),
    "an id of the Hub": Mistake(
        ("plan", "EleutherAI/pythia-70m"), nothing, 1, "EleutherAI/pythia-70m: does not exist",
        "is it on the Hub? hf://EleutherAI/pythia-70m",
    ),
    "a revision of the Hub": Mistake(
        ("plan", "EleutherAI/pythia-70m@step1000"), nothing, 1, "EleutherAI/pythia-70m@step1000: does not exist",
        "is it on the Hub? hf://EleutherAI/pythia-70m@step1000",
    ),
    "a URL of the Hub without its slashes": Mistake(
        ("plan", "hf:EleutherAI/pythia-70m"), nothing, 1, "hf:EleutherAI/pythia-70m: does not exist",
        "is it a URL? hf://EleutherAI/pythia-70m",
    ),
    "a URL with one slash": Mistake(
        ("plan", "s3:/bucket/run"), nothing, 1, "s3:/bucket/run: does not exist", "is it a URL? s3://bucket/run"
    ),
    "an address of the Hub without https": Mistake(
        ("plan", "huggingface.co/EleutherAI/pythia-70m"), nothing, 1,
        "huggingface.co/EleutherAI/pythia-70m: does not exist", "is it a URL? hf://EleutherAI/pythia-70m",
    ),
    "a dataset of the Hub": Mistake(
        ("plan", "hf://datasets/org/name"), nothing, 1,
        "hf://datasets/org/name: is one of the Hub's datasets; checkpoints lie in repositories of models",
    ),
    "a scheme of another machine": Mistake(
        ("plan", "ssh://host/run"), nothing, 1,
        "ssh://host/run: needs a package to be read", "install what fsspec needs for ssh://",
    ),
    "a path of Windows": Mistake(
        ("plan", r"C:\run\ckpts"), nothing, 1, r"C:\run\ckpts: does not exist",
        "a path of Windows is written with /, and in WSL: /mnt/c/run/ckpts",
    ),
    "a path of Windows after the shell": Mistake(
        ("plan", "C:runckpts"), nothing, 1, "C:runckpts: does not exist",
        "a path of Windows is written with /, and in WSL: /mnt/c/…",
    ),
    "backslashes": Mistake(
        ("plan", r"run\checkpoint-100"), run, 1, r"run\checkpoint-100: does not exist",
        "folders are divided by /: run/checkpoint-100",
    ),
    "no argument": Mistake(("plan",), nothing, 2, "Missing argument 'CHECKPOINTS'", "belay plan --help"),
    "an empty argument": Mistake(
        ("plan", ""), nothing, 2, "a checkpoint is given as an empty text", "is a variable of the shell not set?"
    ),
    "a blank argument": Mistake(
        ("plan", "ckpts", " "), four, 2, "a checkpoint is given as an empty text", "is a variable of the shell not set?"
    ),
    "a directory of other files": Mistake(
        ("plan", "docs"), notes_only, 1, "docs: holds no weights that belay reads",
        f"it holds img/, readme.md; {LOOKED_FOR}",
    ),
    "an empty directory": Mistake(
        ("plan", "empty"), empty, 1, "empty: holds no weights that belay reads", f"it is empty; {LOOKED_FOR}"
    ),
    "a text file": Mistake(
        ("plan", "state/notes.txt"), a_text, 1,
        "state/notes.txt: is neither a safetensors nor a torch file",
        "belay reads *.safetensors, *.pt, *.pth, *.bin, *.ckpt, and directories that hold them",
    ),
    "a suffix with a letter less": Mistake(
        ("plan", "ckpts/step-100.safetensor"), four, 1, "ckpts/step-100.safetensor: does not exist",
        "did you mean ckpts/step-100.safetensors?",
    ),
    "a name with a letter less": Mistake(
        ("plan", "run/chekpoint-100"), run, 1, "run/chekpoint-100: does not exist",
        "did you mean run/checkpoint-100?",
    ),
    "a name with zeros": Mistake(
        ("plan", "ckpts/step-0100.safetensors"), four, 1, "ckpts/step-0100.safetensors: does not exist",
        "did you mean ckpts/step-100.safetensors?",
    ),
    "a step that was not saved": Mistake(
        ("plan", "run/checkpoint-150"), run, 1, "run/checkpoint-150: does not exist"
    ),
    "a file in a directory that is not there": Mistake(
        ("plan", "nowhere/step-100.safetensors"), four, 1, "nowhere/step-100.safetensors: does not exist",
        "there is no directory nowhere",
    ),
    "the output after the inputs": Mistake(
        ("average", "ckpts", "out.safetensors"), four, 1, "out.safetensors: does not exist",
        "is it the output? -o out.safetensors",
    ),
    "the output after the inputs, as a directory": Mistake(
        ("average", "run", "run-ema"), run, 1, "run-ema: does not exist", "is it the output? -o run-ema"
    ),
    "the directory above the run": Mistake(
        ("plan", "."), run_in_a_folder, 1, ".: holds no weights that belay reads", f"it holds runs/; {LOOKED_FOR}"
    ),
    "a shard": Mistake(
        ("plan", "ckpt/model-00001-of-00002.safetensors"), shards, 1,
        "ckpt/model-00001-of-00002.safetensors: is one shard of several", "the checkpoint is its directory: ckpt",
    ),
    "an average as a checkpoint": Mistake(
        ("plan", "ckpts", "out.safetensors"), own_output, 1,
        "out.safetensors: was written by belay: it is an average, not a checkpoint",
        "leave it out, or say --allow-averages",
    ),
    "names without numbers": Mistake(
        ("plan", "ckpts/first.safetensors", "ckpts/last.safetensors"), without_steps, 1,
        "ckpts/first.safetensors: has no step and no integer in its name, so its place in the series is unknown",
        "give the checkpoints in order, with --order given",
    ),
    "another architecture": plan(
        there=another_architecture, code=1,
        message="ckpts/step-300.safetensors: 'scale' is 3; in step-200.safetensors it is a scalar",
        hint="a series has one architecture; to leave the later checkpoints out: --to-step 200",
    ),
}  # fmt: skip

HALF_LIVES = {
    "epochs": half_life("10epochs", OF_AN_EPOCH.format(10), said="counts epochs, which checkpoints do not state"),
    "an epoch": half_life("1 epoch", OF_AN_EPOCH.format(1), said="counts epochs, which checkpoints do not state"),
    "tokens": half_life("2e9tokens", CONVERT, said="counts tokens, which checkpoints do not state"),
    "hours": half_life("3hours", CONVERT, said="counts time, which checkpoints do not state"),
    "thousands as k": half_life("10k", "in digits: 10000steps"),
    "thousands of steps as k": half_life("1.5k steps", "in digits: 1500steps"),
    "a comma for thousands": half_life("1,000", "without a comma: 1000"),
    "a comma for a point": half_life("1,5%", "without a comma: 1.5%"),
    "a word": half_life("half", EXAMPLES),
    "a misspelt word": half_life("3chekpoints", "did you mean 3checkpoints?"),
    "below zero": half_life("-5", EXAMPLES),
    "zero": half_life("0", EXAMPLES),
    "no text": half_life("", EXAMPLES),
    "infinity": half_life("inf", EXAMPLES),
    "more than a float64 holds": half_life("1e400", "the longest that says something is about the span: 100%"),
    "steps without steps": plan(
        "--half-life", "2000steps", "--unit", "checkpoint",
        message="--half-life 2000steps needs the step of every checkpoint, and these are counted in checkpoints",
        hint="write it in checkpoints (3checkpoints) or as a share of the span (10%)",
    ),
    "a decay as well": plan(
        "--half-life", "10%", "--decay", "0.9", message="--half-life and --decay say the same thing twice",
        hint="give one of them",
    ),
    "a decay of one": plan(
        "--decay", "1", message="--decay must lie in [0, 1), not 1", hint="0.999 forgets half in 693 ticks"
    ),
    "a decay in percent": plan(
        "--decay", "99.9", message="--decay must lie in [0, 1), not 99.9", hint="0.999 forgets half in 693 ticks"
    ),
}  # fmt: skip

OUTPUTS = {
    "stdout": output(
        "-", "-o -: an average is files, and stdout is none", "name one: -o average.safetensors", code=2
    ),
    "an option where the path should be": output(
        "--overwrite", "-o --overwrite: an option stands where the path should be", "name a path: -o belay-average",
        code=2,
    ),
    "no text": output("", "--output is empty", "is a variable of the shell not set?", code=2),
    "the Hub": output(
        "hf://org/name", "-o hf://org/name: an average is written to this machine",
        "to publish it on the Hub as well: --push-to-hub ORG/NAME", code=2,
    ),
    "a path of Windows": output(
        r"C:\out", r"-o C:\out: is no path of this system",
        "a path of Windows is written with /, and in WSL: /mnt/c/out", code=2,
    ),
    "a name for torch": output("out.pt", "out.pt: is not a name for safetensors", "-o out.safetensors"),
    "a suffix with a letter less": output(
        "out.safetensor", "out.safetensor: is not a name for safetensors", "-o out.safetensors"
    ),
    "a directory that is not there": output(
        "nowhere/out", "nowhere/out: cannot be written: its directory does not exist", "mkdir -p {work}/nowhere"
    ),
    "an input": output(
        "ckpts/step-100.safetensors",
        "ckpts/step-100.safetensors: is one of the checkpoints, which stay as they are", ELSEWHERE,
    ),
    "the directory of the inputs": output("ckpts", "ckpts: holds the input ckpts/step-100.safetensors", ELSEWHERE),
    "the current directory": output(".", ".: holds the input ckpts/step-100.safetensors", ELSEWHERE),
    "what is not belay's": output(
        "mine", "mine: exists", "say --overwrite, or write somewhere else: -o", there=foreign_output
    ),
    "what is there": output(
        "out.safetensors", "out.safetensors: exists", "say --overwrite, or write somewhere else: -o", there=own_output
    ),
    "a shard's name": output(
        "model-00001-of-00002.safetensors",
        "model-00001-of-00002.safetensors: is the name of one shard of several",
        "write it under a name of its own: -o average.safetensors",
    ),
}  # fmt: skip

OPTIONS = {
    "shards of one file": plan(
        "--max-shard-size", "1GB", message="--max-shard-size does not go with the single file "
        "belay-average.safetensors", hint="for shards, give a directory: -o NAME without .safetensors",
    ),
    "no thread": plan("--threads", "0", message="--threads must be 1 or more, not 0"),
    "steps that leave nothing": plan(
        "--from-step", "1000",
        message="no checkpoint lies between --from-step and --to-step: the series has steps 100 to 400",
    ),
    "every none": plan("--every", "0", message="--every must be 1 or more, not 0"),
    "a pattern of no tensor": plan(
        "--drop", "*optimizer*", message="--drop '*optimizer*' matches no tensor",
        hint="belay inspect --tensors lists them",
    ),
    "all tensors dropped": plan("--drop", "*", message="--drop leaves no tensor", hint="drop fewer"),
    "a given order in steps": plan(
        "--order", "given", "--unit", "step",
        message="--order given counts checkpoints, so --unit step has no meaning with it",
    ),
    "an option given twice": Mistake(("plan", "ckpts", "--decay", "0.9", "--decay", "0.5"), four, 2,
        "--decay is given twice", "give it once"),
    "a method that is nearly one": Mistake(("plan", "ckpts", "-m", "belya"), four, 2,
        "--method belya is unknown", f"did you mean belay? one of: {', '.join(METHODS)}"),
    "a dtype that is nearly one": Mistake(("plan", "ckpts", "--dtype", "bf17"), four, 2,
        "--dtype bf17 is unknown", "did you mean bfloat16? one of: same, float64, float32, bfloat16, float16"),
    "a unit that is nearly one": Mistake(("plan", "ckpts", "--unit", "stpes"), four, 2,
        "--unit stpes is unknown", "did you mean step? one of: auto, step, checkpoint"),
    "curvature without feedback": Mistake(
        ("plan", "ckpts", "-m", "belay", "--feedback", "0", "--curvature", "10", "--decay", "0.1"), four, 2,
        "--curvature 10 has no meaning without feedback: nothing leaves the recorded path",
        "leave --curvature out, or take a --feedback above 0"),
    "a decay that is none": Mistake(("plan", "ckpts", "--decay", "nan"), four, 2,
        "--decay must lie in [0, 1), not nan", "0.999 forgets half in 693 ticks"),
    "a decay in percent": Mistake(("plan", "ckpts", "--decay", "99%"), four, 2,
        "--decay takes a number, not 99%", "write 0.99"),
    "a comma for a point": Mistake(("plan", "ckpts", "--every", "2,5"), four, 2,
        "--every takes a whole number, not 2,5"),
    "an option of plan given to average": Mistake(("average", "ckpts", "--plot", "p.svg"), four, 2,
        "average has no --plot; belay plan has", "belay average --help"),
    "an average among the checkpoints, by its record": Mistake(("average", "ckpts", "ema_average.safetensors"),
        four_and_an_average, 1,
        "ema_average.safetensors: was written by belay: it is an average, not a checkpoint",
        "leave it out, or say --allow-averages"),
    "a branch without a push": Mistake(
        ("average", "ckpts", "--revision", "ema"), four, 2, "--revision goes with --push-to-hub"
    ),
}  # fmt: skip

MISTAKES = {
    f"{what}: {name}": mistake
    for what, group in (("path", PATHS), ("half-life", HALF_LIVES), ("output", OUTPUTS), ("option", OPTIONS))
    for name, mistake in group.items()
}


def in_full(text: str) -> str:
    return text.replace("{work}", os.getcwd()).replace("{home}", os.path.expanduser("~"))


def everything() -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(Path().rglob("*"))}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_has_its_message_and_its_mend(mistake: Mistake, belay: Callable[..., Ran]) -> None:
    mistake.there()
    before = everything()
    ran = belay(*mistake.typed)
    lines = [f"belay: {mistake.message}"] + ([f"       {mistake.hint}"] if mistake.hint else [])
    assert ran.err.splitlines() == [in_full(line) for line in lines]
    assert (ran.code, ran.out) == (mistake.code, "")
    assert everything() == before


def test_the_table_holds_fifty_mistakes() -> None:
    assert len(MISTAKES) >= 50


SHORT = "the half-life, {} {}s, is {} of the distance between checkpoints, so the last one weighs {}; {}"
STRAIGHT = (
    "every step of the straight line between checkpoints is averaged, so the last one stands for the half interval "
    "before it alone; for one update a checkpoint, as in the textbook EMA e ← d e + (1 − d) w: --unit checkpoint"
)

# What works and is hardly what was meant: words after `belay plan ckpts`, what is there, the warning or the note.
DOUBTS = {
    "a decay for checkpoints, in steps": (
        ("--decay", "0.9"), twenty,
        "warning: " + SHORT.format("6.579", "step", "0.13", "82%",
                                   "for the decay from one checkpoint to the next: --unit checkpoint"),
    ),
    "a share below one checkpoint": (
        ("--half-life", "2%"), twenty,
        "warning: " + SHORT.format("19", "step", "0.38", "55%", "a longer one: --half-life 2checkpoints"),
    ),
    "a share without its sign": (
        ("--half-life", "0.1"), twenty,
        "warning: " + SHORT.format("0.1", "step", "0.002", "100%", "for a share of the span: --half-life 10%"),
    ),
    "half a checkpoint": (
        ("--half-life", "0.5", "--unit", "checkpoint"), twenty,
        "warning: " + SHORT.format("0.5", "checkpoint", "0.5", "75%", "a longer one: --half-life 2checkpoints"),
    ),
    "two checkpoints": (
        (), two,
        f"warning: an older checkpoint weighs 71.9%, and the last 28.1%: {STRAIGHT}",
    ),
    "a file given twice": (
        ("ckpts/step-100.safetensors",), four,
        "note: ckpts/step-100.safetensors is ckpts/step-100.safetensors again; it counts once",
    ),
}  # fmt: skip


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS.keys())
def test_what_is_hardly_meant_is_said(
    doubt: tuple[Iterable[str], Callable[[], None], str], belay: Callable[..., Ran]
) -> None:
    words, there, said = doubt
    there()
    ran = belay("plan", "ckpts", *words)
    assert ran.code == 0
    assert said in ran.err.splitlines()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("50 %", "50%"),
        ("10 percent", "10%"),
        ("3ckpts", "3checkpoints"),
        ("3 checkpoints", "3checkpoints"),
        ("2000 steps", "2000steps"),
        ("2e3steps", "2000steps"),
        ("1_000", "1000"),
        ("200 iterations", "200steps"),
    ],
)
def test_half_lives_that_are_understood(text: str, same: str, belay: Callable[..., Ran]) -> None:
    four()
    ran = belay("plan", "ckpts", "--half-life", text)
    assert ran.code == 0
    assert ran == belay("plan", "ckpts", "--half-life", same)


def test_a_pattern_and_a_home_in_quotes_are_what_the_shell_makes_of_them(
    monkeypatch: pytest.MonkeyPatch, belay: Callable[..., Ran]
) -> None:
    four()
    monkeypatch.setenv("HOME", os.getcwd())
    wanted = belay("plan", *sorted(map(str, Path("ckpts").iterdir())))
    assert belay("plan", "ckpts/*.safetensors") == wanted
    assert belay("plan", "~/ckpts/step-[1-4]00.safetensors") == wanted
    assert belay("average", "ckpts", "-o", "~/out.safetensors", "-q").out == f"{os.getcwd()}/out.safetensors\n"


def test_a_name_with_brackets_is_itself(belay: Callable[..., Ran]) -> None:
    make_files(Path("run [1]"))
    assert belay("plan", "run [1]").code == 0
