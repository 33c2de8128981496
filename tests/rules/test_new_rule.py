"""What a new rule takes: one class, and its line in the registry. Everything else follows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from belay_cli import averages, rules, verify
from belay_cli.cli import run
from belay_cli.options import Option
from belay_cli.publish.card import card
from belay_cli.record import parse
from belay_cli.rules import Rule
from tests.conftest import make_run


@dataclass(frozen=True)
class Newest(Rule):
    """The mean of the newest checkpoints."""

    newest: Annotated[int, Option("newest: of so many checkpoints.", "N")] = 2
    method, title, phrase = "newest", "mean of the newest", "an equal mean of the newest checkpoints"

    def coefficients(self, ticks: Sequence[int]) -> npt.NDArray[Any]:
        return np.array([(i >= len(ticks) - self.newest) / self.newest for i in range(len(ticks))])

    def replay(self, ticks: Sequence[int], weights: Iterable[npt.NDArray[Any]]) -> Any:
        return sum(w for i, w in enumerate(weights) if i >= len(ticks) - self.newest) / self.newest


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(rules.METHODS, "newest", Newest)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")


def test_it_averages_and_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["average", "run", "-o", "out", "-m", "newest", "--newest", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rule"] == {"method": "newest", "unit": "step", "newest": 3}
    written = load_file("out/model.safetensors")["layer.weight"].double()
    rows = [load_file(f"run/checkpoint-{s}/model.safetensors")["layer.weight"].double() for s in steps()[-3:]]
    assert torch.allclose(written, torch.stack(rows).mean(0), atol=1e-6)
    found = verify("out")
    assert found.verified, str(found)
    assert run(["verify", "out"]) == 0


def steps() -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in Path("run").iterdir())


def test_plan_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "run", "--method", "newest", "--newest", "1"]) == 0
    shown = capsys.readouterr()
    assert "\nmean of the newest, newest 1\n" in shown.out
    assert "the average is nearly checkpoint-" in shown.err


@pytest.mark.parametrize("why", [None, "the last of them is asked for"])
def test_its_words_for_the_last_replace_the_general_ones_alone(
    why: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Newest, "leans_on_last", lambda self, ticks, unit, coefficients: why)
    monkeypatch.setattr(Newest, "warnings", lambda self, ticks, unit, coefficients: iter(["it is new"]))
    assert run(["plan", "run", "--method", "newest", "--newest", "1"]) == 0
    said = capsys.readouterr().err.splitlines()
    general = "the average is nearly checkpoint-400 alone (100.0%)"
    assert said[0] == f"warning: {why or general + '; ' + Newest().mend('step', leans_on_first=False)}"
    assert said[1:] == ["warning: it is new"]


@pytest.mark.parametrize("method", ["ema", "belay"])
def test_other_methods_do_not_see_its_options(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "run", "-m", method]) == 0
    assert "newest" not in capsys.readouterr().out


def test_two_declarations_of_one_option_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Other(Newest):
        newest: Annotated[int, Option("another meaning", "N")] = 3

    monkeypatch.setitem(rules.METHODS, "other", Other)
    with pytest.raises(TypeError, match="two methods declare --newest in two ways"):
        rules.options()


def test_its_options_belong_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "run", "-m", "ema", "--newest", "3"]) == 2
    assert capsys.readouterr().err == (
        "belay: --method ema takes no --newest\n       --newest belongs to --method newest\n"
    )


def test_an_option_that_is_called_like_it_stands_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "run", "--newest", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rule"]["method"] == "newest"


def test_the_help_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["average", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "ema (default), belay, " in shown
    assert " newest. What each" in re.sub(r"[\s│]+", " ", shown)
    assert "newest: of so many checkpoints." in re.sub(r"[\s│]+", " ", shown)


def test_the_record_repeats_it_and_the_card_says_it() -> None:
    assert run(["average", "run", "-o", "out", "-m", "newest", "-q"]) == 0
    record = parse(json.loads(Path("out/belay.json").read_text()), "belay.json")
    assert record.rule == Newest(2)
    assert record.command.startswith("belay average --method newest --unit step checkpoint-")
    assert "one training run, steps 100 to 400: an equal mean of the newest checkpoints." in card(record)


def test_several_rules_in_memory() -> None:
    found = {rule.method: state for rule, state in averages("run", ["ema", Newest(1)], at_once=2)}
    assert torch.equal(found["newest"]["scale"], load_file(f"run/checkpoint-{steps()[-1]}/model.safetensors")["scale"])
    assert set(found) == {"ema", "newest"}


def test_the_shell_completes_it(tmp_path: Path) -> None:
    program = tmp_path / "with_rule.py"
    program.write_text(
        "from belay_cli import rules; from belay_cli.cli import main\n"
        "class Newest(rules.Ema): method = 'newest'\n"
        "rules.METHODS['newest'] = Newest\nmain()\n"
    )
    environment = {**os.environ, "_BELAY_COMPLETE": "complete_bash", "COMP_WORDS": "belay plan -m n", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["newest"]
