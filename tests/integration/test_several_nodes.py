"""Ten nodes that define the same domains, with one cluster and one repository, begin in the same second."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.integration.left_behind import left_behind
from tests.integration.node import Node
from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, make_image

NODES = 10
DOMAINS = [f"shared{number}" for number in range(3)]


@pytest.fixture
def shared(lab: Lab) -> Iterator[Sequence[str]]:
    """Define the domains, which are shut off, so that each node would save them."""
    with ExitStack() as stack:
        for name in DOMAINS:
            make_image(lab, f"vms/{name}", 8 * MIB, {0: 3 * MIB})
            stack.callback(lab.delete_image, f"vms/{name}")
            lab.define_domain(name, [RbdDisk("vda", f"vms/{name}")])
            stack.callback(lab.undefine_domain, name)
        yield DOMAINS


def _nodes(first: Node) -> Sequence[Node]:
    """Give nodes of their own names, directories and caches that share the first one's repository."""
    nodes = []
    for number in range(NODES):
        directory = first.directory / f"node{number}"
        directory.mkdir()
        one = Node(first.lab, directory)
        # ten runs at once are slow: no lock may expire meanwhile
        one.constants.update(OUTPUT="restic_incremental", LOCK_DURATION=60, CEPH_TIMEOUT=60)
        one.constants["RESTIC_REPOSITORY"] = first.constants["RESTIC_REPOSITORY"]
        nodes.append(one)
    return nodes


def _back_up(node: Node) -> subprocess.CompletedProcess[str]:
    named = ("unshare", "--uts", "sh", "-c", f'hostname {node.directory.name}; exec "$@"', "sh")
    constants = {"INCLUDE_DOMAINS": ["shared*"], "MIN_AGE": 3600, "RETRY_FOR": 120, "WORKERS": 1}
    return node.run_within(named, "backup", **constants)


def test_each_domain_is_saved_once_and_none_is_left_out(node: Node, lab: Lab, shared: Sequence[str]) -> None:
    nodes = _nodes(node)
    with ThreadPoolExecutor(NODES) as threads:
        runs = list(threads.map(_back_up, nodes))
    try:
        _require_saved_once(node, nodes, runs)
        assert [one for other in nodes for one in left_behind(lab, other) if ".kept." not in one] == []
    finally:
        assert nodes[0].run("cleanup", "--all").returncode == 0


def _require_saved_once(
    node: Node, nodes: Sequence[Node], runs: Sequence[subprocess.CompletedProcess[str]]
) -> None:
    said = "\n".join(run.stderr for run in runs)
    assert [run.returncode for run in runs] == [0] * NODES, said
    assert Counter(one["hostname"] for one in node.snapshots("definition")) == dict.fromkeys(DOMAINS, 1), said
    results = [domain for one in nodes for domain in one.report()["domains"].items()]
    saved = [name for name, result in results if result["status"] == "saved"]
    assert sorted(saved) == DOMAINS
    assert {result["status"] for _, result in results} == {"saved", "skipped"}
    assert "retrying" not in said, "nobody waits for another node's backup"
