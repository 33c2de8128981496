"""The arithmetic of every engine that runs here: the same bits, which are those of the definition."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import subprocess
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belay_cli.engine.arithmetic import arithmetic, chosen_engine, engines
from belay_cli.engine.contract import Arithmetic
from belay_cli.engine.kernel import KERNELS, Kernel
from belay_cli.errors import UsageError
from belay_cli.formats.floats import as_float64
from tests.engine.arithmetic import DTYPES, INTEGERS, ONE_NAN, average, defined, fused, random_rows

PAIRS = [(source, into) for source in DTYPES for into in DTYPES]
TILE = 128  # elements that the kernel takes at a time
SIZES = [0, 1, 2, 7, 8, 9, 31, 33, TILE - 1, TILE, TILE + 1, 2 * TILE + 17]


@pytest.fixture(params=engines())
def by(request: pytest.FixtureRequest) -> Arithmetic:
    return arithmetic(request.param)


def test_the_definition_itself() -> None:
    assert fused(1 + 2.0**-30, 1 + 2.0**-30, -1.0) == 2.0**-29 + 2.0**-60
    assert (1 + 2.0**-30) * (1 + 2.0**-30) - 1 == 2.0**-29  # what two roundings would give
    assert math.copysign(1, fused(1.0, -0.0, -0.0)) == -1
    assert math.copysign(1, fused(1.0, 0.0, -0.0)) == 1
    assert math.copysign(1, fused(1.0, -1.0, 1.0)) == 1
    assert fused(2.0**-1000, -(2.0**-1000), -0.0) == 0
    assert math.copysign(1, fused(2.0**-1000, -(2.0**-1000), -0.0)) == -1
    assert fused(2.0, 1e308, 0.0) == math.inf


@pytest.mark.parametrize("dtypes", PAIRS)
def test_every_bit_is_that_of_the_definition(by: Arithmetic, dtypes: tuple[str, str]) -> None:
    rng = np.random.default_rng(sum(map(ord, "".join(dtypes))))
    for n, count, outputs in ((1, 1, 1), (9, 3, 2), (TILE + 3, 5, 5), (65, 18, 4)):
        rows = random_rows(rng, count, n, dtypes[0])
        coefficients = rng.standard_normal((count, outputs)) * 2.0 ** rng.integers(-30, 3, (count, outputs))
        coefficients[rng.random(coefficients.shape) < 0.2] = 0
        results, bad = average(by, rows, coefficients, dtypes)
        for k, result in enumerate(results):
            assert result.tolist() == defined(rows, coefficients, dtypes, k)
            assert bad[k] == (not np.isfinite(as_float64(result.view(np.uint8), dtypes[1])).all())


TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_engines_agree_however_the_rows_are_divided(data: Any) -> None:
    dtypes = data.draw(st.sampled_from(PAIRS))
    n, count = data.draw(st.sampled_from(SIZES)), data.draw(st.integers(1, 40))
    outputs = data.draw(st.sampled_from([1, 2, 3, 4, 5, 8, 33]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = random_rows(rng, count, n, dtypes[0], special=data.draw(st.booleans()))
    coefficients = rng.standard_normal((count, outputs))
    coefficients[rng.random(coefficients.shape) < data.draw(st.sampled_from([0, 0.1, 0.9]))] = 0
    expected, not_finite = average(arithmetic("torch"), rows, coefficients, dtypes)
    for engine in engines():
        cuts = sorted(set(data.draw(st.lists(st.integers(1, count), max_size=3))) - {count})
        results, bad = average(arithmetic(engine), rows, coefficients, dtypes, cuts)
        assert bad == not_finite
        for found, wanted in zip(results, expected, strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("source", DTYPES)
def test_widening_and_rounding_back_keep_every_number(by: Arithmetic, source: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint32)
    bits = every.astype("<u2") if source in ("F16", "BF16") else (every << 16 | 0x1234).astype(INTEGERS[source])
    if source == "F64":
        bits = bits << 32
    (result,), _ = average(by, [bits], np.ones((1, 1)), (source, source))
    numbers = torch.from_numpy(bits.copy()).view(TORCH[source])
    expected = np.where(numbers.isnan().numpy(), np.array(ONE_NAN[source], INTEGERS[source]), bits)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("into", ["F32", "F16", "BF16"])
def test_the_last_rounding_is_to_nearest(by: Arithmetic, into: str) -> None:
    # near the halfway points between neighbours; 16-bit dtypes are reached through float32
    near = 2**-20 if into == "F32" else 2**-12
    exact = torch.arange(1, 2000, dtype=torch.float64).to(TORCH[into])
    after = torch.nextafter(exact, torch.tensor(float("inf"), dtype=TORCH[into]))
    for share, expected in ((0.5 - near, exact), (0.5 + near, after)):
        between = exact.double() + (after.double() - exact.double()) * share
        (result,), _ = average(by, [between.numpy()], np.ones((1, 1)), ("F64", into))
        assert torch.equal(torch.from_numpy(result).view(TORCH[into]), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("into", DTYPES)
def test_what_is_not_finite_is_seen_anywhere(by: Arithmetic, value: float, into: str) -> None:
    for n in (1, 2, 33, TILE + 1, 1000):
        row = np.ones(n)
        for place in {0, n // 2, n - 1}:
            row[place] = value
            assert average(by, [row], np.ones((1, 2)), ("F64", into))[1] == b"\1\1"
            row[place] = 1
        assert average(by, [row], np.ones((1, 2)), ("F64", into))[1] == b"\0\0"


@pytest.mark.parametrize(
    ("into", "largest"), [("F32", 3.4028234663852886e38), ("F16", 65504.0), ("BF16", 3.38953139e38)]
)
def test_what_is_too_large_is_not_finite(by: Arithmetic, into: str, largest: float) -> None:
    for factor, expected in ((1.0, b"\0"), (1.0078125, b"\1")):
        assert average(by, [np.full(5, largest)], np.full((1, 1), factor), ("F64", into))[1] == expected


@pytest.mark.parametrize("dtypes", PAIRS)
@pytest.mark.parametrize("outputs", [1, 3, 4])
def test_nothing_outside_the_buffers_is_touched(by: Arithmetic, dtypes: tuple[str, str], outputs: int) -> None:
    """Every buffer ends where memory that may not be touched begins: what reads or writes beyond it dies."""
    rng = np.random.default_rng(1)
    for n in SIZES:
        rows = [guarded(row) for row in random_rows(rng, 3, n, dtypes[0], special=False)]
        results = [guarded(np.zeros(n, INTEGERS[dtypes[1]])) for _ in range(outputs)]
        sums = guarded(np.zeros(outputs * n)).reshape(outputs, n)
        coefficients = guarded(rng.random(3 * outputs)).reshape(3, outputs)
        by.average(rows[:1], coefficients[:1], sums, None, dtypes=dtypes, begins=True)
        by.average(rows[1:], coefficients[1:], sums, results, dtypes=dtypes, begins=False)
        expected, _ = average(by, [row.copy() for row in rows], coefficients.copy(), dtypes)
        assert all(np.array_equal(found, wanted) for found, wanted in zip(results, expected, strict=True))


def guarded(values: Any) -> Any:
    """The same values in memory whose last byte is the last of a page, before one that may not be touched."""
    page = mmap.PAGESIZE
    size = -(-max(values.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, size + page)
    array = np.frombuffer(memory, np.uint8)
    address = array.ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) == 0, os.strerror(
        ctypes.get_errno()
    )
    found = array[size - values.nbytes : size].view(values.dtype)
    found[:] = values
    return found


def test_the_guard_is_real() -> None:
    program = (
        "import numpy as np, ctypes; from tests.engine.test_arithmetic import guarded\n"
        "ctypes.string_at(guarded(np.zeros(3)).ctypes.data, 25)"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    died = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert died.returncode < 0 or "AddressSanitizer: SEGV" in died.stderr


def test_subnormals_are_numbers_though_the_program_flushes_them(by: Arithmetic) -> None:
    # 2⁻⁷⁰ of what is smallest in float64 is nothing; half of what is smallest in float32 is a tie
    row = np.array([1, 2, 3, 0x8001], "<u4")
    before = average(by, [row], np.ones((1, 1)), ("F32", "F32"))[0][0].tolist()
    assert torch.set_flush_denormal(True)
    try:
        assert average(arithmetic(by.name), [row], np.ones((1, 1)), ("F32", "F32"))[0][0].tolist() == before
    finally:
        torch.set_flush_denormal(False)
    assert before == row.tolist()


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_module_checks_what_it_is_given(kernel: str) -> None:
    from belay_cli.engine.kernel._native import average as run

    rows: list[Any] = [np.ones(4)]
    factors, sums, results = np.ones((1, 1)), np.ones((1, 4)), [np.ones(4)]

    def fails(match: str, error: type[Exception] | tuple[type[Exception], ...] = ValueError, **changed: Any) -> None:
        given: dict[str, Any] = {
            "kernel": kernel,
            "source": "F64",
            "into": "F64",
            "outputs": 1,
            "elements": 4,
            "rows": rows,
            "coefficients": factors,
            "sums": sums,
            "results": results,
            "begins": True,
        }
        with pytest.raises(error, match=match):
            run(*(given | changed).values())

    fails("no kernel of this processor: mmx", kernel="mmx")
    fails("no dtype: I8", source="I8")
    fails("no dtype: C64", into="C64")
    fails("^a row: 32 bytes, not 40$", elements=5)
    fails("^a row: 16 bytes, not 32$", rows=[np.ones(2)])
    fails("^a result: 24 bytes, not 32$", results=[np.ones(3)])
    fails("^the coefficients: 0 bytes, not 8$", coefficients=np.ones(0))
    fails("^the sums: 8 bytes, not 32$", sums=np.ones(1), begins=False)
    fails("^the sums: 8 bytes, not 32$", sums=np.ones(1), results=None)
    fails("^results: there are 2 outputs$", outputs=2)
    fails("^0 rows of 4 elements into 1 outputs$", rows=[])
    fails("^1 rows of -1 elements into 1 outputs$", elements=-1)
    fails("^1 rows of 4 elements into 0 outputs$", outputs=0, results=[])
    fails("elements into 1 outputs", elements=sys.maxsize)
    frozen = np.ones(4)
    frozen.flags.writeable = False
    fails("is read-only", results=[frozen])
    fails("is not C-contiguous", rows=[np.ones(8)[::2]])
    fails("bytes-like object is required|buffer", TypeError, rows=[object()])
    assert run(kernel, "F64", "F64", 1, 4, rows, factors, sums, results, True) == b"\0"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("held", [1, 3, 20, 40])
@pytest.mark.parametrize("block", [1, 64, 100, 1000])
def test_what_is_read_in_blocks_is_the_same(tmp_path: Path, kernel: str, held: int, block: int) -> None:
    rng, n, count, outputs, dtypes = np.random.default_rng(held + block), 301, 20, 5, ("BF16", "F32")
    rows, coefficients = random_rows(rng, count, n, "BF16"), rng.standard_normal((count, outputs))
    expected, not_finite = average(arithmetic("torch"), rows, coefficients, dtypes)
    with ExitStack() as files:
        places = []
        for i, row in enumerate(rows):
            (tmp_path / str(i)).write_bytes(bytes(i) + row.tobytes())
            places.append((files.enter_context(open(tmp_path / str(i), "rb")).fileno(), i))
        held_rows, sums = guarded(np.zeros(held * block * 2, np.uint8)).reshape(held, -1), np.empty((outputs, block))
        results = [guarded(np.zeros(n, "<u4")) for _ in range(outputs)]
        by = Kernel(kernel)
        assert by.replay(places, coefficients, held_rows, sums, results, n, dtypes=dtypes) == not_finite
        assert all(np.array_equal(found, wanted) for found, wanted in zip(results, expected, strict=True))
        crcs = np.full(len(places), zlib.crc32(b"before"), np.uint32)
        assert by.replay(places, coefficients, held_rows, sums, results, n, dtypes=dtypes, crcs=crcs) == not_finite
        assert crcs.tolist() == [zlib.crc32(b"before" + row.tobytes()) for row in rows]
        os.truncate(tmp_path / "7", 7 + 2 * n - 1)
        assert by.replay(places, coefficients, held_rows, sums, results, n, dtypes=dtypes) == 7
        places[3] = (-1, 0)
        assert by.replay(places, coefficients, held_rows, sums, results, n, dtypes=dtypes) in (3, 7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_replay_checks_what_it_is_given(kernel: str) -> None:
    from belay_cli.engine.kernel._native import replay as run

    def fails(match: str, error: type[Exception] | tuple[type[Exception], ...] = ValueError, **changed: Any) -> None:
        given: dict[str, Any] = {
            "kernel": kernel,
            "source": "F64",
            "into": "F64",
            "outputs": 1,
            "elements": 4,
            "places": [(0, 0)],
            "coefficients": np.ones((1, 1)),
            "held": 2,
            "block": 3,
            "rows": np.ones((2, 3)),
            "sums": np.ones((1, 3)),
            "results": [np.ones(4)],
            "crcs": None,
        }
        with pytest.raises(error, match=match):
            run(*(given | changed).values())

    fails("no kernel of this processor: mmx", kernel="mmx")
    fails("^the rows: 40 bytes, not 48$", rows=np.ones(5))
    fails("^the checksums: 0 bytes, not 4$", crcs=np.ones(0, np.uint32))
    fails("^the sums: 16 bytes, not 24$", sums=np.ones(2))
    fails("^a result: 24 bytes, not 32$", results=[np.ones(3)])
    fails("^0 rows of 3 elements at a time$", held=0)
    fails("^2 rows of 0 elements at a time$", block=0)
    fails("rows of .* elements at a time", block=sys.maxsize)
    fails("^0 rows of 4 elements into 1 outputs$", places=[])
    fails("tuple", (TypeError, SystemError), places=[0])
    fails("NoneType", TypeError, results=None)


def test_the_fastest_engine_is_taken_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELAY_ENGINE", raising=False)
    assert chosen_engine() == engines()[0]
    monkeypatch.setenv("BELAY_ENGINE", "torch")
    assert chosen_engine() == "torch"
    monkeypatch.setenv("BELAY_ENGINE", "abacus")
    with pytest.raises(UsageError, match="^BELAY_ENGINE is 'abacus', and what runs here is (.* or )?torch$"):
        chosen_engine()
