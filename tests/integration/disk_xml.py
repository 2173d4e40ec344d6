"""Disks of all kinds, as an admin writes them into a domain's XML."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

# Monitors: none listens there, the lab's by name, the lab's second version of the protocol.
DEAD, V1, V2 = ("127.0.0.1", "1"), ("localhost", "6789"), ("127.0.0.1", "3300")
USAGE = "client.libvirt secret"


def rbd_disk(
    target: str,
    image: str,
    inside: str = "",
    hosts: tuple[tuple[str, str], ...] = (V1,),
    secret: str = f"usage={quoteattr(USAGE)}",
) -> str:
    auth = f"<auth username='libvirt'><secret type='ceph' {secret}/></auth>" if secret else ""
    monitors = "".join(f"<host name='{name}'" + f" port='{port}'/>" for name, port in hosts)
    return f"""
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name={quoteattr(image)}>{monitors}{auth}</source>
      <target dev='{target}' bus='virtio'/>{inside}
    </disk>"""


def other_disk(target: str, kind: str, source: str, inside: str = "") -> str:
    return f"""
    <disk type='{kind}' device='disk'>
      <driver name='qemu' type='raw'/>
      {source}
      <target dev='{target}' bus='virtio'/>{inside}
    </disk>"""


def backing_store(image: str) -> str:
    return f"""
      <backingStore type='network'>
        <format type='raw'/>
        <source protocol='rbd' name='{image}'><host name='127.0.0.1'/></source>
        <backingStore/>
      </backingStore>"""
