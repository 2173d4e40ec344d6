"""Two runs that meet: on one node, and on two."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.provoke import HeldBackRestic
from tests.integration.node import Node
from tests.lab import Lab
from tests.lab.sample import ARCHIVE


def test_the_second_run_on_a_node_is_refused(node: Node, large: str) -> None:
    with _busy(node, large) as process:
        second = node.run("backup", ARCHIVE)
        assert second.returncode == 11
        assert "another run is active" in second.stderr
        assert node.run("cleanup").returncode == 11
        process.terminate()
        process.communicate(timeout=240)
    assert ARCHIVE not in {one["hostname"] for one in node.snapshots()}


def test_two_nodes_never_back_up_the_same_domain_at_once(node: Node, large: str, tmp_path: Path) -> None:
    with _busy(node, large) as process:
        other = node.run("backup", large, ARCHIVE, RUNTIME_DIR=str(tmp_path / "other-node"))
        assert other.returncode == 3
        domains = node.report()["domains"]
        assert (domains[large]["status"], domains[ARCHIVE]["status"]) == ("failed", "saved")
        assert "another run is backing up this domain" in domains[large]["reason"]
        process.terminate()
        process.communicate(timeout=240)


def test_the_lock_is_kept_for_as_long_as_the_job_takes(
    node: Node, lab: Lab, large: str, tmp_path: Path
) -> None:
    with _busy(node, large, LOCK_DURATION=6) as process:
        began = time.monotonic()
        while time.monotonic() < began + 14:  # more than two durations: without renewal it would be free
            other = node.run("backup", large, RUNTIME_DIR=str(tmp_path / "other-node"))
            assert other.returncode == 3
            assert process.poll() is None
        process.terminate()
        process.communicate(timeout=240)


@contextmanager
def _busy(node: Node, domain: str, **constants: object) -> Iterator[subprocess.Popen[str]]:
    """Have a run that is about to stream the domain's second image for as long as the block takes."""
    restic = HeldBackRestic(node, "vdb.img")
    with node.started("backup", domain, RESTIC_BINARY=restic.path, **constants) as process:
        restic.reached()
        yield process
