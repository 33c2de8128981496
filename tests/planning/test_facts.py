"""What rules ask about each checkpoint: scores, coefficients and widths, in order, by name, from files, or typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli import Coefficients, UsageError, plan
from tests.conftest import Ran, make_files, make_run, tensors

Command = Callable[..., Ran]
STEPS = (100, 200, 300, 400)
NUMBERS = [0.1, 0.2, 0.3, 0.4]
FILE_HINT = "give a .json or .csv file, or numbers"
ORDER_HINT = "give one for each, in the order of belay plan, or a file by name"


@pytest.fixture(autouse=True)
def _series(_in_an_empty_directory: None) -> None:
    make_files(Path("ckpts"))
    make_run(Path("run"))


def refused(ran: Ran, message: str, hint: str | None = None, code: int = 2) -> None:
    assert (ran.code, ran.out) == (code, "")
    assert ran.err == f"belay: {message}\n" + (f"       {hint}\n" if hint else "")


def weights(ran: Ran) -> list[float]:
    assert ran.code == 0, ran.out
    return [checkpoint["coefficient"] for checkpoint in ran.json["checkpoints"]]


def csv_of(keys: list[str], heading: str = "") -> str:
    return heading + "".join(f"{key},{number}\n" for key, number in zip(keys, NUMBERS, strict=True))


NAMES = [f"step-{step}.safetensors" for step in STEPS]
KEYS = {"name": NAMES, "path": [f"ckpts/{name}" for name in NAMES], "step": [str(step) for step in STEPS]}


# ---- where they come from


@pytest.mark.parametrize("by", KEYS)
def test_a_file_by_name(by: str, belay: Command) -> None:
    Path("c.json").write_text(json.dumps(dict(zip(KEYS[by], NUMBERS, strict=True))))
    Path("c.csv").write_text(csv_of(KEYS[by]))
    Path("reversed.csv").write_text("".join(reversed(csv_of(KEYS[by]).splitlines(keepends=True))))
    Path("c.txt").write_text(csv_of(KEYS[by], "checkpoint, weight\n\n") + "\n")
    Path("marked.csv").write_text("\ufeff" + csv_of(KEYS[by]))
    for name in ("c.json", "c.csv", "reversed.csv", "c.txt", "marked.csv"):
        assert weights(belay("plan", "ckpts", "-m", "coefficients", "--coefficients", name, "--json")) == NUMBERS


def test_checkpoints_that_are_directories(belay: Command) -> None:
    for keys in ([f"checkpoint-{step}" for step in STEPS], [f"run/checkpoint-{step}" for step in STEPS]):
        Path("c.csv").write_text(csv_of(keys))
        assert weights(belay("plan", "run", "--coefficients", "c.csv", "-m", "coefficients", "--json")) == NUMBERS


def test_a_list_in_a_file_and_numbers_that_are_typed(belay: Command) -> None:
    Path("c.json").write_text(json.dumps(NUMBERS))
    for given in ("c.json", "0.1,0.2,0.3,0.4", "0.1, .2, 3e-1 ,0.4"):
        assert weights(belay("plan", "ckpts", "--coefficients", given, "--json")) == NUMBERS


def test_scores_may_name_more_checkpoints_and_coefficients_may_not(belay: Command) -> None:
    text = csv_of(KEYS["name"]) + "step-500.safetensors,0.5\nstep-600.safetensors,0.6\n"
    Path("c.csv").write_text(text)
    ran = belay("plan", "ckpts", "--best", 1, "--scores", "c.csv", "--mode", "min", "--json")
    assert weights(ran) == [1, 0, 0, 0]
    refused(
        belay("plan", "ckpts", "--coefficients", "c.csv"),
        "--coefficients names step-500.safetensors, step-600.safetensors, and the series has no such checkpoint",
        "belay inspect shows their names",
    )


# ---- what is wrong with them


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("1,2,3", "{} has 3 numbers for 4 checkpoints", ORDER_HINT),
        ("1", "{} has 1 number for 4 checkpoints", ORDER_HINT),
        ("1,2,nan,4", "{}: nan is no number that can be", None),
        ("1,2,-inf,4", "{}: -inf is no number that can be", None),
        ("nowhere.csv", "{} nowhere.csv cannot be read: no such file or directory", FILE_HINT),
        ("1,2,three,4", "{} 1,2,three,4 cannot be read: no such file or directory", FILE_HINT),
        ("ckpts", "{} ckpts cannot be read: is a directory", FILE_HINT),
        ("ckpts/step-100.safetensors", "{} ckpts/step-100.safetensors cannot be read: it is no text", FILE_HINT),
    ],
)
@pytest.mark.parametrize("flag", ["--coefficients", "--scores"])
def test_what_is_typed(flag: str, given: str, message: str, hint: str | None, belay: Command) -> None:
    more = ["--best", 1, "--mode", "min"] if flag == "--scores" else []
    refused(belay("plan", "ckpts", flag, given, *more), message.format(flag), hint)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("", "is empty", None),
        ("checkpoint,weight\n", "is empty", None),
        ("100,1\n200,2\n100,3\n", "has 100 twice", None),
        ('{"100": 1, "200": 2, "100": 3}', "has 100 twice", None),
        ("100,1\n200\n", ": a row has 1 column, not a checkpoint and a number", "write checkpoint-500,0.93"),
        ("100,1\n200,2,3\n", ": a row has 3 columns, not a checkpoint and a number", "write checkpoint-500,0.93"),
        ('100,"1\n', "is no CSV: unexpected end of data", None),
        ('{"100": 1', "is not valid JSON", None),
        ("[" * 100_000, "is not valid JSON", None),
    ],
)
def test_files_that_are_none(content: str, message: str, hint: str | None, belay: Command) -> None:
    Path("c.txt").write_text(content)
    space = "" if message.startswith(":") else " "
    refused(belay("plan", "ckpts", "--coefficients", "c.txt"), f"--coefficients c.txt{space}{message}", hint)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("100,1\n200,2\n400,4\n", " has no number for step-300.safetensors", "name each checkpoint of the series"),
        ("{}", " has no number for step-100.safetensors", "name each checkpoint of the series"),
        ("100,1\n200,two\n300,3\n400,4\n", ": 'two' is no number", None),
        ("100,1\n200,nan\n300,3\n400,4\n", ": nan is no number that can be", None),
        ('{"100": 1, "200": NaN, "300": 3, "400": 4}', ": nan is no number that can be", None),
        ('{"100": 1, "200": null, "300": 3, "400": 4}', ": None is no number", None),
        ('{"100": 1, "200": true, "300": 3, "400": 4}', ": True is no number that can be", None),
        ('{"100": 1, "200": [2], "300": 3, "400": 4}', ": [2] is no number", None),
        ("[1, 2]", " has 2 numbers for 4 checkpoints", ORDER_HINT),
        (f"[1, 2, 3, 1{'0' * 400}]", f": 1{'0' * 400} is no number that can be", None),
    ],
)
def test_numbers_that_are_none(content: str, message: str, hint: str | None, belay: Command) -> None:
    Path("c.txt").write_text(content)
    refused(belay("plan", "ckpts", "--coefficients", "c.txt"), f"--coefficients{message}", hint)


# ---- coefficients


def test_negative_coefficients_and_another_sum(belay: Command) -> None:
    ran = belay("average", "ckpts", "-o", "out.safetensors", "--coefficients=-1,2,0.5,0.5")
    assert ran.code == 0
    assert (
        "warning: the coefficients sum to 2, and nothing is normalised: the weights are scaled by that; for an average "
        "divide each by the sum\n"
    ) in ran.err
    expected = sum(c * tensors(seed)["embed.weight"].double() for seed, c in enumerate([-1, 2, 0.5, 0.5]))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(load_file("out.safetensors")["embed.weight"], expected.float(), rtol=1e-7, atol=1e-7)
    assert belay("verify", "out.safetensors", "--checkpoints", "ckpts").code == 0
    assert "Average, coefficients as given, sum 2\n" in belay("plan", "ckpts", "--coefficients=-1,2,0.5,0.5").out


def test_the_lag_of_another_sum_is_that_of_its_average(belay: Command) -> None:
    summary = belay("plan", "ckpts", "--coefficients", "0,2,0,2", "--json").json["summary"]
    assert summary == {"sum": 4, "mean_lag": 100, "effective_checkpoints": 2}


def test_a_difference_is_no_model(belay: Command) -> None:
    ran = belay("plan", "ckpts", "--coefficients=-1,0,0,1")
    assert ran.code == 0
    assert (
        "warning: the coefficients sum to 0, and nothing is normalised: this is a difference of weights, and no model\n"
    ) in ran.err


def test_coefficients_that_sum_to_one_are_not_warned_of(belay: Command) -> None:
    ran = belay("plan", "ckpts", "--coefficients=-0.5,0.5,0.5,0.5")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ["-m", "coefficients"],
            "--method coefficients takes --coefficients",
            "a file, or numbers: 0.2,0.3,0.5",
        ),
        (["--coefficients", "0,0,0,0"], "--coefficients are all 0", "give at least one checkpoint a weight"),
        (
            ["--coefficients", "2e6,0,0,0"],
            "--coefficients are larger than a million",
            "scale them, so that they sum to 1",
        ),
        (["--coefficients", "1e305,0,0,0"], "a coefficient cannot be 1e+305", None),
    ],
)
def test_coefficients_that_make_no_average(words: list[str], message: str, hint: str | None, belay: Command) -> None:
    refused(belay("plan", "ckpts", *words), message, hint)


# ---- weights behind the checkpoints


def test_weights_behind_the_checkpoints(belay: Command) -> None:
    typed = ["ckpts/step-400.safetensors=0.7", "ckpts/step-100.safetensors=0.3"]
    assert belay("average", *typed, "-o", "out.safetensors").code == 0
    expected = 0.3 * tensors(0)["embed.weight"].double() + 0.7 * tensors(3)["embed.weight"].double()
    torch.testing.assert_close(load_file("out.safetensors")["embed.weight"], expected.float(), rtol=1e-7, atol=1e-7)
    told = belay("plan", *typed, "--json").json
    assert (told["rule"]["method"], told["rule"]["coefficients"]) == ("coefficients", [0.3, 0.7])
    directories = ["run/checkpoint-200/=1.5", f"{Path.cwd()}/run/checkpoint-100=-.5"]
    assert weights(belay("plan", *directories, "--json")) == [-0.5, 1.5]
    report = plan(["run/checkpoint-100=0.25", "run/checkpoint-200=0.75"])
    assert [one.coefficient for one in report.checkpoints] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ["ckpts/step-100.safetensors=0.7", "ckpts/step-200.safetensors"],
            "ckpts/step-200.safetensors has no weight, and others do",
            "write PATH=WEIGHT for each",
        ),
        (
            ["ckpts/step-100.safetensors=0.7", "ckpts/step-200.safetensors=nan"],
            "ckpts/step-200.safetensors=nan has no weight, and others do",
            "write PATH=WEIGHT for each",
        ),
        (
            ["ckpts/step-100.safetensors=0.7", "./ckpts/step-100.safetensors=0.3"],
            "a checkpoint is given twice, with two weights",
            "give it once, with their sum",
        ),
        (
            ["ckpts/step-100.safetensors=0.7", "ckpts/step-200.safetensors=0.3", "-m", "uniform"],
            "weights behind the checkpoints are a method of their own",
            "leave --method out",
        ),
        (
            ["ckpts/step-100.safetensors=0", "ckpts/step-200.safetensors=0"],
            "--coefficients are all 0",
            "give at least one checkpoint a weight",
        ),
        (
            ["run=1"],
            "--coefficients has no number for checkpoint-100",
            "name each checkpoint of the series",
        ),
    ],
)
def test_weights_that_are_refused(words: list[str], message: str, hint: str, belay: Command) -> None:
    refused(belay("plan", *words), message, hint)


def test_a_file_that_is_called_so(belay: Command) -> None:
    for seed, name in enumerate(("x", "x=1", "x=2")):
        Path(name).mkdir()
        save_file(tensors(seed), f"{name}/model.safetensors", metadata={"format": "pt"})
    told = belay("plan", "x=1", "x=2", "--order", "given", "--json").json
    assert [one["name"] for one in told["checkpoints"]] == ["x=1", "x=2"]
    assert told["rule"]["method"] == "ema"
    told = belay("plan", "x=1=0.25", "x=2=0.75", "--order", "given", "--json").json
    assert [(one["name"], one["coefficient"]) for one in told["checkpoints"]] == [("x=1", 0.25), ("x=2", 0.75)]


# ---- widths of stored EMAs


WIDTHS_HINT = "0.05 forgets fast, 0.1 is usual, 0.2 remembers half of the run"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            [],
            "--method posthoc takes the widths of the stored EMAs",
            "--widths 0.05 if they are all alike, 0.05,0.1,… in order, or a file by name",
        ),
        (["--widths", "0.05,0.1"], "--widths has 2 numbers for 4 checkpoints", ORDER_HINT),
        (["--widths", "0.3"], "--widths must lie between 1e-06 and 1/√12 = 0.2887, not 0.3", WIDTHS_HINT),
        (["--widths", "0.1,0.1,0.1,0"], "--widths must lie between 1e-06 and 1/√12 = 0.2887, not 0", WIDTHS_HINT),
        (
            ["--widths", "0.1", "--sigma-rel", "0.29"],
            "--sigma-rel must lie between 1e-06 and 1/√12 = 0.2887, not 0.29",
            WIDTHS_HINT,
        ),
        (["--widths", "nowhere"], "--widths nowhere cannot be read: no such file or directory", FILE_HINT),
    ],
)
def test_widths_that_are_refused(words: list[str], message: str, hint: str, belay: Command) -> None:
    refused(belay("plan", "ckpts", "-m", "posthoc", *words), message, hint)


def test_one_width_is_that_of_all(belay: Command) -> None:
    told = belay("plan", "ckpts", "-m", "posthoc", "--widths", "0.05", "--json").json["rule"]
    assert (told["widths"], told["times"], told["sigma_rel"]) == ([0.05] * 4, list(STEPS), 0.1)


def test_snapshots_without_steps(belay: Command) -> None:
    make_files(Path("letters"), ("a", "b"), name="{}.safetensors")
    ran = belay(
        "plan", "letters/a.safetensors", "letters/b.safetensors", "--order", "given", "-m", "posthoc", "--widths", "0.1"
    )
    refused(ran, "a.safetensors states no training step above 0, which --method posthoc takes")
    make_files(Path("initial"), (0, 100))
    ran = belay("plan", "initial", "-m", "posthoc", "--widths", "0.1")
    refused(ran, "step-0.safetensors states no training step above 0, which --method posthoc takes")


def snapshots(*names: str) -> list[str]:
    paths = make_files(Path("snapshots"), names, name="{}.safetensors")
    return [str(path) for path in paths]


def test_two_snapshots_of_one_width_and_time(belay: Command) -> None:
    given = snapshots("a-step-100", "b-step-100", "c-step-200", "d-step-300", "e-step-470")
    words = ["--order", "given", "-m", "posthoc"]
    assert belay("plan", *given, *words, "--widths", "0.05,0.1,0.05,0.1,0.05").code == 0
    message = "two of the snapshots are of one width and one time, so their shares are not known"
    for widths in ("0.05,0.05,0.1,0.05,0.1", "0.1"):
        refused(belay("plan", *given, *words, "--widths", widths), message, "leave one of them out")


def test_snapshots_that_are_nearly_alike(belay: Command) -> None:
    ran = belay(
        "plan",
        *snapshots("a-step-100", "b-step-100"),
        "--order",
        "given",
        "-m",
        "posthoc",
        "--widths",
        "0.05,0.0500001",
    )
    message = "the snapshots are too nearly alike in width and time for shares that mean something"
    refused(ran, message, "leave some of them out")


# ---- options of other rules


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ["-m", "power", "--sigma-rel", "0.2887"],
            "--sigma-rel must lie between 1e-06 and 1/√12 = 0.2887, not 0.2887",
            WIDTHS_HINT,
        ),
        (
            ["-m", "power", "--sigma-rel", "0"],
            "--sigma-rel must lie between 1e-06 and 1/√12 = 0.2887, not 0",
            WIDTHS_HINT,
        ),
        (
            ["-m", "power", "--sigma-rel", "nan"],
            "--sigma-rel must lie between 1e-06 and 1/√12 = 0.2887, not nan",
            WIDTHS_HINT,
        ),
        (
            ["-m", "uniform", "--window", "5"],
            "--window 5 is more than the 4 checkpoints of the series",
            "leave it out, for all of them",
        ),
        (["-m", "uniform", "--window", "0"], "--window must be 1 or more, not 0", None),
        (
            ["-m", "wsm", "--window", "5"],
            "--window 5 is more than the 4 checkpoints of the series",
            "leave it out, for all of them",
        ),
        (["-m", "polynomial", "--eta=-1"], "--eta must be 0 or more, not -1", None),
        (["-m", "bema", "--lag", "0.5"], "--lag must be 1 or more, not 0.5", "below 1 the EMA would overshoot"),
        (["-m", "bema", "--ema-power=-1"], "--ema-power must be 0 or more, not -1", None),
        (["-m", "bema", "--min-ema-multiplier", "2"], "--min-ema-multiplier must lie in [0, 1], not 2", None),
        *(
            ([flag, "1"], f"{flag} goes with --warmup", "--warmup diffusers, timm or ema-pytorch")
            for flag in ("--warmup-power", "--inv-gamma", "--update-after")
        ),
        (["--min-decay", "0.5"], "--min-decay goes with --warmup", "--warmup diffusers, timm or ema-pytorch"),
        (
            ["--warmup", "timm", "--decay", "0.9", "--min-decay", "0.95"],
            "--min-decay 0.95 is above the decay in the end, 0.9",
            "leave it out",
        ),
        (["--warmup", "timm", "--min-decay", "1"], "--min-decay cannot be 1", None),
        (["--warmup", "timm", "--warmup-power", "0"], "--warmup-power cannot be 0", None),
        (["--warmup", "timm", "--inv-gamma=-1"], "--inv-gamma cannot be -1", None),
        (["--warmup", "timm", "--update-after=-1"], "--update-after cannot be -1", None),
        (["--warmup", "timm", "--debias"], "--warmup is defined for the plain EMA", "leave --debias and inertia out"),
    ],
)
def test_options_that_are_refused(words: list[str], message: str, hint: str | None, belay: Command) -> None:
    refused(belay("plan", "ckpts", *words), message, hint)


def test_a_warm_up_that_is_too_long(belay: Command) -> None:
    """Steps that count tokens: the decay would grow at each of them."""
    make_files(Path("tokens"), [n * 10**10 for n in (1, 2, 3)])
    ran = belay("plan", "tokens", "--warmup", "timm", "--half-life", "50%")
    message = "the warm-up goes on for 20 B ticks, which is too long to go through"
    refused(ran, message, "--unit checkpoint, or leave --warmup out")
    assert belay("plan", "tokens", "--warmup", "timm", "--unit", "checkpoint").code == 0
    assert belay("plan", "tokens", "--warmup", "timm", "--half-life", "10steps").code == 0


def test_a_rule_that_was_not_told() -> None:
    """The numbers by name belong to a series; without one there is nothing to compute."""
    with pytest.raises(ValueError, match="told"):
        Coefficients({"a": 1.0}).coefficients([0])
    with pytest.raises(UsageError, match="--coefficients: 'x' is no number"):
        plan("ckpts", method=Coefficients(("x", 1, 2, 3)))  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [{}, {"coefficients": 1}, {"coefficients": ["1"]}, {"coefficients": [float("nan")]}])
def test_a_record_of_coefficients_that_cannot_be(told: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Coefficients.from_parameters(told)
