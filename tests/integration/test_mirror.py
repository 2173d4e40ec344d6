"""Mirrored images: an rbd-mirror that has a primary image open is no user of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import rados
import rbd

from tests.integration.node import Node
from tests.lab import Lab, RbdDisk
from tests.lab.cluster import ADDRESS, MESSENGER_V1_PORT, Cluster
from tests.lab.daemon import Daemon
from tests.lab.programs import wait_until
from tests.lab.sample import MIB, make_image

NAME, SPEC = "mirrored", "vms/mirrored"


@pytest.fixture(scope="module")
def mirrored(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Have a shut-off domain whose image an rbd-mirror copies to a second cluster."""
    other = Cluster(tmp_path_factory.mktemp("mirror") / "ceph", "::1", 3301, 6790, "cephx")
    other.refuse_taken_ports()
    with ExitStack() as stack:
        stack.callback(other.down)
        other.up()
        lab.rbd("mirror", "pool", "enable", "vms", "image")
        stack.callback(_end_mirroring, lab)
        make_image(lab, SPEC, 4 * MIB, {0: MIB})
        stack.callback(lab.delete_image, SPEC)
        lab.rbd("mirror", "image", "enable", SPEC, "snapshot")
        stack.callback(lab.rbd, "mirror", "image", "disable", SPEC)
        daemon = _mirror_daemon(other, lab)
        stack.callback(daemon.end)
        daemon.start()
        wait_until(
            lambda: b"watcher=" in lab.rbd("status", SPEC),
            120,
            "rbd-mirror has the image open",
            daemon.log_file,
        )
        lab.define_domain(NAME, [RbdDisk("vda", SPEC)])
        stack.callback(lab.undefine_domain, NAME)
        yield NAME


def _end_mirroring(lab: Lab) -> None:
    """Remove the peers, which an rbd-mirror has registered itself as, and disable mirroring."""
    for peer in json.loads(lab.rbd("mirror", "pool", "info", "vms", "--format", "json"))["peers"]:
        lab.rbd("mirror", "pool", "peer", "remove", "vms", peer["uuid"])
    lab.rbd("mirror", "pool", "disable", "vms")


def _mirror_daemon(other: Cluster, lab: Lab) -> Daemon:
    other.rbd("mirror", "pool", "enable", "vms", "image")
    key = other.directory / "peer.key"
    key.write_text(lab.ceph("auth", "get-key", "client.admin"))
    monitor = f"v1:{ADDRESS}:{MESSENGER_V1_PORT}"
    access = ("--remote-mon-host", monitor, "--remote-key-file", str(key))
    other.rbd("mirror", "pool", "peer", "add", "vms", "client.admin@first", *access)
    return Daemon(
        command=(
            "rbd-mirror",
            "--foreground",
            "--id",
            "admin",
            "--conf",
            str(other.conf),
            "--log-to-stderr=true",
        ),
        pid_file=other.directory / "rbd-mirror.pid",
        log_file=other.directory / "rbd-mirror.log",
        launcher=("env", f"CEPH_CONF={other.conf}"),  # else its replayer looks for /etc/ceph/ceph.conf
    )


def test_a_mirrored_image_is_used_by_nobody(node: Node, mirrored: str) -> None:
    done = node.run("backup", mirrored, FREEZE="required", MIN_AGE=60)
    assert done.returncode == 0, done.stderr
    assert "in use by other clients" not in done.stderr
    assert node.report()["domains"][mirrored]["consistency"] == "offline"
    done = node.run("backup", FREEZE="required", MIN_AGE=60, INCLUDE_DOMAINS=[mirrored])
    assert "(MIN_AGE)" in done.stderr + done.stdout, "skipped for its age, not for the mirror"


def test_a_user_beside_the_mirror_counts_and_is_named(node: Node, lab: Lab, mirrored: str) -> None:
    with (
        rados.Rados(conffile=str(lab.ceph_conf)) as cluster,
        cluster.open_ioctx("vms") as pool,
        rbd.Image(pool, NAME) as image,
    ):
        wait_until(lambda: len(list(image.watchers_list())) == 2, 120, "both have the image open")
        watchers = [one["addr"] for one in image.watchers_list()]
        done = node.run("backup", mirrored)
        own = [address for address in watchers if f"open at {address}" in done.stderr]
    assert node.report()["domains"][mirrored]["consistency"] == "crash"
    assert (len(watchers), len(own)) == (2, 1)
