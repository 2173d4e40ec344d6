"""Elements of domain XML for disks, and what a node says of what they only name."""

from __future__ import annotations

from collections.abc import Mapping

from backup.errors import BackupError
from backup.hypervisor.disk_xml import Places
from backup.hypervisor.mapped_device import MappedImage
from backup.model import Disk, Image

from .samples import FSID

SECRET_UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
HOSTS = "<host name='ceph1' port='6789'/><host name='2001:db8::1' port='3300'/><host name='[::2]'/>"
AUTH = f"<auth username='libvirt'><secret type='ceph' uuid='{SECRET_UUID}'/></auth>"

POOLS: Mapping[str, str] = {
    "ceph volumes": f"""
        <pool type='rbd'>
          <name>ceph volumes</name>
          <source>
            <host name='ceph1' port='6789'/><host name='2001:db8::1'/><name>vms</name>
            <auth type='ceph' username='libvirt'><secret uuid='{SECRET_UUID}'/></auth>
          </source>
        </pool>""",
    "bare": "<pool type='rbd'><name>bare</name><source><name>ssd</name></source></pool>",
    "default": "<pool type='dir'><name>default</name><target><path>/srv</path></target></pool>",
}
MAPPED: Mapping[str, MappedImage] = {
    "/dev/rbd7": MappedImage(Image("vms", "root", "tenant", id="1f2e"), fsid=FSID),
    "/dev/rbd/vms/golden@first": MappedImage(Image("vms", "golden"), snapshot="first"),
}


def pool_xml(name: str) -> str:
    if name not in POOLS:
        raise BackupError(f"cannot look up libvirt's storage pool {name}: not found")
    return POOLS[name]


def mapped_image(path: str) -> MappedImage | None:
    if path.endswith("p1"):
        raise BackupError("a partition of an RBD image")
    return MAPPED.get(path)


PLACES = Places(pool_xml, mapped_image)


def domain_of(*elements: str) -> str:
    return f"<domain type='kvm'><name>web</name><devices>{''.join(elements)}</devices></domain>"


def rbd(
    name: str = "vms/root",
    inside: str = "",
    beside: str = "",
    device: str = "disk",
    target: str = "vda",
) -> str:
    """Give a disk on an image, with elements in its source and beside it."""
    source = f'<source protocol="rbd" name="{name}">{inside}</source>'
    return f"<disk type='network' device='{device}'>{source}<target dev='{target}'/>{beside}</disk>"


def other(kind: str, source: str, beside: str = "", device: str = "disk") -> str:
    """Give a disk vda of any type."""
    return f"<disk type='{kind}' device='{device}'>{source}<target dev='vda'/>{beside}</disk>"


def backing(kind: str, source: str, below: str = "<backingStore/>") -> str:
    """Give what a disk, or another layer, is an overlay of."""
    return f"<backingStore type='{kind}'><format type='raw'/>{source}{below}</backingStore>"


def only(disks: tuple[Disk, ...]) -> Disk:
    (disk,) = disks
    return disk
