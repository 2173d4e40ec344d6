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


@pytest.fixture
def idle(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give what the script defines, on a node with nothing under way."""
    monkeypatch.setattr(script["Node"], "require_idle", lambda node, removal=False: None)
    return script


def linked(root: Path, wanted_by: str, name: str) -> None:
    """Leave what `systemctl enable` does."""
    wants = root / f"etc/systemd/system/{wanted_by}.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / name).symlink_to(f"/etc/systemd/system/{name}")


def test_a_removal_disables_copies_too(
    root: Path, idle: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_really(root) == 0
    linked(root, "virt-rbd-backup.service", "virt-rbd-backup-copy.service")
    linked(root, "virt-rbd-backup@db.service", "virt-rbd-backup-copy@db.service")
    linked(root, "timers.target", "virt-rbd-backup@db.timer")
    idle["uninstall"](idle["Node"](root, dry_run=True), False)
    (disabled,) = [line for line in capsys.readouterr().out.splitlines() if "systemctl disable" in line]
    copies = {"virt-rbd-backup-copy.service", "virt-rbd-backup-copy@db.service"}
    assert {*copies, "virt-rbd-backup.timer", "virt-rbd-backup@db.timer"} <= {*disabled.split()}


def install_really(root: Path) -> int:
    command = ["/usr/bin/python3", str(ROOT / "res/install"), "--destdir", str(root)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_a_removal_beside_the_package_leaves_on_what_was_on(
    root: Path, idle: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """systemctl disable would turn off the package's units, which have the same names."""
    assert install_really(root) == 0
    linked(root, "timers.target", "virt-rbd-backup.timer")
    (root / "usr/share/virt-rbd-backup").mkdir(parents=True)
    node = idle["Node"](root, dry_run=True)
    idle["uninstall"](node, False)
    steps = [line for line in capsys.readouterr().out.splitlines() if "systemctl" in line]
    assert steps == [
        "would run systemctl daemon-reload",
        "would run systemctl reenable virt-rbd-backup.timer",
        "would run systemctl try-restart virt-rbd-backup.timer virt-rbd-backup-drill.timer"
        " virt-rbd-backup@*.timer virt-rbd-backup-drill@*.timer",
    ]
    with pytest.raises(idle["Refusal"], match="Debian's package"):
        idle["uninstall"](node, True)
