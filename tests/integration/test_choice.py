"""What decides whether, where and how a domain is backed up: metadata, several libvirts, its last backup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.faults.provoke import HeldBackRestic
from tests.integration.node import Node, metadata
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, MEDIA, MIB, WEB, make_image


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is put on it is undone after the test, in reverse."""
    with ExitStack() as stack:
        yield stack


def test_a_domain_s_own_metadata_comes_before_the_settings(node: Node, lab: Lab, stack: ExitStack) -> None:
    policies = {
        ARCHIVE: '<backup enabled="no"/>',
        MEDIA: '<backup enabled="yes"/>',
        DATABASE: '<backup freeze="required"/>',
        WEB: '<backup freeze="never" exclude="vdb"/>',
    }
    for name, element in policies.items():
        # --config alone: as an admin does so that it lasts
        lab.virsh(*metadata(name, element, "--config"))
        stack.callback(lab.virsh, *metadata(name, "", "--config"))
    done = node.run("backup", EXCLUDE_DOMAINS=[MEDIA])
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert {name: domain["status"] for name, domain in domains.items()} == {
        MEDIA: "saved",
        DATABASE: "failed",
        WEB: "saved",
        ARCHIVE: "skipped",
    }
    assert domains[ARCHIVE]["reason"] == "disabled in its metadata"
    assert "no guest agent" in domains[DATABASE]["reason"]
    assert domains[WEB]["consistency"] == "paused"
    assert [image["target"] for image in domains[WEB]["images"]] == ["vda"]
    (left_out,) = json.loads(node.definition(WEB)["manifest.json"])["not_covered"]
    assert left_out == {"target": "vdb", "source": f"ssd/{WEB}-data", "reason": "excluded in its metadata"}
    assert domains[WEB]["not_covered"] == [left_out]

    listed = _listed(node, EXCLUDE_DOMAINS=[MEDIA])
    assert (listed[ARCHIVE]["selected"], listed[ARCHIVE]["reason"]) == (False, "disabled in its metadata")
    assert (listed[MEDIA]["selected"], listed[MEDIA]["selected_by"]) == (True, "its metadata")
    assert (listed[DATABASE]["freeze"], listed[DATABASE]["freeze_from"]) == ("required", "its metadata")
    assert (listed[MEDIA]["freeze"], listed[MEDIA]["freeze_from"]) == ("auto", "FREEZE")


def test_metadata_that_can_t_be_meant_fails_the_domain_instead_of_being_overlooked(
    node: Node, lab: Lab, stack: ExitStack
) -> None:
    lab.virsh(*metadata(ARCHIVE, '<backup enabled="false"/>'))
    stack.callback(lab.virsh, *metadata(ARCHIVE))
    assert node.run("backup", ARCHIVE, MEDIA).returncode == 3
    domains = node.report()["domains"]
    assert (domains[ARCHIVE]["status"], domains[MEDIA]["status"]) == ("failed", "saved")
    assert "enabled='false'" in domains[ARCHIVE]["reason"]
    assert "enabled='false'" in _listed(node)[ARCHIVE]["problem"]


def _listed(node: Node, **constants: Any) -> Mapping[str, Any]:
    """List the domains, by their names."""
    return {one["name"]: one for one in json.loads(node.run("list", "--json", **constants).stdout)}


@pytest.fixture
def remote_uri(tmp_path: Path) -> str:
    """The lab's libvirt as from another node: through a program that hands its socket on, as ssh does."""
    program = tmp_path / "to-the-other-node"
    program.write_text("#!/bin/sh\nexec virt-ssh-helper qemu:///system\n")
    program.chmod(0o755)
    return f"qemu+ext://node2/system?command={program}"


def test_a_domain_that_several_libvirts_define_is_saved_once_where_it_runs(
    node: Node, lab: Lab, tmp_path: Path, remote_uri: str
) -> None:
    elsewhere = tmp_path / "node1.xml"  # the same domains, but shut off
    definitions = [_shut_off(lab.virsh("dumpxml", "--inactive", name)) for name in (WEB, ARCHIVE)]
    elsewhere.write_text(f"<node>{''.join(definitions)}</node>")
    uris = [f"test://{elsewhere}", remote_uri, "qemu+unix:///system?socket=/nowhere"]
    done = node.run("backup", LIBVIRT_URI=uris, INCLUDE_DOMAINS=[WEB])
    assert done.returncode == 3, "a libvirt that is out of reach may have domains that nobody else knows"
    report = node.report()
    assert report["domains"][WEB]["consistency"] == "filesystem"
    assert "/nowhere" in report["errors"][0]
    assert len(node.snapshots("definition")) == 1
    verdicts = {one["libvirt"]: one for one in _all_listed(node, WEB, LIBVIRT_URI=uris[:2])}
    assert verdicts[remote_uri]["selected"]
    assert verdicts[uris[0]]["reason"] == f"runs at {remote_uri}"
    verdicts = {one["libvirt"]: one for one in _all_listed(node, ARCHIVE, LIBVIRT_URI=uris[:2])}
    assert verdicts[uris[0]]["selected"]
    assert verdicts[remote_uri]["reason"] == f"also defined at {uris[0]}"


