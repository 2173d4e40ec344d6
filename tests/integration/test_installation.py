"""Installed on a machine with systemd, the units do their work, under all the limits that they set."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.provoke import agent_hook, freeze_status
from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.machine import Machine, machine
from tests.lab.sample import ARCHIVE, WEB
from tests.quick_repository import make_repository
from tests.unit.hook_files import HookFiles

ROOT = Path(__file__).parents[2]
QEMU_UID = 64055  # whom libvirtd has to know, as Debian has compiled it in
ETC = "/etc/virt-rbd-backup"
DROP_INS = "/etc/systemd/system/virt-rbd-backup{}.service.d"
# What is not in the usual place here: the cluster's files, and a repository on this node.
PLACES = "[Service]\nBindReadOnlyPaths={lab}\nBindPaths={node}\nReadWritePaths={node}\n"


@pytest.fixture
def booted(node: Node, tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "systemd.log") as booted:
        yield booted
    assert node.run("cleanup", "--all").returncode == 0


def test_the_services_work_under_their_limits(booted: Machine, node: Node, lab: Lab) -> None:
    done = booted.run(str(ROOT / "res/install"))
    assert done.returncode == 0, done.stdout
    configure(booted, node, lab, INCLUDE_DOMAINS=[WEB, ARCHIVE])
    start(booted, "virt-rbd-backup.service")
    assert saved(node) == {WEB: "filesystem", ARCHIVE: "offline"}
    start(booted, "virt-rbd-backup-drill.service")
    images = node.directory / "images"
    images.mkdir()
    instant = {"DRILL_POOL": "", "DRILL_DIR": str(images), "DRILL_BOOT_TIMEOUT": 300}
    configure(booted, node, lab, INCLUDE_DOMAINS=[WEB], **instant)
    start(booted, "virt-rbd-backup-drill.service")  # of the other domain
    start(booted, "virt-rbd-backup-drill.service")
    printed = booted.run("journalctl", "--no-pager", "--unit=virt-rbd-backup-drill.service").stdout
    assert "instant drill of" in printed
    assert "booted out of the repository in" in printed
    assert list(images.iterdir()) == []

    incremental = f"{ROOT}/res/restic-incremental.conf"
    booted.run("install", "-D", "-t", DROP_INS.format(""), incremental)
    hooks, metrics = HookFiles(node.directory), node.directory / "metrics.prom"
    for name in ("before-run.d/stop", "before-freeze.d/stop", "after-job.d/go-on", "after-run.d/go-on"):
        hooks.add(name)
    notify = [str(hooks.add("notify", f"cat >{node.directory}/notified"))]
    told = {"HOOKS": str(hooks.directory), "NOTIFY_COMMAND": notify, "NOTIFY_ON": "always"}
    told["METRICS_FILE"] = str(metrics)
    configure(booted, node, lab, INCLUDE_DOMAINS=[ARCHIVE, WEB], OUTPUT="restic_incremental", **told)
    start(booted, "virt-rbd-backup.service")
    assert saved(node) == {WEB: "filesystem", ARCHIVE: "offline"}
    ran = ["before-run.d/stop", *2 * ["before-freeze.d/stop"], *2 * ["after-job.d/go-on"]]
    assert sorted(hooks.ran) == sorted([*ran, "after-run.d/go-on", "notify"])
    assert json.loads((node.directory / "notified").read_text())["run"] == node.report()["run"]
    assert f'domain="{WEB}"' in metrics.read_text()
    start(booted, "virt-rbd-backup.service")
    assert "0 of 3 segments read" in booted.run("journalctl", "--no-pager").stdout
    done = booted.run("virt-rbd-backup", "backup", ARCHIVE)  # by hand
    assert done.returncode == 0, done.stdout


def configure(booted: Machine, node: Node, lab: Lab, **constants: object) -> None:
    """Give the machine its settings, and its services the places that are theirs here."""
    own = {
        "RUNTIME_DIR": "/run/virt-rbd-backup",
        "STATE_DIR": "/var/lib/virt-rbd-backup",
        "RESTIC_PASSWORD_FILE": f"{ETC}/restic-password",
        "DRILL_POOL": "ssd",
    }
    node.command(**{**own, **constants})
    booted.run("cp", str(node.directory / "settings.py"), f"{ETC}/config.py")
    booted.run("cp", "--preserve=mode", str(node.password_file), f"{ETC}/restic-password")
    (node.directory / "places.conf").write_text(PLACES.format(lab=lab.directory, node=node.directory))
    for kind in ("", "-drill"):
        booted.run("install", "-D", "-t", DROP_INS.format(kind), f"{node.directory}/places.conf")
    booted.run("systemctl", "daemon-reload")


def start(booted: Machine, service: str) -> None:
    done = booted.run("systemctl", "start", service)
    assert done.returncode == 0, booted.run("journalctl", "--no-pager", f"--unit={service}").stdout


def saved(node: Node) -> dict[str, str]:
    """Give the consistency of each domain that the last run has saved."""
    domains = node.report()["domains"].values()
    return {one["name"]: one["consistency"] for one in domains if one["status"] == "saved"}


def test_a_guest_that_the_service_could_not_thaw_is_thawed_after_its_end(
    booted: Machine, node: Node, lab: Lab
) -> None:
    booted.run(str(ROOT / "res/install"))
    configure(booted, node, lab, INCLUDE_DOMAINS=[WEB, ARCHIVE], FREEZE_TIMEOUT=9, RETRY_FOR=0)
    (node.directory / "stop.conf").write_text("[Service]\nTimeoutStopSec=15\n")  # instead of minutes
    booted.run("install", "-D", "-t", DROP_INS.format(""), f"{node.directory}/stop.conf")
    booted.run("systemctl", "daemon-reload")
    with agent_hook(lab, WEB, "freeze", "sleep 200"):
        done = booted.run("systemctl", "start", "virt-rbd-backup.service")
        assert done.returncode != 0
        assert booted.run("ls", "/run/virt-rbd-backup/held").stdout.endswith(".json\n")
        assert is_active(booted, "virt-rbd-backup.service") == "failed"
        assert is_active(booted, "virt-rbd-backup-thaw.service") == "active"
        done = booted.run("virt-rbd-backup", "backup", ARCHIVE)  # a run is neither refused nor delayed
        assert "another run" not in done.stdout
        ended = ("inactive",)
        wait_until(
            lambda: is_active(booted, "virt-rbd-backup-thaw.service") in ended, 400, "it ends by itself"
        )
    assert booted.run("ls", "/run/virt-rbd-backup/held").stdout == ""
    assert freeze_status(lab, WEB) == "thawed"


def test_a_copy_follows_each_run_of_the_service(booted: Machine, node: Node, lab: Lab) -> None:
    booted.run(str(ROOT / "res/install"))
    second = node.directory / "second"
    make_repository(second)
    configure(booted, node, lab, INCLUDE_DOMAINS=[ARCHIVE], COPY_REPOSITORY=str(second))
    booted.run("install", "-D", "-t", DROP_INS.format("-copy"), f"{node.directory}/places.conf")
    booted.run("systemctl", "daemon-reload")
    assert booted.run("systemctl", "enable", "virt-rbd-backup-copy.service").returncode == 0
    start(booted, "virt-rbd-backup.service")
    wait_until(lambda: any((second / "snapshots").iterdir()), 240, "the restore point is copied")
    wait_until(lambda: is_active(booted, "virt-rbd-backup-copy.service") == "inactive", 240, "it has ended")
    copied = booted.run("virt-rbd-backup", "restore-points", "--from", "copy", "--json")
    assert [point["domain"] for point in json.loads(copied.stdout)] == [ARCHIVE]


def is_active(booted: Machine, service: str) -> str:
    return booted.run("systemctl", "is-active", service).stdout.strip()


def test_the_package_brings_a_service_that_works(
    booted: Machine, node: Node, lab: Lab, tmp_path: Path
) -> None:
    build = tmp_path / "build"
    build.mkdir()
    done = subprocess.run([ROOT / "tests/build-package", build], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = build.glob("*.deb")
    done = booted.run("dpkg", "--install", str(package))
    assert done.returncode == 0, done.stdout
    assert booted.run("test", "-f", "/usr/share/virt-rbd-backup/res/docs/restore.md").returncode == 0
    assert booted.run("systemctl", "is-active", "virt-rbd-backup.timer").stdout == "active\n"
    assert booted.run("systemctl", "is-active", "virt-rbd-backup-drill.timer").stdout == "inactive\n"
    configure(booted, node, lab, INCLUDE_DOMAINS=[ARCHIVE])
    start(booted, "virt-rbd-backup.service")
    assert saved(node) == {ARCHIVE: "offline"}
    timers = ("virt-rbd-backup@archives.timer", "virt-rbd-backup-drill.timer")
    assert booted.run("systemctl", "enable", "--now", *timers).returncode == 0
    copies = ("virt-rbd-backup-copy.service", "virt-rbd-backup-copy@archives.service")
    assert booted.run("systemctl", "enable", *copies).returncode == 0
    wait_until(
        lambda: is_active(booted, "virt-rbd-backup-thaw.service") == "inactive", 60, "nobody is frozen"
    )

    busy = "virt-rbd-backup-drill@busy.service"
    (node.directory / "busy.conf").write_text("[Service]\nExecStart=\nExecStart=/usr/bin/sleep infinity\n")
    booted.run("install", "-D", "-t", f"/etc/systemd/system/{busy}.d", f"{node.directory}/busy.conf")
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "start", "--no-block", busy)
    wait_until(lambda: is_active(booted, busy) == "activating", 60, "it runs")
    for words in (("--install", str(package)), ("--remove", "virt-rbd-backup")):
        done = booted.run("dpkg", *words)
        assert (done.returncode, f"error: {busy} is running" in done.stdout) == (1, True), done.stdout
        assert is_active(booted, busy) == "activating"
        assert booted.run("virt-rbd-backup", "--version").returncode == 0
    booted.run("systemctl", "stop", busy)
    done = booted.run("dpkg", "--install", str(package))
    assert done.returncode == 0, done.stdout
    assert [is_active(booted, timer) for timer in timers] == ["active", "active"]

    done = booted.run("dpkg", "--purge", "virt-rbd-backup")
    assert done.returncode == 0, done.stdout
    assert booted.run("systemctl", "cat", "virt-rbd-backup.service").returncode != 0
    assert [is_active(booted, timer) for timer in timers] == ["inactive", "inactive"]
    assert booted.run("find", "/etc/systemd/system", "-name", "virt-rbd-backup*", "-type", "l").stdout == ""


def test_an_ordinary_user_saves_too(booted: Machine, node: Node, lab: Lab) -> None:
    booted.run(str(ROOT / "res/install"))
    configure(booted, node, lab, INCLUDE_DOMAINS=[WEB, ARCHIVE], CEPH_CONF="/etc/ceph/ceph.conf")
    for line in (
        "groupadd --force --system libvirt",  # what Debian's libvirt does
        "chgrp -R libvirt /run/libvirt && chmod -R g+rwX /run/libvirt",
        f"install -D -m 0644 {lab.ceph_conf} /etc/ceph/ceph.conf",
        *without_root(),
        f"chown virt-rbd-backup: {node.directory} && chown -R virt-rbd-backup: {node.repository}",
        "systemctl daemon-reload",
    ):
        done = booted.run("sh", "-ec", line)
        assert done.returncode == 0, done.stdout
    start(booted, "virt-rbd-backup.service")
    assert saved(node) == {WEB: "filesystem", ARCHIVE: "offline"}


def without_root() -> list[str]:
    """Give the commands of the manual, with a user that the lab's libvirtd, which is outside, knows."""
    section = (ROOT / "res/docs/install.md").read_text().split("## Without root\n")[1]
    lines = section.split("```sh\n")[1].split("```")[0]
    known = f"--non-unique --gid {QEMU_UID}"
    made = f"groupadd {known} virt-rbd-backup && useradd {known} --uid {QEMU_UID}"
    return lines.replace("useradd", made).splitlines()


