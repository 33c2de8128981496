"""A replay: how near to the exact result, and that no byte depends on how the work is divided."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from belay_cli import Belay, Ema, average
from belay_cli.api.average import prepare
from belay_cli.api.keywords import plan_options
from belay_cli.checkpoints import find_series
from belay_cli.checkpoints.fingerprint import fingerprints
from belay_cli.engine import cuda
from belay_cli.engine.arithmetic import engines
from belay_cli.errors import CheckpointError, DeviceError, NumericError
from belay_cli.output.staged import staged_outputs
from belay_cli.planning import Plan
from belay_cli.show.listener import Nobody
from tests.conftest import make_adapter, make_files, make_run, tensors

ULP_BITS = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11, torch.float64: 53}
SMALLEST_EXPONENT = {torch.float32: -149, torch.bfloat16: -133, torch.float16: -24, torch.float64: -1074}


def ulp(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The distance of two neighbours of the dtype near an exact value."""
    if value == 0:
        return Fraction(2) ** SMALLEST_EXPONENT[dtype]
    exponent = int(np.floor(np.log2(float(abs(value))))) - ULP_BITS[dtype] + 1
    return Fraction(2) ** max(exponent, SMALLEST_EXPONENT[dtype])


def assert_within_contract(written: torch.Tensor, inputs: list[torch.Tensor], coefficients: list[float]) -> None:
    rows = [x.double().reshape(-1).tolist() for x in inputs]
    for i, value in enumerate(written.double().reshape(-1).tolist()):
        terms = [Fraction(c) * Fraction(row[i]) for c, row in zip(coefficients, rows, strict=True)]
        exact = sum(terms, Fraction(0))
        slack = (len(terms) + 1) * Fraction(2) ** -53 * sum(map(abs, terms), Fraction(0))
        bound = Fraction(51, 100) * ulp(exact, written.dtype) + slack
        assert abs(Fraction(value) - exact) <= bound, (i, value, float(exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rule", [Ema(), Belay(), Ema(damping_ratio=0.5), Ema(debias=True)])
def test_every_element_is_within_the_contract(tmp_path: Path, dtype: torch.dtype, rule: Any) -> None:
    paths = make_files(tmp_path, dtype=dtype)
    report = average(paths, "out.safetensors", method=rule)
    coefficients = [entry.coefficient for entry in report.checkpoints]
    inputs, written = [load_file(path) for path in paths], load_file("out.safetensors")
    for name, tensor in written.items():
        if tensor.is_floating_point():
            assert tensor.dtype == dtype
            assert_within_contract(tensor, [x[name] for x in inputs], coefficients)
    assert torch.equal(written["seen"], inputs[-1]["seen"])
    assert written["seen"].dtype == torch.int64


@pytest.mark.parametrize("target", ["float64", "float32", "bfloat16", "float16"])
def test_other_dtypes_of_the_output_are_within_the_contract(tmp_path: Path, target: Any) -> None:
    paths = make_files(tmp_path)
    report = average(paths, "out.safetensors", dtype=target, last="layer.bias")
    coefficients = [entry.coefficient for entry in report.checkpoints]
    inputs, written = [load_file(path) for path in paths], load_file("out.safetensors")
    dtype = getattr(torch, target)
    assert {name: tensor.dtype for name, tensor in written.items() if name != "seen"} == dict.fromkeys(
        ("embed.weight", "layer.weight", "layer.bias", "scale", "nothing"), dtype
    )
    assert_within_contract(written["embed.weight"], [x["embed.weight"] for x in inputs], coefficients)
    assert torch.equal(written["layer.bias"], inputs[-1]["layer.bias"].to(dtype))


def test_terms_that_cancel_keep_their_digits(tmp_path: Path) -> None:
    # 1 − 1 + tiny: in float32 the tiny one would be gone
    rows = [torch.full((64,), 1.0), torch.full((64,), -1.0), torch.full((64,), 1e-12)]
    for i, row in enumerate(rows):
        save_file({"w": row}, tmp_path / f"step-{i}.safetensors")
    report = average([tmp_path], "out.safetensors", method=Ema(half_life="1checkpoint", damping_ratio=0.3))
    coefficients = [entry.coefficient for entry in report.checkpoints]
    assert_within_contract(load_file("out.safetensors")["w"], rows, coefficients)


def test_a_small_step_is_not_lost_in_bfloat16(tmp_path: Path) -> None:
    # An EMA held in bfloat16 does not move at all at this decay.
    for i in range(60):
        save_file({"w": torch.full((8,), 1.0 + i / 8, dtype=torch.bfloat16)}, tmp_path / f"step-{i}.safetensors")
    average([tmp_path], "out.safetensors", method=Ema(decay=0.999))
    assert 1.2 < load_file("out.safetensors")["w"][0].item() < 1.3


def test_equal_to_torch_averaged_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    decay = 0.9
    theirs: AveragedModel | None = None
    for step in range(12):
        for p in model.parameters():
            p.data.add_(torch.randn_like(p), alpha=0.1)
        save_file(model.state_dict(), tmp_path / f"step-{step}.safetensors")
        if theirs is None:
            updates = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            theirs = AveragedModel(model, multi_avg_fn=updates)
        theirs.update_parameters(model)
    average([tmp_path], "out.safetensors", method=Ema(decay=decay))
    ours = load_file("out.safetensors")
    assert theirs is not None
    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-7)


def digest(path: Path | str) -> str:
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def tensor_bytes(path: Path | str) -> dict[str, bytes]:
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.safetensors"))
    found: dict[str, bytes] = {}
    for file in files:
        found |= {k: v.reshape(-1).view(torch.uint8).numpy().tobytes() for k, v in load_file(file).items()}
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(1, 12).map(lambda n: 64 * n),
    threads=st.integers(1, 5),
    shard=st.sampled_from([None, "1kB", "700B", "3kB"]),
    dtype=st.sampled_from(["same", "bfloat16"]),
)
def test_no_byte_depends_on_chunks_threads_or_shards(
    tmp_path: Path, chunk: int, threads: int, shard: str | None, dtype: str
) -> None:
    if not (tmp_path / "run").exists():
        make_run(tmp_path / "run")
    options: dict[str, Any] = {"method": Belay(half_life="2checkpoints"), "dtype": dtype, "overwrite": True}
    average([tmp_path / "run"], f"whole-{dtype}", **options)
    average([tmp_path / "run"], "parts", chunk=chunk, threads=threads, max_shard_size=shard, **options)
    assert tensor_bytes("parts") == tensor_bytes(f"whole-{dtype}")
    if shard is None:
        assert digest("parts") == digest(f"whole-{dtype}")


