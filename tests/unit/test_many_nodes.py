"""tests/bench/many_nodes.py: a night of a hundred nodes on paper, and what the manual says of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.bench.many_nodes import WORKERS, Night, Site, simulated, table

MANUAL = Path(__file__).parents[2] / "res/docs/scaling.md"


@pytest.fixture(scope="module")
def night() -> Night:
    return simulated(Site())


def test_no_domain_is_saved_twice_and_none_is_left_out(night: Night) -> None:
    assert night.saved == dict.fromkeys(night.saved, 1)
    assert len(night.saved) == 100 * 20 + 20
    assert night.left_out == set()
    assert night.visits == 99 * 20


def test_a_node_has_no_more_restics_at_once_than_workers() -> None:
    one = simulated(Site(nodes=1, shared=0))
    assert one.at_once == WORKERS
    assert sorted(Counter(begin for begin, _ in one.calls).values()) == [1, 1, 2, 3, 3, 3, 3, 3, 3]


def test_each_restic_reads_the_locks_of_the_others() -> None:
    assert Night(calls=[(0, 10), (5, 20), (15, 16)]).lock_reads == 2 + 2


@pytest.mark.parametrize("nodes", [100, 10])
def test_the_manual_has_these_numbers(nodes: int) -> None:
    site = Site(nodes=nodes)
    rows = [line.split(" | ") for line in MANUAL.read_text(encoding="utf-8").splitlines()]
    shown = {row[0].lstrip("| "): row[1 if nodes == 100 else 2].rstrip(" |") for row in rows if len(row) == 3}
    expected = table(site, simulated(site))
    assert [(what, shown.get(what)) for what, _ in expected] == list(expected)
