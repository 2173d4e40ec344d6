"""res/install neither replaces nor removes the program while something needs it."""

from __future__ import annotations

import fcntl
import os
import runpy
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
THAW = "virt-rbd-backup-thaw.service"
BOTH = pytest.mark.parametrize("arguments", [[], ["--uninstall"]])


@pytest.fixture
def root() -> Iterator[Path]:
    """Give a root with a short name: that of a socket has 107 bytes at the most."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def install(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["/usr/bin/python3", str(ROOT / "res/install"), "--dry-run", "--destdir", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@BOTH
@pytest.mark.parametrize("lock", ["run.lock", "groups/db/run.lock"])
def test_during_a_run_by_hand_it_is_refused(root: Path, lock: str, arguments: list[str]) -> None:
    path = root / "run/virt-rbd-backup" / lock
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = install(root, *arguments)
    assert (done.returncode, "error: a run or cleanup by hand is active" in done.stderr) == (1, True)
    assert install(root, *arguments).returncode == 0


@BOTH
def test_while_a_guest_reads_a_restore_point_it_is_refused(root: Path, arguments: list[str]) -> None:
    directory = root / "images/virt-rbd-backup-0123"
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "nbd"))
        listening.listen()
        done = install(root, *arguments)
    assert (done.returncode, "error: an instant restore" in done.stderr) == (1, True)
    assert os.path.lexists(directory / "nbd")  # as after a kill
    assert install(root, *arguments).returncode == 0


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give what the script defines, on a node whose systemctl says that the thaw service alone runs."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\n[ "$2" = {THAW} ] && echo active || echo inactive\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    defined = runpy.run_path(str(ROOT / "res/install"))
    monkeypatch.setattr(defined["Node"], "has_systemd", True)
    return defined


def test_while_a_guest_may_be_frozen_it_upgrades_but_does_not_remove(
    root: Path, script: dict[str, Any]
) -> None:
    node = script["Node"](root, dry_run=True)
    node.require_idle()
    with pytest.raises(script["Refusal"]) as refused:
        node.require_idle(removal=True)
    message, hint = refused.value.args
    assert message == f"{THAW} is running"
    assert "virsh domfsthaw" in hint
    assert "systemctl stop" not in hint


def test_an_upgrade_restarts_what_thaws_guests(
    root: Path, script: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/systemd/system/virt-rbd-backup.timer").write_bytes(
        (ROOT / "res/virt-rbd-backup.timer").read_bytes()
    )
    script["install"](script["Node"](root, dry_run=True))
    assert f"would run systemctl try-restart {THAW} virt-rbd-backup.timer" in capsys.readouterr().out