def test_the_same_inputs_and_options_give_the_same_file_whatever_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_files(tmp_path)
    average(paths, "a.safetensors", method=Ema(half_life="100steps"))
    average(reversed(paths), "b.safetensors", method=Ema(half_life="1checkpoint"), threads=1)  # type: ignore[call-overload]
    monkeypatch.chdir(tmp_path)
    average(["."], tmp_path / "work/c.safetensors", method=Ema(half_life=100))
    digests = {digest(tmp_path / "work" / name) for name in ("a.safetensors", "b.safetensors", "c.safetensors")}
    assert len(digests) == 1


RULES = [*(Ema(half_life=h) for h in (50, 100, 200)), Belay(), Ema(damping_ratio=0.4), Ema(decay=0.0)]


def test_several_outputs_in_one_read_are_the_same_files(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=range(100, 900, 100))
    together = average(paths, rules=RULES, outputs=[f"k{i}.safetensors" for i in range(len(RULES))])
    for i, rule in enumerate(RULES):
        alone = average(paths, f"alone{i}.safetensors", method=rule)
        assert digest(f"k{i}.safetensors") == digest(f"alone{i}.safetensors")
        assert together[i].summary == alone.summary
    assert (
        together[0].bytes_read
        == alone.bytes_read + sum(entry.bytes for entry in together[0].checkpoints[:-1]) - 7 * tensors()["seen"].nbytes
    )


def replay_on_twin(arguments: list[Path], rules: list[Any], outputs: list[str], **options: Any) -> Plan:
    """The GPU's pipeline with the CPU as its device."""
    plan = prepare(arguments, rules, outputs, *plan_options(options), Nobody())
    told: list[int] = []
    with staged_outputs(plan, fingerprints(plan.series.checkpoints)) as staged:
        cuda.replay_on_device(plan, staged.writers, told.append, torch.device("cpu"))
    assert told[-1] == plan.data_read
    return plan


@pytest.mark.parametrize("chunk", [None, 64, 192])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_twin_of_the_gpu_writes_the_same_bytes(tmp_path: Path, chunk: int | None, threads: int) -> None:
    run = make_run(tmp_path / "run", steps=range(100, 900, 100), dtype=torch.bfloat16)
    names = [f"gpu{i}" for i in range(len(RULES))]
    replay_on_twin([run], RULES, names, chunk=chunk, threads=threads, max_shard_size="1kB", last=["layer.*"])
    average([run], rules=RULES, outputs=[f"cpu{i}" for i in range(len(RULES))], max_shard_size="1kB", last=["layer.*"])
    for i in range(len(RULES)):
        assert digest(f"gpu{i}") == digest(f"cpu{i}")


