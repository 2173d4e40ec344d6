"""A cluster on IPv6 whose monitor speaks msgr2 alone: a domain is saved, restored, defined and started."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.disk_xml import rbd_disk
from tests.integration.node import Node
from tests.lab import Lab
from tests.lab.cluster import Cluster
from tests.lab.sample import MIB

NAME, COPY = "of msgr2", "copy of msgr2"
IMAGE = "vms/of-msgr2"


@dataclass(frozen=True)
class Msgr2Cluster(Cluster):
    """A cluster whose monitor has no port of the old protocol."""

    @property
    def _monitor_addresses(self) -> str:
        return f"[v2:[{self.address}]:{self.v2_port}]"


@pytest.fixture
def msgr2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Msgr2Cluster(tmp_path_factory.mktemp("msgr2") / "ceph", "::1", auth="none")
    cluster.refuse_taken_ports()
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.mark.parametrize("inside", ["host", "config"])
def test_a_domain_is_saved_restored_and_started(inside: str, node: Node, lab: Lab, msgr2: Cluster) -> None:
    content = random.Random(NAME).randbytes(MIB)
    msgr2.rbd("import", "--no-progress", "-", IMAGE, stdin=content)
    node.constants["CEPH_CONF"] = str(msgr2.conf)
    hosts = (("::1", "3300"),) if inside == "host" else ()
    disk = rbd_disk("vda", IMAGE, hosts=hosts, secret="")
    if inside == "config":
        disk = disk.replace("</source>", f"<config file='{msgr2.conf}'/></source>")
    lab.define_domain(NAME, [], extra_xml=disk)
    try:
        done = node.run("backup", NAME)
        assert done.returncode == 0, done.stderr
        copy = ("--define", "--start", "--suffix", "-copy", "--name", COPY, "--new-uuid")
        done = node.run("restore", NAME, *copy)
        assert done.returncode == 0, done.stderr
        source = ElementTree.fromstring(lab.virsh("dumpxml", COPY)).find("./devices/disk/source")
        assert source is not None
        assert [(one.get("name"), one.get("port")) for one in source.findall("host")] == [("::1", "3300")]
        assert lab.virsh("domstate", COPY).strip() == "running"
        assert msgr2.rbd("export", "--no-progress", f"{IMAGE}-copy", "-") == content
    finally:
        if COPY in lab.virsh("list", "--all", "--name"):
            lab.destroy_domain(COPY)
            lab.undefine_domain(COPY)
        lab.undefine_domain(NAME)
