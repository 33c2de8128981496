"""`belay sweep` from end to end, with real evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from belay_cli import BelayError, Best, Coefficients, Ema, Uniform, average, sweep
from belay_cli.cli import run
from belay_cli.record import parse
from tests.sweeping.conftest import command, log

pytestmark = pytest.mark.usefixtures("series")

GRID = ["-m", "ema,uniform,wsm,power,bema,polynomial,belay", "--half-life", "5%,20%", "--window", "3,6"]


def swept(*more: str, output: str = "sweep", evaluate: str | None = None) -> int:
    judged = ["--eval", evaluate or command(), "--metric", "loss", "--minimize"]
    return run(["sweep", "run", "-o", output, *judged, *more])


def result(output: str = "sweep") -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Path(output, "sweep.json").read_text())
    return told


def table(told: Mapping[str, Any]) -> list[Any]:
    return [(one["name"], one["score"], one["standard_error"], one["failure"]) for one in told["candidates"]]


def test_the_best_is_found_and_written_as_average_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert swept() == 0
    shown = capsys.readouterr()
    told = result()
    scores = [one["score"] for one in told["candidates"]]
    assert scores == sorted(scores)
    assert told["best"] == told["candidates"][0]["name"]
    assert shown.out.splitlines()[0].split() == ["candidate", "lag,", "steps", "eff.", "number", "loss", "±"]
    assert shown.out.splitlines()[1].endswith("best")
    assert "last checkpoint" in shown.out
    assert "uniform  " in shown.out
    assert "note: 22 candidates of run; 22 at a time: 1 read of 19.2 kB, 35.4 kB on disk\n" in shown.err
    rule = told["candidates"][0]["rule"]
    average("run", "alone.safetensors", method=_rule_of(rule))
    alone, best = Path("alone.safetensors").read_bytes(), Path("sweep/best.safetensors").read_bytes()
    assert alone[-1600:] == best[-1600:]
    header = json.loads(best[8 : 8 + int.from_bytes(best[:8], "little")])["__metadata__"]
    chosen = json.loads(header["belay.chosen"])
    assert chosen["metric"] == "loss"
    assert chosen["score"] == scores[0]
    assert chosen["candidates"] == len(scores)
    assert run(["verify", "sweep/best.safetensors", "--checkpoints", "run"]) == 0
    assert not Path("sweep/candidates").exists()


def _rule_of(told: Mapping[str, Any]) -> Any:
    from belay_cli.rules import recorded

    return recorded(told["method"], {name: value for name, value in told.items() if name not in ("method", "unit")})


@pytest.mark.parametrize("at_once", [1, 2, 5, 64])
def test_candidates_are_those_of_separate_runs_however_many_are_made_at_once(at_once: int) -> None:
    assert swept(*GRID, "--keep", "all", "--at-once", str(at_once)) == 0
    told = result()
    assert len(told["candidates"]) == 19
    for one in told["candidates"]:
        (path,) = [p for p in Path("sweep/candidates").iterdir() if p.stem == _slug(one["name"])]
        average("run", "alone.safetensors", method=_rule_of(one["rule"]), overwrite=True)
        assert path.read_bytes() == Path("alone.safetensors").read_bytes(), one["name"]


def _slug(name: str) -> str:
    from belay_cli.sweeping.store import slug

    return slug(name)


def test_nothing_is_evaluated_twice_and_a_changed_grid_adds(capsys: pytest.CaptureFixture[str]) -> None:
    assert swept("-m", "ema", "--half-life", "5%,10%") == 0
    first = table(result())
    assert len(log()) == 4
    assert swept("-m", "ema", "--half-life", "5%,10%") == 0
    assert len(log()) == 4
    assert table(result()) == first
    assert "4 candidates of run, 4 of them evaluated before" in capsys.readouterr().err
    assert swept("-m", "ema", "--half-life", "5%,10%,20%,30%") == 0
    assert len(log()) == 6
    assert len(set(log())) == 6
    assert [row for row in table(result()) if row in first] == first


def test_other_evaluations_are_run_anew() -> None:
    assert swept("-m", "ema") == 0
    count = len(log())
    Path("other.py").write_text(Path("evaluate.py").read_text())
    assert swept("-m", "ema", evaluate=command("other.py")) == 0
    assert len(log()) == 2 * count


def test_another_series_is_not_mixed_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert swept("-m", "ema") == 0
    Path("run/step-100.safetensors").unlink()
    assert swept("-m", "ema") == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "belay: sweep: holds the sweep of other checkpoints, or of another --dtype or policy",
        "       say --overwrite, or write somewhere else: -o",
    ]
    assert swept("-m", "ema", "--dtype", "float16", "--overwrite") == 0


def test_a_directory_of_somebody_elses_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep").mkdir()
    Path("sweep/notes.txt").write_text("mine")
    assert swept() == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "belay: sweep: exists, and is no sweep",
        "       write somewhere else: -o",
    ]


@pytest.mark.parametrize("keep", ["best", "all", "none"])
def test_what_is_kept(keep: str) -> None:
    assert swept("-m", "ema", "--half-life", "5%,10%", "--keep", keep) == 0
    candidates = Path("sweep/candidates")
    assert len(list(candidates.iterdir()) if candidates.exists() else []) == (4 if keep == "all" else 0)
    assert Path("sweep/best.safetensors").exists() is (keep != "none")


def test_without_an_evaluation_all_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "run", "-o", "sweep"]) == 2
    assert "without --eval nothing can be chosen" in capsys.readouterr().err
    assert run(["sweep", "run", "-o", "sweep", "-m", "ema", "--keep", "all"]) == 0
    assert capsys.readouterr().out == "7 averages in sweep/candidates\n"
    assert len(list(Path("sweep/candidates").iterdir())) == 7


def test_refining_halves_the_grid_around_the_best() -> None:
    assert swept("-m", "ema", "--half-life", "2%,8%,32%") == 0
    coarse = result()
    assert swept("-m", "ema", "--half-life", "2%,8%,32%", "--refine", "2") == 0
    fine = result()
    assert len(fine["candidates"]) > len(coarse["candidates"]) + 2
    assert fine["candidates"][0]["score"] <= coarse["candidates"][0]["score"]
    assert len(log()) == len(set(log())) == len(fine["candidates"])


def test_the_winner_and_the_last_are_confirmed_by_another_command(capsys: pytest.CaptureFixture[str]) -> None:
    script = Path("evaluate.py").read_text().replace("sum(x * x", "1 + sum(x * x")
    Path("held_out.py").write_text(script)
    assert swept("-m", "ema", "--confirm", command("held_out.py")) == 0
    told = result()
    last = next(one["score"] for one in told["candidates"] if one["name"] == "last checkpoint")
    assert told["confirmed"]["best"]["score"] == pytest.approx(told["candidates"][0]["score"] + 1)
    assert told["confirmed"]["last"]["score"] == pytest.approx(last + 1)
    assert "confirmed on other data: " in capsys.readouterr().out
    assert log().count("last-checkpoint.safetensors") == 2
    assert not Path("sweep/candidates").exists()


def test_jobs_and_repeats() -> None:
    assert swept("-m", "ema", "--jobs", "4", "--repeat", "3") == 0
    assert len(log()) == 3 * 7
    assert all(one["standard_error"] == 0.001 for one in result()["candidates"])


def test_failures_are_recorded_and_end_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("evaluate.sh").write_text(
        'case "$1" in *5pct*) echo "no such thing" >&2; exit 3;; *10pct*) echo "{\\"loss\\": NaN}";; *2pct*) ;;'
        ' *40pct*) sleep 60;; *20pct*) mkdir -p "$2"; printf "{\\"results" > "$2/results_1.json";; *) echo 0.5;; esac\n'
    )
    told = ["--eval", "sh evaluate.sh {model} {out}", "--minimize", "--time-limit", "3s", "--jobs", "4"]
    assert run(["sweep", "run", "-o", "sweep", "-m", "ema", *told]) == 0
    failures = {one["name"]: one["failure"] for one in result()["candidates"] if one["failure"]}
    assert failures == {
        "ema --half-life 2%": "printed nothing, and wrote no results_*.json below its {out}",
        "ema --half-life 5%": "exit code 3: no such thing",
        "ema --half-life 10%": "has no score",
        "ema --half-life 20%": "results_1.json is not valid JSON",
        "ema --half-life 40%": "took longer than its --time-limit",
    }
    assert "failed: ema --half-life 5% exit code 3: no such thing" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("sweep/evaluations").rglob("ended")}
    assert run(["sweep", "run", "-o", "sweep", "-m", "ema", *told]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    Path("evaluate.sh").write_text("echo 0.25\n")
    assert run(["sweep", "run", "-o", "sweep", "-m", "ema", *told, "--retry"]) == 0
    assert [one["score"] for one in result()["candidates"]] == [0.25] * 5 + [0.5] * 2


def test_if_all_fail_it_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert swept("-m", "ema", evaluate="echo {model}; exit 9") == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "belay: no evaluation gave a score",
        "       what they said is in sweep/evaluations",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eval", "python evaluate.py"], "--eval never says {model}, which stands for a candidate"),
        (["--metric", "a", "b"], "--metric goes with --eval"),
        (["--eval", "x {model}", "--maximize", "--minimize"], "--maximize and --minimize contradict each other"),
        (["--eval", "x {model}", "--jobs", "0"], "--jobs must be 1 or more, not 0"),
        (["--eval", "x {model}", "--time-limit", "soon"], "--time-limit soon is no time"),
        (["--eval", "x {model}", "--most", "5"], "the grid has 23 candidates, and each is evaluated"),
        (["--eval", "x {model}", "-m", "posthoc"], "--method posthoc takes the widths of the stored EMAs"),
        (["--eval", "x {model}", "--window", "40"], "--window 40 is more than the 12 checkpoints of the series"),
        (
            ["--eval", "x {model}", "--max-memory", "1kB"],
            "--max-memory is too small: one thread takes 0.5 MB for 1 output",
        ),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "run", "-o", "sweep", *words]) == 2
    assert message in capsys.readouterr().err


def test_ten_thousand_candidates_are_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    many = ",".join(f"{n / 100}%" for n in range(1, 10_001))
    assert swept("-m", "ema", "--half-life", many) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "belay: the grid has 10002 candidates, and each is evaluated",
        "       a smaller one, or --most 10002 if that is meant",
    ]


def test_no_room_for_one_candidate_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert swept() == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "belay: sweep: has no room: 1 candidate of 1.05 MB, and 900 bytes are free",
        "       make room, write elsewhere: -o",
    ]


def test_the_record_and_the_card_of_the_winner_say_how_it_was_chosen() -> None:
    from belay_cli.publish.card import card

    assert swept("-m", "ema") == 0
    best = Path("sweep/best.safetensors").read_bytes()
    told = json.loads(best[8 : 8 + int.from_bytes(best[:8], "little")])["__metadata__"]
    values = {
        name.removeprefix("belay."): value
        if name.removeprefix("belay.") in ("version", "command", "dtype", "accumulation")
        else json.loads(value)
        for name, value in told.items()
        if name.startswith("belay.") and name != "belay.header"
    }
    record = parse(values, "best")
    assert record.chosen is not None
    text = card(record)
    assert "It was chosen by an evaluation, as the best of 7 candidates: `loss` " in text


# ---- from Python


def test_a_function_of_state_dicts() -> None:
    seen = []

    def loss(state: Mapping[str, Any]) -> float:
        seen.append(state["w"].dtype)
        return float(state["w"].square().mean())

    done = sweep("run", [Ema("5%"), Ema("20%"), Uniform(4)], evaluate=loss, maximize=False)
    assert len(seen) == 5
    assert done.best is not None
    assert done.outcome.ranked[0].score is not None
    assert str(done).splitlines()[0].split()[:1] == ["candidate"]
    assert not Path("sweep").exists()
    assert sweep("run", evaluate=loss, maximize=False).to_json()["evaluated"] == 22


def test_what_a_function_raises_is_a_failure_of_that_candidate() -> None:
    calls = iter([RuntimeError("no"), math.nan, 0.5, (0.25, 0.1)])

    def loss(state: Mapping[str, Any]) -> Any:
        one = next(calls)
        if isinstance(one, Exception):
            raise one
        return one

    done = sweep("run", [Ema("5%"), Ema("20%")], evaluate=loss, maximize=True)
    assert [one.failure for one in done.outcome.failed] == ["raised RuntimeError: no", "gave nan"]
    assert [one.score for one in done.outcome.ranked] == [(0.5, None), (0.25, 0.1)]


def test_one_sweep_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    from belay_cli.sweeping.store import Store

    with Store(Path("sweep"), files=True).opened("", overwrite=False):
        assert swept() == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "belay: sweep: another sweep is at work in it",
        "       wait for it",
    ]


def test_a_series_of_one_has_one_candidate() -> None:
    words = ["--eval", command(), "--metric", "loss", "--minimize"]
    assert run(["sweep", "run/step-100.safetensors", "-o", "sweep", *words]) == 0
    assert [one["name"] for one in result()["candidates"]] == ["last checkpoint"]


def test_a_sweep_beside_the_checkpoints_is_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run/evaluate.py").write_text(Path("evaluate.py").read_text())
    monkeypatch.chdir("run")
    words = ["--eval", command(), "--metric", "loss", "--minimize", "-m", "ema"]
    assert run(["sweep", ".", *words]) == 0
    first = table(result("belay-sweep"))
    assert run(["sweep", ".", *words]) == 0
    assert table(result("belay-sweep")) == first


def test_no_token_is_stored() -> None:
    assert swept("-m", "ema", evaluate=f"HF_TOKEN=hf_abcdefghijklmnop {command()}") == 0
    assert not [path for path in Path("sweep").rglob("*") if path.is_file() and b"abcdefgh" in path.read_bytes()]


def test_a_function_that_never_works_is_an_error() -> None:
    with pytest.raises(BelayError) as caught:
        sweep("run", ["ema"], evaluate=lambda state: state["no such tensor"], maximize=True)
    assert (caught.value.message, caught.value.hint) == (
        "no evaluation gave a score",
        "last checkpoint raised KeyError: 'no such tensor'",
    )


def test_a_file_of_coefficients_that_has_changed_is_another_candidate() -> None:
    shares = {f"step-{step}.safetensors": 1.0 if step == 1200 else 0.0 for step in range(100, 1300, 100)}
    Path("mine.json").write_text(json.dumps({**shares, "step-1100.safetensors": 0.5, "step-1200.safetensors": 0.5}))
    assert swept("-m", "coefficients", "--coefficients", "mine.json", "--keep", "all") == 0
    Path("mine.json").write_text(json.dumps({**shares, "step-900.safetensors": 0.5, "step-1200.safetensors": 0.5}))
    assert swept("-m", "coefficients", "--coefficients", "mine.json", "--keep", "all") == 0
    assert len(log()) == 4
    assert len(list(Path("sweep/candidates").iterdir())) == 4


def test_what_the_winner_is_warned_of_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    shares = ",".join(["0"] * 10 + ["0.01", "0.01"])  # the least weights have the least loss
    assert swept("-m", "coefficients", "--coefficients", shares) == 0
    said = "the coefficients sum to 0.02, and nothing is normalised"
    assert said in capsys.readouterr().err
    assert said in result()["warnings"][-1]


def test_other_weights_of_the_same_files_are_another_series(capsys: pytest.CaptureFixture[str]) -> None:
    for number, path in enumerate(sorted(Path("run").iterdir(), key=lambda path: int(path.stem[5:]))):
        path.unlink()
        both = {name: {"w": torch.full((400,), float(number * sign))} for name, sign in (("model", 1), ("other", -2))}
        torch.save(both, path.with_suffix(".pt"))
    told = ["--eval", "cksum {model} | cut -d' ' -f1", "--minimize", "-m", "uniform", "--window", "2"]
    assert run(["sweep", "run", "-o", "sweep", *told, "--state-key", "model"]) == 0
    assert run(["sweep", "run", "-o", "sweep", *told, "--state-key", "other"]) == 1
    assert "holds the sweep of other checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["echo 1e308", "printf 1; head -c 400 /dev/zero | tr '\\0' 0"])
def test_numbers_that_no_score_can_be_are_failures(line: str) -> None:
    assert (
        run(
            [
                "sweep",
                "run",
                "-o",
                "sweep",
                "-m",
                "uniform",
                "--repeat",
                "2",
                "--minimize",
                "--eval",
                f"{line} # {{model}}",
            ]
        )
        == 1
    )


@pytest.mark.parametrize("told", [None, "x", (1,)])
def test_what_is_no_score_is_a_failure(told: Any) -> None:
    answers = iter([told])
    done = sweep("run", ["ema"], evaluate=lambda state: next(answers, 0.5), maximize=True)
    (failed,) = done.outcome.failed
    assert failed.failure.startswith("raised ")
    assert done.best is not None


def test_a_function_may_change_what_it_is_given() -> None:
    def loss(state: Mapping[str, Any]) -> float:
        found = float(state["w"].square().mean())
        state["w"].zero_()
        return found

    twice = sweep("run", ["ema"], evaluate=loss, maximize=False, repeat=2)
    once = sweep("run", ["ema"], evaluate=loss, maximize=False)
    assert [one.score for one in once.outcome.ranked] == [
        (one.score[0], None) for one in twice.outcome.ranked if one.score
    ]


def test_keep_none_leaves_no_earlier_winner() -> None:
    assert swept("-m", "ema") == 0
    assert swept("-m", "ema", "--keep", "none") == 0
    assert not Path("sweep/best.safetensors").exists()


def test_what_is_there_already_is_not_made_again() -> None:
    Path("held_out.py").write_text(Path("evaluate.py").read_text())
    told = ["-m", "ema", "--confirm", command("held_out.py")]
    assert swept(*told) == 0
    before, lines = Path("sweep/best.safetensors").stat().st_mtime_ns, log()
    assert swept(*told) == 0
    assert (Path("sweep/best.safetensors").stat().st_mtime_ns, log()) == (before, lines)
    assert swept("-m", "ema") == 0  # without what confirms it, the record says less
    assert Path("sweep/best.safetensors").stat().st_mtime_ns > before


def test_the_options_of_best_have_their_names_in_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert swept("-m", "best", "--best", "3") == 2
    assert "       --best-metric eval_loss, as the run recorded it, or --scores FILE\n" in capsys.readouterr().err
    scores = ",".join(map(str, range(12)))
    assert swept("-m", "best", "--best", "3", "--scores", scores) == 2
    assert "       --best-mode min or --best-mode max\n" in capsys.readouterr().err
    assert swept("-m", "best", "--best", "3", "--scores", scores, "--best-mode", "max") == 0
    assert "best --best 3" in [one["name"][:13] for one in result()["candidates"]]


def test_rules_by_name_from_python() -> None:
    names = {f"step-{step}.safetensors": 1 / 12 for step in range(100, 1300, 100)}
    many = [Coefficients(tuple(k / 100 + 0.01 * i for i in range(12))) for k in (1, 2)]
    best = Best(3, scores=tuple(map(float, range(12))), mode="min")
    done = sweep("run", [Coefficients(names), best, *many], evaluate=lambda state: 1.0, maximize=True)
    labels = [one["name"] for one in done.to_json()["candidates"]]
    assert len(set(labels)) == 5  # equal shares of all by name are the uniform average
    assert {one["rule"]["method"] for one in done.to_json()["candidates"]} == {"uniform", "best", "coefficients"}
