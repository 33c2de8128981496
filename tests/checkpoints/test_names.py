"""What names say: steps, epochs, whole names, and what is no counter."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.checkpoints.order.names import (
    names_a_checkpoint,
    naming,
    rounds_in_name,
    stem_of,
    step_in_name,
)
from belay_cli.checkpoints.order.pieces import Kind, has_number, pieces, shape


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-400.backup", 400),
        ("step-500.tmp", 500),
        ("step_1e5", 100_000),
        ("step_2.5e3", 2500),
        ("step_25e3", 25_000),
        ("step_500k", 500_000),
        ("step_1.5k", 1500),
        ("step_1M", 1_000_000),
        ("step_3m", 3_000_000),
        ("step_9_500", 9500),
        ("step_1_000_000", 1_000_000),
        ("step_100_2024-05-01", 100),
        ("step_20240501", 20_240_501),
        ("500k", 500_000),
        ("1M", 1_000_000),
        ("iter200", 200),
        ("global_step40", 40),
        ("globalStep40", 40),
        ("at-step00000200", 200),
        ("TinyLlama-1.1B-intermediate-step-1431k-3T", 1_431_000),
        ("gpt--val_loss=2.31-step=900-consumed_samples=7200.0", 900),
        ("2024-05-02_08-11-45-save-530-5-30", 530),
        ("rl_model_1000_steps", 1000),
        ("step-1,000", 1000),
        ("step_100_acc_91", 100),
        ("step1000epoch1", 1000),
        ("step_9_of_10", 9),
        ("step_500thousand", None),
        ("step_1mil", None),
        ("step_1Ki", None),
        ("step_10k5", None),
        ("step_1_5k", None),
        ("step-1'000", None),
        ("iter_500Kstep", None),
        ("step_-2", None),
        ("step_0.25", None),
        ("step_1.2.3", None),
        ("step_2024-05-01", None),
        ("checkpoint-20240501", None),
        ("checkpoint-7d1c0bb", None),
        ("checkpoint-1.5", None),
        ("model-7b", None),
        ("model-410m", None),
        ("save-530-5-30", None),
        ("sdxl_lightning_4step", None),
        ("model_500k", None),
        ("", None),
    ],
)
def test_steps(name: str, step: int | None) -> None:
    assert step_in_name(name) == step


def test_rounds_are_what_a_step_starts_again_in() -> None:
    assert rounds_in_name("stage2-epoch_3-step_100") == (2, 3)
    assert rounds_in_name("step_100") == ()


@pytest.mark.parametrize(
    "name",
    words(
        "checkpoint-500 checkpoint_3 step-7 step_1e5 global_step40 iter_0001000 epoch=1-step=200 ep0-ba200-rank0 "
        "epoch_3 checkpoint-epoch-1 stage1-step101000-tokens424B step-50K-105b 500k model-000500 Checkpoint-5 save3"
    ),
)
def test_whole_names_of_checkpoints(name: str) -> None:
    assert names_a_checkpoint(name)


@pytest.mark.parametrize(
    "name",
    words(
        "step-400.backup step-500.tmp foo-step-250 global_step100-hf step_100_ema checkpoint-best epoch_0.25 timestep5 "
        "2_Dense runs model model2 samples_1000 003000 checkpoint-20240501 step checkpoint v2"
    ),
)
def test_names_of_which_only_a_part_fits(name: str) -> None:
    assert not names_a_checkpoint(name)


KINDS = {
    Kind.MEASURE: "epoch_{0.25} loss={0.1234} val_loss-{0.53} lr{1e-4} acc={93} "
    "loss={-0.21} val_loss={nan} mAP50_{71} top1_{71} f1_{71} "
    "valacc_{71} winrate{55} rew_{200} best_recall_{71} x_{-2} x={.5} step_{0.25} f_{1.5e-3}",
    Kind.DATE: "{2024-05-01_22-58-41} m_{20240501} {20240501T225841} {Mar14_22-58-41}_host {22-58-41} {2024.05.01} "
    "{01-05-2024} {2024-05-01T22:58:41.123456Z} {20240501-2258} {01May2024} {20240501225841} m_{22h58} "
    "m_{2024-05-01+22-58-41+00}",
    Kind.HASH: "{7d1c0bb0a3f64c9eab12f0f34c5a8d9e01b7c6fa} x-{0e9f3a2} {550e8400-e29b-41d4-a716-446655440000}",
    Kind.SIZE: "llama-{7b} pythia-{410m} qwen-{1.5B} llama{13b}-chat",
    Kind.RANK: "rank{0} rank_{1} mp_rank_{00} tp_{0} pp_{0} model_rank_{0} shard_{0} part-{0} consolidated.{00} "
    "m-{00001}-of-00002 x_rank{3}_y worker{0} dp_{1} chunk_{0} node{1} cuda{0}",
    Kind.NUMBER: "{1,000} {9} m_{1.5k} m_{2e4} ba{10000} e{100000} ba{200} consolidated_{100} {003000} "
    "model{010000} net_{20} epoch_{09}_of_10 {240b}_tokens",
}


@pytest.mark.parametrize(("kind", "marked"), [(k, name) for k, names in KINDS.items() for name in names.split()])
def test_kinds_of_numbers(kind: Kind, marked: str) -> None:
    text = marked[marked.index("{") + 1 : marked.index("}")]
    found = [piece for piece in pieces(marked.replace("{", "").replace("}", "")) if piece.kind is not Kind.TEXT]
    assert [(piece.kind, piece.text) for piece in found] == [(kind, text)]


@pytest.mark.parametrize(
    "name",
    words("run@9 kfold_0 client_3 cv1 v2 model-v1 1.2.3 sd15 sd-v1-5 net_v1.5 version_3 seed_7 fold2 fp16 run3 bs32"),
)
def test_versions_and_settings_are_text(name: str) -> None:
    assert [piece.kind for piece in pieces(name)] == [Kind.TEXT]


@given(st.text(alphabet="abefkmMT019._-=,:# ", max_size=60))
def test_pieces_together_are_the_name(name: str) -> None:
    found = pieces(name)
    assert "".join(piece.text for piece in found) == name
    kinds = [piece.kind for piece in found]
    assert not any(a is b is Kind.TEXT for a, b in pairwise(kinds))


DATES = st.dates().filter(lambda d: 1900 <= d.year < 2100).map(lambda d: d.strftime("%Y-%m-%d"))
HASHES = st.text("0123456789abcdef", min_size=40, max_size=40).filter(lambda text: not text.isdigit())
DECIMALS = st.tuples(st.integers(0, 99), st.integers(0, 9999)).map(lambda p: f"{p[0]}.{p[1]:04}")


@given(st.one_of(DATES, HASHES, DECIMALS), st.sampled_from(["model-{}", "{}", "epoch_{}", "a_{}_b", "checkpoint-{}"]))
def test_decimals_dates_and_hashes_are_no_numbers(noise: str, template: str) -> None:
    name = template.format(noise)
    assert (has_number(name), step_in_name(name)) == (False, None)


@pytest.mark.parametrize(
    ("names", "is_file", "told"),
    [
        (("unet", "checkpoint-500"), False, "checkpoint-500"),
        (("pretrained_model", "003000", "checkpoints"), False, "003000"),
        (("huggingface", "actor", "global_step_10"), False, "global_step_10"),
        (("text_encoder_2", "checkpoint-500"), False, "checkpoint-500"),
        (("model", "checkpoint_3"), True, "checkpoint_3"),
        (("model_1", "checkpoint-500"), True, "model_1"),
        (("best", "exp2024"), True, "best"),
        (("step_3", "checkpoint-500"), True, "step_3"),
    ],
)
def test_a_name_without_a_number_takes_that_of_what_holds_it(names: tuple[str, ...], is_file: bool, told: str) -> None:
    assert naming(*names, is_file=is_file) == told


def test_a_decimal_number_at_the_end_of_a_name_is_no_suffix() -> None:
    assert [stem_of(n) for n in ("a.pt", "epoch_0.25", "a.pth.tar", ".hidden", "a")] == [
        "a",
        "epoch_0.25",
        "a.pth",
        ".hidden",
        "a",
    ]


@pytest.mark.parametrize("part", ["a", "1_", "a1", "0.", "f0", "step", "2024-05-01_", "1,000", "1.1k", "ab-", "x-v2-"])
def test_long_names_take_no_time(part: str) -> None:
    begin = time.perf_counter()
    name = part * (50_000 // len(part))
    step_in_name(name)
    names_a_checkpoint(name)
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize(
    "names", ["a_0.1_1 a_0.2_2", "loss=-1_9 loss=nan_10", "step-50K-105b step-1M-3T", "2024-05-01_1 2024-05-02_2"]
)
def test_names_of_one_shape(names: str) -> None:
    assert len(set(map(shape, names.split()))) == 1


@pytest.mark.parametrize(
    "names", ["lr_1e-4_1 lr_2e-4_2", "a-7b-1 a-13b-2", "a_1 b_2", "v1_1 v2_2", "mAP50_1 mAP75_2", "s-1 s_2"]
)
def test_names_of_several_shapes(names: str) -> None:
    assert len(set(map(shape, names.split()))) == 2
