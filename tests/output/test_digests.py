"""The digests of an output: those of its bytes, whatever the order in which chunks are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belay_cli.engine.chunks import Part
from belay_cli.output.digests import TensorDigests, to_take_later
from belay_cli.planning.layout import PlannedTensor

MIB = 1 << 20


def planned(name: str, elements: int) -> PlannedTensor:
    """A tensor of bytes, so that elements count bytes."""
    return PlannedTensor(name, "average", "U8", "U8", (elements,), elements, elements)


class Output:
    """The files of an output, filled chunk by chunk; what was never written cannot be read back."""

    def __init__(self, *sizes: int) -> None:
        self.tensors = [planned(f"t{i}", size) for i, size in enumerate(sizes)]
        letters = {tensor.name: hashlib.sha256(tensor.name.encode()).digest() * 40 for tensor in self.tensors}
        self.content = {t.name: letters[t.name][: t.elements] for t in self.tensors}
        self.written = {tensor.name: bytearray(tensor.elements) for tensor in self.tensors}
        self.reads: list[tuple[str, int, int]] = []

    def parts(self, size: int) -> list[Part]:
        pieces = [(t, start) for t in self.tensors for start in range(0, t.elements, size)]
        return [Part(t, s, min(size, t.elements - s)) for t, s in pieces]

    def read_back(self, tensor: PlannedTensor, start: int, end: int) -> Iterator[bytes]:
        self.reads.append((tensor.name, start, end))
        assert all(self.written[tensor.name][start:end])
        for at in range(start, end, 7):
            yield self.content[tensor.name][at : min(at + 7, end)]

    def write(self, digests: TensorDigests, part: Part) -> None:
        name, start, end = part.tensor.name, part.start, part.start + part.elements
        self.written[name][start:end] = b"\1" * part.elements
        digests.update(part, memoryview(self.content[name])[start:end])

    def expected(self) -> dict[str, str]:
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.content.items()}


@given(
    sizes=st.lists(st.integers(0, 900), min_size=1, max_size=4),
    size=st.sampled_from([64, 128, 320]),
    later=st.sets(st.sampled_from(["t0", "t1", "t2", "t3"])),
    order=st.randoms(use_true_random=False),
)
def test_any_order_of_chunks(sizes: Any, size: Any, later: Any, order: Any) -> None:
    output = Output(*sizes)
    digests = TensorDigests(output.read_back, later)
    parts = output.parts(size)
    order.shuffle(parts)
    for part in parts:
        output.write(digests, part)
    assert {tensor.name: digests.of(tensor) for tensor in output.tensors} == output.expected()


@settings(max_examples=30, deadline=None)
@given(threads=st.integers(2, 6), later=st.booleans())
def test_several_threads(threads: Any, later: Any) -> None:
    output = Output(1200, 64, 1000, 1280)
    digests = TensorDigests(output.read_back, {"t2"} if later else ())
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: output.write(digests, part), output.parts(64)))
    assert {tensor.name: digests.of(tensor) for tensor in output.tensors} == output.expected()


def test_chunks_in_order_are_never_read_back() -> None:
    output = Output(500, 300)
    digests = TensorDigests(output.read_back)
    for part in output.parts(64):
        output.write(digests, part)
    assert {tensor.name: digests.of(tensor) for tensor in output.tensors} == output.expected()
    assert output.reads == []


def test_an_early_chunk_is_read_back_as_soon_as_its_turn_comes() -> None:
    output = Output(192)
    digests = TensorDigests(output.read_back)
    first, second, third = output.parts(64)
    for part in (second, third, first):
        output.write(digests, part)
    assert output.reads == [("t0", 64, 128), ("t0", 128, 192)]
    assert digests.of(output.tensors[0]) == output.expected()["t0"]


def test_a_tensor_for_later_is_read_back_when_it_is_asked_for() -> None:
    output = Output(192)
    digests = TensorDigests(output.read_back, {"t0"})
    for part in output.parts(64):
        output.write(digests, part)
    assert output.reads == []
    assert digests.of(output.tensors[0]) == output.expected()["t0"]
    assert output.reads == [("t0", 0, 192)]


@pytest.mark.parametrize(
    ("sizes", "later"),
    [
        ([], set()),
        ([5, 0, 7], {"t0", "t1", "t2"}),
        ([100 * MIB, 284 * MIB, 100 * MIB], {"t1", "t2"}),
        ([1, 285 * MIB, 100 * MIB], {"t2"}),
        ([1, 385 * MIB], set()),
    ],
)
def test_the_last_tensors_up_to_384_mib_are_for_later(sizes: list[int], later: set[str]) -> None:
    assert to_take_later([planned(f"t{i}", size) for i, size in enumerate(sizes)]) == later
