"""What a run takes, of numbers that can be added up by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from belay_cli.planning.estimate import Cluster, Rates, Work, estimate

WORK = Work(read=1200, written=100, headers=5, opens=6, fingerprinted=40, later=60, longest=10, tensors=2)
RATES = Rates(
    *(100.0, 200.0, 50.0, 20.0, 10.0), threads=2, open=0.5, header=0.25, tensor=0.125
)  # read, arithmetic, write, sha256, store
HERE = {
    "planning": 1.25,
    "fingerprints": 2.4,  # hashed in 2, read in 0.4
    "opening": 1.5,  # 6 · 0.5, by two threads
    "waiting": 0.0,
    "reading": 12.0,
    "arithmetic": 6.0,
    "writing": 2.0,
    "digests": 2.0,  # of the 40 that are not left
    "sync": 10.0,
    "bookkeeping": 0.25,
}


def test_on_one_machine_the_parts_add_up() -> None:
    found = estimate(WORK, RATES)
    assert found.parts == pytest.approx(HERE)
    assert found.seconds == pytest.approx(37.4)
    assert found.bottleneck == "reading"


def test_what_is_left_to_hash_is_hashed_while_the_disk_takes_the_data() -> None:
    def sync(work: Work) -> float:
        return estimate(work, RATES).parts["sync"]

    assert sync(replace(WORK, synced=False)) == pytest.approx(60 / 20 + 60 / 50)
    assert sync(replace(WORK, later=100, longest=0)) == 10  # 7 of them hashing
    one_thread = replace(WORK, synced=False, longest=60)  # the other has nothing to do
    assert sync(one_thread) == pytest.approx(2 * (60 / 20 + 60 / 50))


def test_a_file_system_delivers_while_others_compute() -> None:
    of_node = estimate(WORK, replace(RATES, deliver=40)).parts
    assert of_node["waiting"] == pytest.approx(1200 / 40 - 12 - 6 - 2 - 2)
    assert estimate(WORK, replace(RATES, deliver=60)).parts["waiting"] == 0
    assert {**of_node, "waiting": 0.0} == pytest.approx(HERE)


def test_nodes_share_the_work_and_the_file_system() -> None:
    found = estimate(WORK, replace(RATES, deliver=40), Cluster(nodes=4, barriers=3, barrier=0.5)).parts
    assert found == pytest.approx(
        {
            "planning": 1.25,  # rank 0 alone
            "fingerprints": 0.6,
            "opening": 0.375,
            "waiting": 1200 / 160 - 5.5,
            "reading": 3.0,
            "arithmetic": 1.5,
            "writing": 0.5,
            "digests": 0.5,
            "sync": 2.5,
            "bookkeeping": 1.75,
        }
    )
    shared = Cluster(nodes=4, deliver=80, store=20, opens=2)
    limited = estimate(WORK, replace(RATES, deliver=40), shared).parts
    assert limited["waiting"] == 1200 / 80 - 5.5
    assert limited["sync"] == 5
    assert limited["opening"] == 3
    assert estimate(WORK, RATES, shared).bottleneck == "waiting"


def test_nothing_takes_no_time() -> None:
    assert estimate(Work(0, 0), RATES).seconds == 0
    assert math.isinf(RATES.deliver)