def test_the_twin_of_the_gpu_finds_what_is_not_finite(tmp_path: Path) -> None:
    paths = make_files(tmp_path)
    broken = tensors(1) | {"layer.bias": torch.full((8,), float("nan"))}
    save_file(broken, paths[1])
    with pytest.raises(NumericError, match="'layer.bias' holds NaN"):
        replay_on_twin(paths, [Ema()], ["out.safetensors"])
    assert not Path("out.safetensors").exists()


def test_a_gpu_without_memory_gets_smaller_chunks_and_then_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def exhausted(plan: Any, writers: Any, device: Any, n: Any, threads: Any, todo: Any) -> None:
        sizes.append(n)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cuda, "Pipeline", exhausted)
    with pytest.raises(DeviceError, match="cpu has too little free memory"):
        replay_on_twin(make_files(tmp_path), [Ema()], ["out.safetensors"])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 4 << 10


def test_a_checkpoint_without_a_coefficient_is_not_read(tmp_path: Path) -> None:
    paths = make_files(tmp_path)
    report = average(paths, "out.safetensors", method=Ema(decay=0.0))
    assert [entry.coefficient for entry in report.checkpoints] == [0, 0, 0, 1]
    assert report.bytes_read == paths[-1].stat().st_size
    assert tensor_bytes("out.safetensors") == tensor_bytes(paths[-1])


def test_one_checkpoint_is_copied_bit_for_bit(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([-0.0, 0.0, 1e-45, -1.5])}, tmp_path / "step-1.safetensors")
    report = average([tmp_path / "step-1.safetensors"], "out.safetensors")
    assert tensor_bytes("out.safetensors") == tensor_bytes(tmp_path / "step-1.safetensors")
    assert report.warnings == ["one checkpoint only: the average is a copy of it"]


def spoiled(tmp_path: Path, name: str = "layer.weight", value: float = float("nan"), place: int = 17) -> list[Path]:
    paths = make_files(tmp_path)
    broken = tensors(2)
    broken[name].view(-1)[place] = value
    save_file(broken, paths[2])
    return paths


@pytest.mark.parametrize(
    ("value", "kind", "mend"),
    [
        (float("nan"), "NaN", "leave the checkpoint out"),
        (float("inf"), "inf", "for a mask, keep the last checkpoint's: --last 'layer.weight'"),
        (-float("inf"), "-inf", "for a mask, keep the last checkpoint's: --last 'layer.weight'"),
    ],
)
def test_what_is_not_finite_is_named(tmp_path: Path, value: float, kind: str, mend: str) -> None:
    paths = spoiled(tmp_path, value=value)
    with pytest.raises(NumericError) as caught:
        average(paths, "out.safetensors")
    assert caught.value.message == f"'layer.weight' holds {kind}"
    assert (caught.value.file, caught.value.tensor) == (str(paths[2]), "layer.weight")
    assert caught.value.hint == f"{mend}; to average it all the same: --allow-nonfinite"
    assert os.listdir(".") == []


def test_the_mends_of_what_is_not_finite(tmp_path: Path) -> None:
    paths = spoiled(tmp_path, value=-float("inf"))
    average(paths, "all.safetensors", allow_nonfinite=True)
    assert load_file("all.safetensors")["layer.weight"].view(-1)[17] == -float("inf")
    average(paths, "last.safetensors", last="layer.weight")
    assert torch.equal(load_file("last.safetensors")["layer.weight"], tensors(3)["layer.weight"])


def test_the_first_broken_tensor_is_named_whichever_thread_finds_one(tmp_path: Path) -> None:
    rows = [{f"w{i:03d}": torch.randn(300) for i in range(50)} for _ in range(3)]
    for i in range(20, 50):
        rows[1][f"w{i:03d}"][5] = float("nan")
    for i, row in enumerate(rows):
        save_file(row, tmp_path / f"step-{i}.safetensors")
    for _ in range(10):
        with pytest.raises(NumericError, match="'w020' holds NaN"):
            average([tmp_path], "out.safetensors", threads=4, chunk=64)


