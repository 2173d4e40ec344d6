"""What list and check say, and how soon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.node import Node
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, MEDIA, WEB


def test_list_shows_what_is_backed_up_and_why_the_rest_is_not(node: Node, lab: Lab) -> None:
    done = node.run("list", "--json", EXCLUDE_DOMAINS=[DATABASE])
    assert done.returncode == 0, done.stderr
    domains = {domain["name"]: domain for domain in json.loads(done.stdout)}
    assert {name: domain["selected"] for name, domain in domains.items()} == {
        WEB: True,
        ARCHIVE: True,
        MEDIA: True,
        DATABASE: False,
    }
    assert domains[DATABASE]["reason"] == "in EXCLUDE_DOMAINS"
    disks = {disk["target"]: disk for disk in domains[MEDIA]["disks"]}
    assert disks["vda"]["image"] == f"vms/{MEDIA}"
    assert (disks["vdb"]["image"], disks["vdb"]["reason"]) == (None, "no RBD image (file)")
    assert disks["sda"]["reason"] == "a cdrom without a medium"
    table = node.run("list").stdout
    assert f"vms/{MEDIA}" in table
    assert "no: a cdrom without a medium" in table


def test_list_needs_neither_ceph_nor_restic(node: Node) -> None:
    done = node.run("list", CEPH_CONF="/nowhere", RESTIC_REPOSITORY="")
    assert done.returncode == 0, done.stderr


def test_check_finds_no_problem_where_there_is_none(node: Node) -> None:
    done = node.run("check")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("0 problems\n")
    assert f"domain {WEB}: the guest agent answers" in done.stdout
    assert f"domain {DATABASE}: no guest agent is connected; will be paused" in done.stdout


def test_check_names_the_domain_that_has_no_agent_where_one_is_required(node: Node) -> None:
    done = node.run("check", FREEZE="required")
    assert done.returncode == 1
    assert f"PROBLEM  domain {DATABASE}: no guest agent is connected" in done.stdout


def test_check_finds_a_missing_image_a_missing_repository_and_a_wrong_password(node: Node, lab: Lab) -> None:
    lab.define_domain("broken", [RbdDisk("vda", "vms/no-such-image")])
    try:
        done = node.run("check", RESTIC_REPOSITORY=str(node.directory / "nowhere"))
    finally:
        lab.undefine_domain("broken")
    assert done.returncode == 1
    assert "PROBLEM  domain broken, disk vda: image vms/no-such-image" in done.stdout
    assert "PROBLEM  output restic" in done.stdout
    assert done.stdout.count("hint: ") == 2

    wrong = node.directory / "wrong-password"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    done = node.run("check", RESTIC_PASSWORD_FILE=str(wrong))
    assert done.returncode == 1
    assert "wrong password" in done.stdout


def test_a_cephx_user_that_may_not_make_snapshots_is_found_before_the_backup(node: Node, lab: Lab) -> None:
    with capabilities(lab, mon="allow r", osd="allow r pool=vms, profile rbd pool=ssd"):
        done = node.run("check")
    assert done.returncode == 1
    assert "PROBLEM  pool vms: client.libvirt may make snapshots" in done.stdout
    assert "hint: ceph auth caps client.libvirt mon 'profile rbd'" in done.stdout


def test_a_cluster_that_does_not_answer_is_found_within_seconds(node: Node, lab: Lab) -> None:
    xml = lab.virsh("dumpxml", ARCHIVE).replace(ARCHIVE, "elsewhere").replace("port='6789'", "port='9'")
    lab.virsh("define", "/dev/stdin", stdin=xml.replace(lab.virsh("domuuid", ARCHIVE).strip(), "").encode())
    began = time.monotonic()
    try:
        done = node.run("check", CEPH_TIMEOUT=800)
    finally:
        lab.undefine_domain("elsewhere")
    assert time.monotonic() - began < 600, "not after CEPH_TIMEOUT"
    assert done.returncode == 1
    assert "PROBLEM  cluster 127.0.0.1:9 as client.libvirt" in done.stdout


def test_an_unreachable_libvirt_is_one_line_and_a_hint(node: Node) -> None:
    done = node.run("backup", LIBVIRT_URI="qemu+unix:///system?socket=/nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot connect to libvirt")
    assert len(done.stderr.splitlines()) == 2


def test_nothing_is_started_when_the_repository_is_out_of_reach(node: Node, lab: Lab) -> None:
    done = node.run("backup", RESTIC_REPOSITORY=str(node.directory / "nowhere"))
    assert done.returncode == 1
    assert "quiesced for" not in done.stderr
    report = node.report()
    assert (report["exit_code"], report["domains"]) == (1, {})
    assert len(done.stderr.splitlines()) == 2


@contextmanager
def capabilities(lab: Lab, **services: str) -> Iterator[None]:
    """Let the domains' cephx user do only this during the block."""
    profile = {"mon": "profile rbd", "osd": "profile rbd pool=vms, profile rbd pool=ssd"}
    _set_capabilities(lab, services)
    try:
        yield
    finally:
        _set_capabilities(lab, profile)


def _set_capabilities(lab: Lab, services: dict[str, str]) -> None:
    pairs = [word for pair in services.items() for word in pair]
    lab.ceph("auth", "caps", f"client.{lab.ceph_user}", *pairs)
