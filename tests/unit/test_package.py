"""The Debian package's scripts take nothing from what runs, and nothing that an admin cannot get back."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

DEBIAN = Path(__file__).parents[2] / "debian"
UPGRADE, REMOVAL = ("preinst", "upgrade", "1.0.0"), ("prerm", "remove")
THAW = "virt-rbd-backup-thaw.service"
# Prints those units of $RUNNING that one of the patterns among its arguments matches, as systemctl does.
SYSTEMCTL = """#!/bin/bash
for unit in $RUNNING; do for pattern; do
    [[ $unit != $pattern ]] || echo "$unit loaded activating start of it"
done; done
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """Give a root with a short name: that of a socket has 107 bytes at the most."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def script(
    name: str,
    *arguments: str,
    root: Path | None = None,
    path: str = "/usr/sbin:/usr/bin:/sbin:/bin",
    running: str = "",
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "DPKG_ROOT": str(root or ""), "RUNNING": running}
    command = ["sh", str(DEBIAN / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Give a PATH with a systemctl for which $RUNNING runs."""
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    return f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.mark.parametrize("arguments", [UPGRADE, REMOVAL])
@pytest.mark.parametrize(
    "service",
    [
        "virt-rbd-backup.service",
        "virt-rbd-backup@db.service",
        "virt-rbd-backup-drill.service",
        "virt-rbd-backup-copy@db.service",
    ],
)
def test_it_is_neither_upgraded_nor_removed_while_a_service_runs(
    path: str, service: str, arguments: tuple[str, ...]
) -> None:
    done = script(*arguments, path=path, running=service)
    assert (done.returncode, f"error: {service} is running" in done.stderr) == (1, True)
    assert f"hint: wait until it ends, or stop it: systemctl stop {service}\n" in done.stderr


def test_while_a_guest_may_be_frozen_it_is_upgraded_but_not_removed(path: str) -> None:
    assert script(*UPGRADE, path=path, running=THAW).returncode == 0
    done = script(*REMOVAL, path=path, running=THAW)
    assert (done.returncode, f"error: {THAW} is running: a guest may be frozen" in done.stderr) == (1, True)
    assert "virsh domfsthaw" in done.stderr
    assert "systemctl stop" not in done.stderr


@pytest.mark.parametrize("arguments", [UPGRADE, REMOVAL])
@pytest.mark.parametrize("answer", ["exit 1", "exit 127"])
def test_where_systemd_does_not_run_it_is_upgraded_and_removed(
    path: str, tmp_path: Path, answer: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\n{answer}\n")
    done = script(*arguments, path=path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [UPGRADE, REMOVAL])
@pytest.mark.parametrize("lock", ["run.lock", "groups/db/run.lock"])
def test_it_is_neither_upgraded_nor_removed_during_a_run_by_hand(
    root: Path, lock: str, arguments: tuple[str, ...]
) -> None:
    path = root / "run/virt-rbd-backup" / lock
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = script(*arguments, root=root)
    assert (done.returncode, "error: a run or cleanup by hand is active" in done.stderr) == (1, True)
    assert (script(*arguments, root=root).returncode, script(*arguments, root=root).stderr) == (0, "")


@pytest.mark.parametrize("arguments", [UPGRADE, REMOVAL])
def test_it_is_neither_upgraded_nor_removed_while_a_guest_reads_a_restore_point(
    root: Path, arguments: tuple[str, ...]
) -> None:
    directory = root / "images/virt-rbd-backup-0123"
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "nbd"))
        listening.listen()
        done = script(*arguments, root=root)
    assert (done.returncode, "error: an instant restore" in done.stderr) == (1, True)
    assert os.path.lexists(directory / "nbd")  # as after a kill
    assert script(*arguments, root=root).returncode == 0


def test_no_upgrade_stops_a_unit_that_it_does_not_start_again() -> None:
    """debhelper does so where a unit is not to be started at installation."""
    rules = (DEBIAN / "rules").read_text().splitlines()
    lines = [line for line in rules if line.startswith("\tdh_installsystemd") and "--no-start" in line]
    assert len(lines) == 3
    kept = ("--restart-after-upgrade", "--no-stop-on-upgrade")
    assert [line for line in lines if not any(option in line for option in kept)] == []


def test_purging_spares_the_configuration_of_rclone_and_nothing_else_of_the_state(root: Path) -> None:
    state, cache = root / "var/lib/virt-rbd-backup", root / "var/cache/virt-rbd-backup"
    for directory in (state / "reports", cache):
        directory.mkdir(parents=True)
    for file in (state / "reports/one.json", state / ".hidden", state / "rclone.conf", cache / "index"):
        file.write_text("content")
    assert script("postrm", "purge", root=root).returncode == 0
    assert [path for path in root.rglob("*") if path.is_file()] == [state / "rclone.conf"]
    (state / "rclone.conf").unlink()
    assert script("postrm", "purge", root=root).returncode == 0
    assert [path.name for path in (root / "var").rglob("virt-rbd-backup")] == []
    assert script("postrm", "purge", root=root).returncode == 0


def linked(units: Path, wanted_by: str, name: str) -> None:
    """Leave what `systemctl enable` does."""
    (units / f"{wanted_by}.wants").mkdir(parents=True, exist_ok=True)
    (units / f"{wanted_by}.wants" / name).symlink_to(f"/lib/systemd/system/{name}")


def test_a_removal_leaves_no_copy_enabled_and_no_timer_of_a_group(root: Path) -> None:
    units = root / "etc/systemd/system"
    linked(units, "virt-rbd-backup.service", "virt-rbd-backup-copy.service")
    linked(units, "virt-rbd-backup.service", "backup-page.service")
    linked(units, "virt-rbd-backup@db.service", "virt-rbd-backup-copy@db.service")
    linked(units, "timers.target", "virt-rbd-backup@db.timer")
    assert script("prerm", "upgrade", "2.0", root=root).returncode == 0
    assert len([path for path in units.rglob("*") if path.is_symlink()]) == 4
    done = script(*REMOVAL, root=root)
    assert (done.returncode, done.stderr) == (0, "")
    wants = units / "virt-rbd-backup.service.wants"
    assert {*units.rglob("*")} == {wants, wants / "backup-page.service"}


def test_it_is_not_installed_beside_what_res_install_has_put_there(root: Path) -> None:
    """Its units in /etc would hide the package's."""
    assert script("preinst", "install", root=root).returncode == 0
    pristine = root / "opt/virt-rbd-backup/res/config.py.installed"
    pristine.parent.mkdir(parents=True)
    pristine.touch()
    done = script("preinst", "install", root=root)
    assert (done.returncode, "hint: /opt/virt-rbd-backup/res/install --uninstall" in done.stderr) == (1, True)
