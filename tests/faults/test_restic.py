"""Faults of restic and its repository."""

from __future__ import annotations

from tests.faults.provoke import restic_script
from tests.integration.node import Node


def test_restic_dying_half_way_fails_the_domain(node: Node, large: str) -> None:
    dying = restic_script(node, 'case "$*" in *vdb.img*) head --bytes=10000000 >/dev/null; kill -9 $$;; esac')
    done = node.run("backup", large, RESTIC_BINARY=str(dying))
    assert done.returncode == 3
    assert "SIGKILL" in node.report()["domains"][large]["reason"]
    assert node.snapshots() == []


def test_restic_that_saves_less_than_it_was_sent_is_found_out(node: Node, large: str) -> None:
    short = restic_script(node, 'case "$*" in *vdb.img*) head --bytes=10000000 | restic "$@"; exit;; esac')
    done = node.run("backup", large, RESTIC_BINARY=str(short))
    assert done.returncode == 3
    assert node.report()["domains"][large]["status"] == "failed"
    assert node.snapshots() == []
