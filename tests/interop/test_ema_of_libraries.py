"""docs/ema-of-libraries.md, line by line: a library's own average against what belay makes of the checkpoints.

Each row runs twice. A network is trained in float32, for the difference that a user would see; and a float64 vector is
set to one unit vector after the other, so that the library's average is the vector of its coefficients.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import Ran
from tests.interop.libraries import UPDATES, Row, follow, names_of_library, saved_weights, tables

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

PAGE = (Path(__file__).parents[2] / "docs/ema-of-libraries.md").read_text()
TABLES = tables(PAGE)
SAME = [Row(*cells) for cells in TABLES["equal within"]]
BUFFERS = TABLES["integers"]
WARM_UPS = TABLES["decay of update `n`"]

Belay = Callable[..., Ran]


def averaged_by(belay: Belay, command: str) -> dict[str, Tensor]:
    """What a command of the page writes."""
    program, *arguments = shlex.split(command)
    assert program == "belay"
    ran = belay(*arguments)
    assert ran.code == 0, ran.err
    return load_file("belay-average.safetensors")


def coefficients_by(belay: Belay, *options: str) -> Tensor:
    """The coefficients of belay for the unit vectors in `ckpts`. [checkpoints]"""
    return averaged_by(belay, shlex.join(["belay", "average", "ckpts", "--overwrite", *options]))["weight"]


def row_of(made: str, updated: str) -> Row:
    return next(row for row in SAME if (row.made, row.updated) == (made, updated))


# ---- the table


@pytest.mark.parametrize("row", SAME, ids=str)
def test_the_average_of_a_trained_network(row: Row, belay: Belay) -> None:
    theirs = follow(row, "trained")
    ours = averaged_by(belay, row.command)
    floating = {name for name, tensor in ours.items() if tensor.is_floating_point()}
    # diffusers is given parameters, and holds nothing else
    assert floating - set(theirs) == ({"1.running_mean", "1.running_var"} if row.library == "diffusers" else set())
    largest = saved_weights()
    for name in floating & set(theirs):
        scale = torch.stack([weights[name] for weights in largest]).abs().amax(0).double()
        difference = (ours[name].double() - theirs[name].double()).abs()
        assert (difference <= float(row.within) * scale).all(), (name, float((difference / scale).max()))


@pytest.mark.parametrize("row", SAME, ids=str)
def test_the_coefficients(row: Row, belay: Belay) -> None:
    theirs = follow(row, "units")["weight"]
    ours = averaged_by(belay, row.command)["weight"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7 if "--warmup ema-pytorch" in row.command else 1e-12)
    assert abs(float(ours.sum()) - 1) < 1e-12


def test_every_command_of_the_page_is_in_the_table() -> None:
    commands = re.findall(r"belay average \w+ [^`|\n]*", PAGE)
    assert sorted(command.strip() for command in commands) == sorted(row.command for row in SAME)


# ---- buffers


@pytest.mark.parametrize("cells", BUFFERS, ids=lambda cells: cells[1])
def test_buffers(cells: list[str]) -> None:
    library, made, statistics, integers = cells
    updated = next(row.updated for row in SAME if (row.library, row.made) == (library, made))
    theirs = follow(Row(library, made, updated, "", ""), "trained")
    series = saved_weights()
    (mean,) = [name for name in series[0] if name.endswith("running_mean")]
    count = mean.replace("running_mean", "num_batches_tracked")
    assert what_became_of(theirs.get(mean), [weights[mean] for weights in series]) == statistics
    assert what_became_of(theirs.get(count), [weights[count] for weights in series]) == integers


def what_became_of(tensor: Tensor | None, series: list[Tensor]) -> str:
    """In the words of the page."""
    if tensor is None:
        return "not held"
    if torch.equal(tensor, series[-1]):
        return "last"
    if torch.equal(tensor, series[0]):
        return "initial"
    if not tensor.is_floating_point():
        return "truncated" if int(tensor) in truncated_averages([int(number) for number in series]) else "unknown"
    lowest, highest = torch.stack(series).amin(0), torch.stack(series).amax(0)
    return "averaged" if ((lowest <= tensor) & (tensor <= highest)).all() else "unknown"


def truncated_averages(numbers: list[int]) -> set[int]:
    """The EMA of decay 0.9 that drops the fraction after each update, from the first number and from the second."""
    found = set()
    for first in (0, 1):
        e = numbers[first]
        for number in numbers[first + 1 :]:
            e = int(0.9 * e + (1 - 0.9) * number)
        found.add(e)
    return found


# ---- warm-ups


@pytest.mark.parametrize("cells", WARM_UPS, ids=lambda cells: cells[1])
def test_warm_ups(cells: list[str]) -> None:
    library, made, updated, decay = cells
    c = follow(Row(library, made, updated, "", ""), "units")["weight"]
    # c_j = (1 − d_j) d_{j+1} ⋯ d_T: the newest gives d_T, then each older one the next.
    found, later = [], 1.0
    for j in range(UPDATES, 1, -1):
        found.append(1 - float(c[j]) / later)
        later *= found[-1]
    expected = [float(eval(decay, {"n": n})) for n in range(UPDATES, 1, -1)]
    assert found == pytest.approx(expected, abs=1e-6)  # ema-pytorch computes it in float32
    assert eval(decay, {"n": 1}) == 0
    assert float(c[0]) == 0
    assert max(found) - min(found) > 0.1  # not the constant decay of an EMA


OPTIONS = {
    "diffusers": (
        "EMAModel(model.parameters(), 0.6, use_ema_warmup=True, power={}, inv_gamma={}, min_decay={}, "
        "update_after_step={})",
        "ema.step(model.parameters())",
    ),
    "timm": (
        "ModelEmaV3(model, 0.6, use_warmup=True, warmup_power={}, warmup_gamma={}, min_decay={}, update_after_step={})",
        "ema.update(model, step=update)",
    ),
    "ema-pytorch": (
        "EMA(model, beta=0.6, power={}, inv_gamma={}, min_value={}, update_after_step={}, update_every=1)",
        "ema.update()",
    ),
}


@pytest.mark.parametrize("library", OPTIONS)
def test_options_of_warm_ups(library: str, belay: Belay) -> None:
    columns = TABLES["belay"]
    assert [cells[-1] for cells in columns] == ["--warmup-power", "--inv-gamma", "--min-decay", "--update-after"]
    values = (0.75, 3.0, 0.3, 2)  # the least decay and the last one are both reached within the twelve updates
    made, updated = OPTIONS[library]
    taken = re.findall(r"(\w+)=\{\}", made)
    assert taken == [cells[list(OPTIONS).index(library)] for cells in columns]
    c = follow(Row(library, made.format(*values), updated, "", ""), "units")["weight"]
    typed = [word for cells, value in zip(columns, values, strict=True) for word in (cells[-1], str(value))]
    ours = coefficients_by(
        belay, "--unit", "checkpoint", "--from-step", "1", "--decay", "0.6", "--warmup", library, *typed
    )
    torch.testing.assert_close(ours, c, rtol=0, atol=1e-7 if library == "ema-pytorch" else 1e-12)


def test_the_decay_in_the_end_is_that_of_all_three() -> None:
    said("0.9999 in all three unless said otherwise")
    model = torch.nn.Linear(1, 1)
    assert names_of_library("diffusers")["EMAModel"](model.parameters()).decay == 0.9999
    assert names_of_library("timm")["ModelEmaV3"](model).decay == 0.9999
    assert names_of_library("ema-pytorch")["EMA"](model).beta == 0.9999


# ---- what the text says


def said(text: str) -> None:
    assert text in re.sub(r"\s+", " ", PAGE), text


def test_initial_weights_that_were_not_saved(belay: Belay) -> None:
    said("after twelve updates at decay 0.9 they still weigh 28.2 %")
    c = follow(row_of("ModelEmaV2(model, decay=0.9)", "ema.update(model)"), "units")["weight"]
    assert f"{float(c[0]):.1%}" == "28.2%"
    said("`belay` gives their share to the first checkpoint")
    Path("ckpts/step-0.safetensors").unlink()
    ours = coefficients_by(belay, "--unit", "checkpoint", "--decay", "0.9")
    torch.testing.assert_close(ours[1], c[0] + c[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[2:], c[2:], rtol=0, atol=1e-12)


def test_timm_with_the_training_step() -> None:
    said("`step=50`, the training step, is past that already, and the initial weights stay in")
    c = follow(Row("timm", "ModelEmaV3(model, decay=0.9)", "ema.update(model, step=50 * update)", "", ""), "units")
    assert float(c["weight"][0]) == pytest.approx(0.9**UPDATES, abs=1e-12)


@pytest.mark.parametrize(
    ("library", "made", "updated"),
    [
        ("timm", "ModelEmaV3(model, decay=0.9, update_after_step=2)", "ema.update(model, step=update)"),
        ("diffusers", "EMAModel(model.parameters(), update_after_step=2)", "ema.step(model.parameters())"),
        ("ema-pytorch", "EMA(model, update_after_step=2, update_every=1)", "ema.update()"),
    ],
)
def test_updates_that_copy(library: str, made: str, updated: str) -> None:
    said("copies the weights instead as long as `step` is at most `update_after_step + 1`")
    said("`update_after_step=n` makes that the first n + 1 updates")
    c = follow(Row(library, made, updated, "", ""), "units")["weight"]
    assert c.nonzero().flatten().tolist() == list(range(3, UPDATES + 1))


def test_a_warm_up_of_power_1_ends_at_the_given_decay() -> None:
    said("the warm-ups of power 1 for as long as 1 − 1/n is below the given decay")
    linear = torch.nn.Linear(1, 1)
    timm = names_of_library("timm")["ModelEmaV3"](linear, decay=0.9, use_warmup=True, warmup_power=1)
    diffusers = names_of_library("diffusers")["EMAModel"]([], decay=0.9, use_ema_warmup=True, power=1)
    for n in range(1, 20):
        expected = pytest.approx(min(1 - 1 / n, 0.9), abs=1e-15)
        assert timm.get_decay(n) == expected
        assert diffusers.get_decay(n) == expected


def test_belay_says_that_it_averages_statistics(belay: Belay) -> None:
    said("the statistics of BatchNorm too, and says so")
    follow(row_of("ModelEmaV2(model, decay=0.9)", "ema.update(model)"), "trained")
    ran = belay("average", "ckpts")
    assert "BatchNorm statistics are averaged like weights" in ran.err
    assert "num_batches_tracked: integers that differ between checkpoints; those of the last one are taken" in ran.err


def test_diffusers_forgets_what_it_was_made_from() -> None:
    said("The first update of `EMAModel` has decay 0 whatever `min_decay` says")
    ema = names_of_library("diffusers")["EMAModel"]([torch.zeros(1)], decay=0.9, min_decay=0.9)
    assert [ema.get_decay(n) for n in (1, 2, 3)] == [0.0, 0.9, 0.9]


def test_the_decay_of_ema_pytorch_is_float32(belay: Belay) -> None:
    said("0.9 becomes 0.8999999761581421")
    said("0.9999 becomes 0.9998999834060669, whose 1 − beta is 0.017 % larger")
    for beta, rounded in ((0.9, 0.8999999761581421), (0.9999, 0.9998999834060669)):
        ema = names_of_library("ema-pytorch")["EMA"](torch.nn.Linear(1, 1), beta=beta, min_value=beta)
        ema.step.fill_(1000)
        assert ema.get_current_decay() == rounded
    assert f"{(1 - 0.9998999834060669) / (1 - 0.9999) - 1:.3%}" == "0.017%"
    said("With `--decay 0.9` the coefficients of the table's row differ by up to 9.1e-8")
    made = "EMA(model, beta=0.9, min_value=0.9, update_after_step=0, update_every=1)"
    c = follow(row_of(made, "ema.update()"), "units")["weight"]
    ours = coefficients_by(belay, "--unit", "checkpoint", "--decay", "0.9", "--from-step", "1")
    assert f"{float((ours - c).abs().max()):.1e}" == "9.1e-08"


def test_ema_pytorch_updates_every_tenth_call_after_the_hundredth() -> None:
    said("As it comes, `EMA` copies the weights at its first call, and at each tenth until call 101")
    said("averages at call 111, 121 and so on")
    model = torch.nn.Linear(1, 1, bias=False)
    ema = names_of_library("ema-pytorch")["EMA"](model)
    copied, averaged, before = [], [], None
    for call in range(1, 132):
        model.weight.data.fill_(call)
        ema.update()
        after = float(ema.ema_model.weight)
        if after == call:
            copied.append(call)
        elif after != before:
            averaged.append(call)
        before = after
    assert copied == [1, *range(11, 102, 10)]
    assert averaged == [111, 121, 131]


def test_lightning_updates_after_the_first_step() -> None:
    said("`update_every_n_steps=4` updates after steps 1, 5 and 9")
    said("`every_n_train_steps=4` saves after 4, 8 and 12")
    saving = 'ModelCheckpoint("ckpts", every_n_train_steps={}, save_top_k=-1)'
    made = "EMAWeightAveraging(decay=0.9, update_every_n_steps=4)"
    follow(Row("Lightning", made, saving.format(4), "", ""), "units")
    assert sorted(int(re.findall(r"step=(\d+)", path.name)[0]) for path in Path("ckpts").iterdir()) == [4, 8, 12]
    c = follow(Row("Lightning", made, saving.format(1), "", ""), "units")["weight"]
    assert c.nonzero().flatten().tolist() == [1, 5, 9]


def test_lightning_saves_the_average_in_place_of_the_weights(belay: Belay) -> None:
    said("`belay` asks which is meant, and `--source raw` is the answer")
    row = next(row for row in SAME if row.made == "EMAWeightAveraging(decay=0.9)")
    follow(row, "units")
    ran = belay("average", "ckpts")
    assert ran.code == 1
    assert "holds raw weights (current_model_state) and their EMA (state_dict)" in ran.err
    assert "say which: --source raw or --source ema" in ran.err


def test_swa_of_lightning_leaves_the_last_epoch_out() -> None:
    said("of twelve epochs from the second on are those after epochs 1 to 11")
    row = next(row for row in SAME if row.made.startswith("StochasticWeightAveraging"))
    c = follow(row, "units")["weight"]
    assert c.nonzero().flatten().tolist() == list(range(1, 12))
    said("`swa_epoch_start=1` takes the initial weights too")
    earlier = Row(row.library, row.made.replace("=2", "=1"), row.updated, "", "")
    assert follow(earlier, "units")["weight"].nonzero().flatten().tolist() == list(range(12))


def test_steps_as_ticks(belay: Belay) -> None:
    said("`--decay 0.9` a step is 82 % the last checkpoint, where checkpoints are 50 steps apart")
    follow(row_of("ModelEmaV2(model, decay=0.9)", "ema.update(model)"), "units")
    assert f"{float(coefficients_by(belay, '--decay', '0.9')[-1]):.0%}" == "82%"


def test_a_library_has_no_name_here_that_is_not_its_own() -> None:
    """The names that rows use come from the library that the row names."""
    for row in SAME:
        used = re.findall(r"\b[A-Z]\w+(?=\()", row.made + row.updated)
        assert set(used) <= set(names_of_library(row.library)), row
