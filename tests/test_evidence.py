"""The evidence: its theory against eigenvalues, its methods against their definitions, its page against its results."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evidence import methods, problems, report, results, theory, training
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent

strengths = st.floats(0, 5)
shares = st.floats(0.001, 1)


@given(st.floats(0.001, 3), shares, strengths)
def test_beyond_the_largest_h_something_grows(_: float, a: float, s: float) -> None:
    def radius(h: float, implicit: bool) -> float:
        return float(np.max(np.abs(np.linalg.eigvals(theory.Mode(h, a, s, implicit).matrix))))

    for implicit in (True, False):
        largest = theory.largest_h(a, s, implicit=implicit)
        if largest > 0.01:
            assert radius(1.001 * largest, implicit) > 1
        if implicit:
            assert radius(0.999 * largest, implicit) < 1


@given(st.floats(0.001, 3), shares, strengths)
def test_the_average_has_the_roots_and_the_noise_of_an_ema(h: float, a: float, s: float) -> None:
    h0, a0 = theory.same_as_ema(h, a, s)
    roots = sorted(np.abs(np.linalg.eigvals(theory.Mode(h, a, s).matrix[:2, :2])))
    assert sorted(np.abs([1 - h0, 1 - a0])) == pytest.approx(roots, abs=1e-7)
    assert h0 * a0 == pytest.approx(a * h / (1 + s), abs=1e-12)


@given(shares, st.floats(0, 0.95))
def test_the_noise_of_an_average_in_closed_form(a: float, inertia: float) -> None:
    _, e = theory.Mode(1.0, a, inertia=inertia).variances()
    assert theory.ema_gain(a, inertia) == pytest.approx(e, rel=1e-6)


@given(st.floats(0.001, 0.9), st.floats(0, 0.99))
def test_the_answer_to_a_jump_in_closed_form(a: float, inertia: float) -> None:
    e = v = 0.0
    seen = []
    for _ in range(50):
        v = inertia * v + (1 - inertia) * a * (1 - e)
        e += v
        seen.append(e)
    assert theory.step_response(a, inertia, 50) == pytest.approx(seen, abs=1e-5)


@pytest.mark.parametrize("name", list(problems.PROBLEMS))
def test_the_networks_of_a_problem_do_not_touch_each_other(name: str) -> None:
    problem = problems.PROBLEMS[name]
    three, one = problem.begin(3), problem.begin(1)
    (inputs, labels), (first, wanted) = next(problem.batches(3)), next(problem.batches(1))
    assert torch.equal(inputs[:1], first)
    assert torch.equal(labels[:1], wanted)
    together = problem.forward(three, inputs)
    assert torch.allclose(together[:1], problem.forward(one, first), atol=1e-5)
    spoiled = {key: torch.cat([p[:1], p[1:] * float("nan")]) for key, p in three.items()}
    assert torch.allclose(problem.forward(spoiled, inputs)[:1], together[:1], atol=1e-5)


def _small(monkeypatch: pytest.MonkeyPatch, steps: int = 40) -> None:
    changed = {name: _with(problem, steps=steps, seeds=2) for name, problem in problems.PROBLEMS.items()}
    monkeypatch.setattr(training, "PROBLEMS", changed)


def _with(problem: problems.Problem, **changes: Any) -> problems.Problem:
    return problems.Problem(**{**problem.__dict__, **changes})


@pytest.mark.parametrize(("optimizer", "method"), sorted(methods.METHODS))
def test_a_method_trains(monkeypatch: pytest.MonkeyPatch, optimizer: str, method: str) -> None:
    _small(monkeypatch)
    found = training.train(training.Job("digits", optimizer, method, 0.125 if optimizer == "SGD" else 0.004))
    for judged in found["weights"].values():
        assert all(0 < loss < 2.4 for loss in judged["test loss"])
    assert len(found["along"]["test"]) == training.CHECKS


def test_a_job_says_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _small(monkeypatch)
    job = training.Job("noisy", "AdamW", "BELAY, stiffness 4", 0.004)
    assert training.train(job) == training.train(job)


def _run(
    make: Callable[[methods.Run], methods.Method], steps: int, optimizer: str
) -> tuple[methods.Method, list[float]]:
    """One weight, pulled to zero by a loss of half its square. The method, and where the weight was after each step."""
    x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    stepping = training.OPTIMIZERS[optimizer]([("x", x)], lr=0.1)
    method = make(methods.Run({"x": x}, stepping, steps, epoch=2))
    seen = []
    for step in range(1, steps + 1):
        x.grad = x.detach().clone()
        with torch.no_grad():
            method.before_step(step)
            stepping.step()
            method.after_step(step)
        seen.append(float(x.detach()))
    return method, seen


def test_lookahead_is_that_of_its_paper() -> None:
    method, seen = _run(methods.Lookahead, 10, "SGD")
    slow = 1.0
    for _ in range(2):
        slow += 0.5 * (slow * 0.9**5 - slow)
    assert seen[-1] == pytest.approx(slow, abs=1e-15)
    assert float(method.weights()["average"]["x"]) == seen[-1]


def test_schedule_free_is_that_of_its_paper() -> None:
    method, _ = _run(methods.ScheduleFree, 10, "SGD")
    z = x = 1.0
    for t in range(1, 11):
        y = 0.1 * z + 0.9 * x
        z -= 0.1 * y
        x = (1 - 1 / t) * x + z / t
    assert float(method.weights()["average"]["x"]) == pytest.approx(x, abs=1e-15)


def test_pace_is_that_of_its_authors() -> None:
    method, seen = _run(methods.Pace, 10, "AdamW")
    plain = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    adam = torch.optim.AdamW([plain], lr=0.1)
    ema = 1.0
    for t in range(10):
        before = float(plain.detach())
        plain.grad = plain.detach().clone()
        adam.step()
        v = float(adam.state[plain]["exp_avg_sq"]) / (1 - 0.999 ** (t + 1))
        d = max((1 + t) ** -0.2, 1e-4)
        plain.data += min(0.1 * 0.15 * d / (v**0.5 + 1e-8), 1.0) * (ema - before)
        ema = (1 - d) * ema + d * float(plain.detach())
    assert seen[-1] == pytest.approx(float(plain.detach()), abs=1e-14)
    assert float(method.weights()["average"]["x"]) == pytest.approx(ema, abs=1e-14)


def test_switch_ema_goes_on_from_the_average() -> None:
    _, seen = _run(methods.SwitchEma, 3, "SGD")
    a = 1 - 2 ** (-1 / (0.03 * 3))
    e = 0.9  # the first average is the weights
    e += max(a, 9 / 10) * (0.81 - e)
    assert seen == pytest.approx([0.9, e, 0.9 * e], abs=1e-12)


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert report.with_tables(text) == text
    tables = report.tables()
    named = [line.split()[2:-1] for line in text.splitlines() if line.startswith("<!-- table:")]
    assert {" ".join(words) for words in named} <= set(tables)


def test_every_comparison_is_there() -> None:
    """Of each problem and optimizer, every method at every rate."""
    found = set(results.read("training"))
    assert found == {job.name for job in training.jobs()}
    pages = "".join(page.read_text(encoding="utf-8") for page in report.PAGES)
    assert all(f"<!-- table: {name} -->" in pages for name in report.tables())


def test_the_pictures_are_there() -> None:
    pages = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    drawn = {path.stem for path in (ROOT / "docs/evidence").iterdir()}
    assert drawn == {"along", "mechanics", "rates"}
    assert all(f"(evidence/{name}.svg)" in pages for name in drawn)


def test_names_choose_a_part() -> None:
    chosen = training.jobs("noisy AdamW 0.032 PACE")
    assert [job.name for job in chosen] == ["noisy AdamW 0.032 PACE"]
    assert all(a.name != b.name for a, b in itertools.combinations(training.jobs("digits SGD"), 2))
