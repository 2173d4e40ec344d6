"""Restore points are read back, and damage is found, named and told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.provoke import restic_script
from tests.integration.node import Node
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, DATABASE, MEDIA, MIB, WEB

# Changes the byte at 42 MiB, which is data, of what is dumped of old01's disk.
ALTERED = f"""
case "$*" in *dump*vda.img*)
    restic "$@" | {{ head --bytes={42 * MIB}; head --bytes=1 >/dev/null; printf '\\0'; cat; }}; exit;;
esac"""


def test_what_is_sound_verifies_without_the_cluster_and_is_in_the_next_report(node: Node) -> None:
    assert node.run("backup").returncode == 0
    done = node.run("verify", CEPH_CONF="/nowhere", LIBVIRT_URI="none:///")
    assert done.returncode == 0, done.stderr
    assert "5 images verified (" in done.stdout
    assert done.stderr.count("verified") == 5, "each disk of four domains"
    assert node.run("backup", ARCHIVE).returncode == 0
    archive = node.report()["domains"][ARCHIVE]
    assert (archive["last_verified"] > "2020", archive["proof_failure"]) == (True, "")


def test_a_byte_that_differs_is_named_and_fails_the_verification(node: Node) -> None:
    assert node.run("backup", ARCHIVE, MEDIA).returncode == 0
    done = node.run("verify", RESTIC_BINARY=restic_script(node, ALTERED))
    assert done.returncode == 3
    told = f"vda (vms/{ARCHIVE}) differs from what was saved: "
    assert told + f"{2 * MIB + 4096} bytes at offset {40 * MIB} (object 10)" in done.stderr
    assert f"{MEDIA}: vda (vms/{MEDIA}) verified" in done.stderr, "one domain's failure is its alone"
    assert node.run("backup", ARCHIVE).returncode == 0
    assert told in node.report()["domains"][ARCHIVE]["proof_failure"]


def test_a_damaged_pack_of_the_repository_is_found(node: Node) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    largest = max(node.repository.glob("data/*/*"), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    largest.chmod(0o600)
    largest.write_bytes(whole[:1000] + bytes(len(whole) - 2000) + whole[-1000:])
    done = node.run("verify")
    largest.write_bytes(whole)
    assert done.returncode == 3
    assert "restic dump failed" in done.stderr


def test_a_sample_reads_some_of_it_and_proves_nothing_for_good(node: Node, tmp_path: Path) -> None:
    assert node.run("backup").returncode == 0
    done = node.run("verify", "--sample", "5%")
    assert done.returncode == 0, done.stderr
    assert 1 <= done.stderr.count("verified") < 5
    assert node.run("backup", ARCHIVE).returncode == 0
    assert node.report()["domains"][ARCHIVE]["last_verified"] is None


@pytest.mark.parametrize("sample", ["0", "101%", "x", "-1"])
def test_a_sample_is_a_percentage(node: Node, sample: str) -> None:
    done = node.run("verify", f"--sample={sample}")
    assert (done.returncode, "invalid percentage" in done.stderr) == (2, True)


def test_a_backup_that_is_to_be_verified_holds_each_image_against_its_snapshot(node: Node, lab: Lab) -> None:
    done = node.run("backup", "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(") verified") == 5
    assert {node.report()["domains"][name]["last_verified"] is None for name in (WEB, DATABASE)} == {False}


def test_a_backup_that_does_not_verify_does_not_count(node: Node) -> None:
    done = node.run("backup", "--verify", ARCHIVE, MEDIA, RESTIC_BINARY=restic_script(node, ALTERED))
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert domains[MEDIA]["status"] == "saved"
    assert "differs from what was saved" in domains[ARCHIVE]["reason"]
    assert "(object 10)" in domains[ARCHIVE]["reason"]
    assert {one["hostname"] for one in node.snapshots()} == {MEDIA}
