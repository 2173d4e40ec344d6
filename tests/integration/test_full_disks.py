"""Full disks under the program's own directories and restic's cache, and a read-only root file system."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.node import Node
from tests.lab.sample import ARCHIVE, DATABASE

# Nothing can be written but below the node's directory.
READ_ONLY = 'mount --bind "$0" "$0"; mount -o remount,bind,ro /; ! touch /x 2>&- || exit 9; exec "$@"'


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """Have a full file system there during the block."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "tmpfs", directory], check=True)
    try:
        (directory / "filler").write_bytes(bytes(16384))
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def _require_whole(node: Node) -> None:
    """Have the last run report what it saved, and the restore point be whole."""
    report = node.report()
    assert (report["exit_code"], report["domains"][ARCHIVE]["status"]) == (0, "saved")
    done = node.run("verify", ARCHIVE)
    assert done.returncode == 0, done.stderr
    assert node.run("cleanup", "--all").returncode == 0


@pytest.mark.parametrize("what", ["state", "cache"])
def test_a_full_disk_under_what_is_only_remembered_costs_no_backup(node: Node, what: str) -> None:
    node.constants["OUTPUT"] = "restic_incremental"
    with full(node.directory / what):
        done = node.run("backup", ARCHIVE)
    assert done.returncode == 0, done.stderr
    if what == "state":
        assert "error: cannot store the report in " in done.stderr
        assert "no space left on device (hint: see STATE_DIR)" in done.stderr
    _require_whole(node)


def test_with_a_read_only_root_a_guest_is_saved(node: Node) -> None:
    within = ("unshare", "--mount", "sh", "-ec", READ_ONLY, str(node.directory))
    done = node.run_within(within, "backup", ARCHIVE, DATABASE)
    assert done.returncode == 0, done.stderr
    assert node.report()["domains"][DATABASE]["consistency"] == "paused"
    _require_whole(node)
    for command in ("check", "status", "report"):
        done = node.run_within(within, command)
        assert done.returncode == 0, done.stdout + done.stderr
