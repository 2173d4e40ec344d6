"""Repositories behind real servers: sshd, radosgw, an append-only REST server, rclone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.provoke import received_bytes
from tests.integration.back_ends import BACK_ENDS, BackEnd
from tests.integration.node import SLOW, Node, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, MIB, large_domain

DELAY = 0.02  # seconds for each piece, as to a site far away


@pytest.fixture(scope="module")
def large(lab: Lab) -> Iterator[str]:
    with large_domain(lab) as name:
        yield name


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest, node: Node) -> Iterator[BackEnd]:
    with BACK_ENDS[request.param](node, 0) as made:
        node.constants.update(made.constants)
        yield made


def test_backup_interruption_verification_restore_and_prune(
    node: Node, lab: Lab, large: str, back_end: BackEnd, tmp_path: Path
) -> None:
    words = []
    with node.started("backup", large, "--log-level", "debug", MAX_READ_RATE=4 * MIB) as process:
        wait_until(lambda: received_bytes(node) > 4 * MIB, 60, "restic has got a part of the image")
        command_lines = []
        for pid in node.processes(""):
            with suppress(OSError):  # it has just ended
                command_lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        process.terminate()
        output, _ = process.communicate(timeout=300)
        words.append(output)
    assert process.returncode == 143, output
    done = node.run("check")
    assert done.returncode == 0, done.stdout
    for _ in range(2):
        done = node.run("backup", ARCHIVE, large, "--log-level", "debug")
        words.append(done.stderr)
        assert done.returncode == 0, done.stderr
    assert node.run("verify").returncode == 0
    restored = tmp_path / "restored"
    assert node.run("restore", ARCHIVE, "--disk", "vda", "--to-file", str(restored)).returncode == 0
    original = tmp_path / "original"
    lab.rbd("export", "--no-progress", f"vms/{ARCHIVE}", str(original))
    assert restored.read_bytes() == original.read_bytes()

    back_end.restic(
        "forget", "--prune", "--group-by=host", "--keep-last=2"
    )  # of each domain: its images, its manifest
    back_end.restic("check")
    assert node.run("backup", ARCHIVE).returncode == 0
    points = json.loads(node.run("restore-points", ARCHIVE, "--json").stdout)
    assert [point["complete"] for point in points] == [True] * len(points)

    for secret in back_end.secrets:
        assert not any(secret.encode() in line for line in command_lines)
        assert not any(secret in text for text in words)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_slow_connection_that_breaks_costs_no_domain(node: Node, large: str, name: str) -> None:
    with BACK_ENDS[name](node, DELAY) as back_end:
        node.constants.update(back_end.constants, RETRY_FOR=120)
        with node.started("backup", large, MAX_READ_RATE=SLOW) as process:
            wait_until(lambda: received_bytes(node) > 4 * MIB, 60, "restic has got a part of the image")
            back_end.link.cut()
            output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        back_end.link.delay = 0
        assert node.run("verify").returncode == 0