def test_an_average_too_large_for_its_dtype(tmp_path: Path) -> None:
    for i in range(3):
        save_file({"w": torch.full((5,), 1e5), "v": torch.ones(2)}, tmp_path / f"step-{i}.safetensors")
    for allow in (False, True):
        with pytest.raises(NumericError) as caught:
            average([tmp_path], "out.safetensors", dtype="float16", allow_nonfinite=allow)
        assert caught.value.message == "the average of 'w' is too large for float16"
        assert caught.value.hint == "write a wider dtype: --dtype bfloat16 or --dtype float32"
    with pytest.raises(NumericError, match="the average of 'w' is too large for float16"):
        average([tmp_path], "out.safetensors", dtype="float16", last="w")
    average([tmp_path], "out.safetensors", dtype="bfloat16")


def test_infinity_beside_an_overflow_does_not_hide_it(tmp_path: Path) -> None:
    for i in range(2):
        save_file({"w": torch.tensor([float("inf"), 1e5])}, tmp_path / f"step-{i}.safetensors")
    with pytest.raises(NumericError, match="too large for float16"):
        average([tmp_path], "out.safetensors", dtype="float16", allow_nonfinite=True)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    paths = make_files(tmp_path)
    plan = prepare(paths, [Ema()], ["out.safetensors"], *plan_options({}), Nobody())
    marks = fingerprints(plan.series.checkpoints)
    os.truncate(paths[1], 700)
    from belay_cli.engine.stream import replay

    with (
        pytest.raises(CheckpointError, match="step-200.safetensors: ends at byte 700, though its header"),
        staged_outputs(plan, marks) as staged,
    ):
        replay(plan, staged.writers, lambda nbytes: None)
    assert os.listdir(".") == []


def test_metadata_is_enough_to_repeat_the_average(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    report = average([run], "out", method=Belay(half_life="2checkpoints"), drop="scale", dtype="bfloat16")
    with safe_open("out/model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    series = json.loads(metadata["belay.series"])
    assert [entry["name"] for entry in series] == [f"checkpoint-{n}" for n in (100, 200, 300, 400)]
    assert [entry["coefficient"] for entry in series] == [entry.coefficient for entry in report.checkpoints]
    assert [entry["fingerprint"] for entry in series] == fingerprints(find_series([run]).checkpoints)
    assert json.loads(metadata["belay.rule"])["method"] == "belay"
    assert metadata["belay.command"] == (
        "belay average --method belay --unit step --half-life 200.0 --feedback 1.0 --curvature 1.0 --drop scale "
        "--dtype bfloat16 checkpoint-100 checkpoint-200 checkpoint-300 checkpoint-400"
    )
    copies = {"config.json": '{"architectures": ["Tiny"], "step": 400}', "tokenizer.json": "{}"}
    digests = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in copies.items()}
    assert json.loads(metadata["belay.copies"]) == digests
    assert str(tmp_path) not in str(metadata)


KEEPS_THREADS = """
import sys, torch
torch.set_num_threads(3)
assert torch.set_flush_denormal(True)
from belay_cli import average
average([sys.argv[1]], "out", lora=sys.argv[2] or None)
assert torch.get_num_threads() == 3, torch.get_num_threads()
assert (torch.tensor(1e-40) * 0.5).item() == 0, "subnormals are flushed no more"
"""


@pytest.mark.parametrize("lora", ["", "delta"])
@pytest.mark.parametrize("engine", engines())
def test_a_program_keeps_what_it_told_torch(tmp_path: Path, lora: str, engine: str) -> None:
    for step in (1, 2, 3):
        make_adapter(tmp_path / f"adapters/checkpoint-{step}", step)
    run = tmp_path / "adapters" if lora else make_run(tmp_path / "run")
    environment = {**os.environ, "BELAY_ENGINE": engine}
    subprocess.run([sys.executable, "-c", KEEPS_THREADS, str(run), lora], env=environment, check=True)


@pytest.mark.parametrize("chunk", [None, 64])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("sync", [True, False])  # whether there is a disk to wait for, and so a time to hash in
def test_the_digests_are_those_of_the_tensors(tmp_path: Path, chunk: int | None, threads: int, sync: bool) -> None:
    run = make_run(tmp_path / "run")
    average([run], "out", chunk=chunk, threads=threads, max_shard_size="1kB", dtype="bfloat16", sync=sync)
    seen: set[str] = set()
    for path in Path("out").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            digests = json.loads(file.metadata()["belay.digests"])
        contents = tensor_bytes(path)
        assert digests == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        seen |= contents.keys()
    assert seen == tensors().keys()