def test_a_group_has_services_of_its_own_and_a_schedule(booted: Machine, node: Node, lab: Lab) -> None:
    booted.run(str(ROOT / "res/install"))
    configure(booted, node, lab, INCLUDE_DOMAINS=[ARCHIVE])
    booted.run("cp", f"{ETC}/config.py", f"{ETC}/archives.py")
    for kind in ("@", "-drill@"):
        booted.run("install", "-D", "-t", DROP_INS.format(kind), f"{node.directory}/places.conf")
    booted.run("systemctl", "daemon-reload")
    start(booted, "virt-rbd-backup@archives.service")
    report = node.report()
    assert (report["group"], saved(node)) == ("archives", {ARCHIVE: "offline"})
    start(booted, "virt-rbd-backup-drill@archives.service")
    assert booted.run("test", "-d", "/run/virt-rbd-backup/groups/archives").returncode == 0
    assert booted.run("systemctl", "enable", "--now", "virt-rbd-backup@archives.timer").returncode == 0
    assert is_active(booted, "virt-rbd-backup@archives.timer") == "active"
    assert booted.run(str(ROOT / "res/install")).returncode == 0, "an upgrade"
    assert is_active(booted, "virt-rbd-backup@archives.timer") == "active"
    assert booted.run(str(ROOT / "res/install"), "--uninstall").returncode == 0
    assert is_active(booted, "virt-rbd-backup@archives.timer") == "inactive"