def _shut_off(xml: str) -> str:
    state = "<test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>5</test:runstate>"
    return xml.replace("type='qemu'", "type='test'").replace("</domain>", f"{state}</domain>")


def _all_listed(node: Node, name: str, **constants: Any) -> list[dict[str, Any]]:
    listed = json.loads(node.run("list", "--json", **constants).stdout)
    return [one for one in listed if one["name"] == name]


def test_nvram_of_another_node_comes_through_its_libvirt(
    node: Node, lab: Lab, stack: ExitStack, tmp_path: Path, remote_uri: str
) -> None:
    nvram = tmp_path / "nvram of another node.fd"
    nvram.write_bytes(b"variables of the firmware" * 5000)
    make_image(lab, "vms/uefi-remote", MIB, {})
    stack.callback(lab.delete_image, "vms/uefi-remote")
    lab.define_domain("uefi-remote", [RbdDisk("vda", "vms/uefi-remote")])
    stack.callback(lab.virsh, "undefine", "--keep-nvram", "uefi-remote")
    firmware = f"<loader readonly='yes' type='pflash'>/firmware.fd</loader><nvram>{nvram}</nvram></os>"
    xml = lab.virsh("dumpxml", "uefi-remote").replace("</os>", firmware)
    lab.virsh("define", "/dev/stdin", stdin=xml.encode())
    done = node.run("backup", "uefi-remote", LIBVIRT_URI=remote_uri)
    assert done.returncode == 3
    assert "virsh pool-define-as nvram dir --target" in done.stderr, "libvirt gives files of its pools alone"
    lab.virsh("pool-create-as", "nvram", "dir", "--target", str(tmp_path))
    stack.callback(lab.virsh, "pool-destroy", "nvram")
    assert node.run("backup", "uefi-remote", LIBVIRT_URI=remote_uri).returncode == 0
    assert node.definition("uefi-remote")["nvram.fd"] == nvram.read_bytes()


def test_hundreds_of_domains_are_listed(node: Node, lab: Lab, stack: ExitStack) -> None:
    connection = libvirt.open(lab.libvirt_uri)
    stack.callback(connection.close)
    names = [f"many {number}" for number in range(500)]
    xml = re.sub("<uuid>.*</uuid>", "", connection.lookupByName(ARCHIVE).XMLDesc())
    for name in names:
        domain = connection.defineXML(xml.replace(f"<name>{ARCHIVE}</name>", f"<name>{name}</name>"))
        stack.callback(domain.undefine)
    listed = _listed(node)
    assert {name for name in listed if listed[name]["selected"]} >= set(names)


def test_a_domain_that_was_saved_just_now_is_not_saved_again(node: Node, tmp_path: Path) -> None:
    constants = {"MIN_AGE": 3600, "INCLUDE_DOMAINS": [ARCHIVE]}
    assert node.run("backup", **constants).returncode == 0
    assert node.report()["domains"][ARCHIVE]["status"] == "saved"
    done = node.run("backup", RUNTIME_DIR=str(tmp_path / "other-node"), **constants)
    assert done.returncode == 0
    domain = node.report()["domains"][ARCHIVE]
    assert domain["status"] == "skipped"
    assert "MIN_AGE" in domain["reason"]
    assert len(node.snapshots("definition")) == 1
    assert node.run("backup", ARCHIVE, MIN_AGE=3600).returncode == 0  # an admin who names it wants it
    assert node.report()["domains"][ARCHIVE]["status"] == "saved"


def test_with_min_age_a_domain_that_another_node_is_saving_is_left_to_it(
    node: Node, lab: Lab, stack: ExitStack, tmp_path: Path
) -> None:
    make_image(lab, "vms/slow", 64 * MIB, {0: 40 * MIB})
    stack.callback(lab.delete_image, "vms/slow")
    lab.define_domain("slow", [RbdDisk("vda", "vms/slow")])
    stack.callback(lab.undefine_domain, "slow")
    constants = {"MIN_AGE": 3600, "INCLUDE_DOMAINS": ["slow"]}
    restic = HeldBackRestic(node, "vda.img")
    with node.started("backup", RESTIC_BINARY=restic.path, **constants) as process:
        restic.reached()
        done = node.run("backup", RUNTIME_DIR=str(tmp_path / "other-node"), **constants)
        assert done.returncode == 0
        assert node.report()["domains"]["slow"]["status"] == "skipped"
        restic.let_go()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
