"""The libvirt definition of a domain of the lab."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from xml.sax.saxutils import escape, quoteattr

from tests.lab.time_stamp_counter import kilohertz

KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"
AGENT_CHANNEL = """
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>"""


@dataclass(frozen=True)
class RbdDisk:
    """A disk of a domain: its target name, and its image as pool/name."""

    target: str
    image: str


@dataclass(frozen=True)
class CephAccess:
    """How QEMU reaches the cluster: the monitor, and the libvirt secret that holds the user's key."""

    host: str
    port: int
    user: str
    secret_uuid: UUID


@dataclass(frozen=True)
class GuestFiles:
    kernel: Path
    initramfs: Path


def disk_xml(disk: RbdDisk, access: CephAccess) -> str:
    return f"""
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='writeback' discard='unmap'/>
      <auth username={quoteattr(access.user)}>
        <secret type='ceph' uuid='{access.secret_uuid}'/>
      </auth>
      <source protocol='rbd' name={quoteattr(disk.image)}>
        <host name='{access.host}' port='{access.port}'/>
      </source>
      <target dev={quoteattr(disk.target)} bus='virtio'/>
    </disk>"""


def domain_xml(
    name: str,
    uuid: UUID | str | None,
    guest: GuestFiles,
    console_log: Path,
    disks: Sequence[RbdDisk],
    access: CephAccess,
    more_devices: str,
) -> str:
    return f"""
<domain type='qemu'>
  <name>{escape(name)}</name>{f"<uuid>{uuid}</uuid>" if uuid else ""}
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{escape(str(guest.kernel))}</kernel>
    <initrd>{escape(str(guest.initramfs))}</initrd>
    <cmdline>{KERNEL_ARGUMENTS} tsc=reliable tsc_early_khz={kilohertz()}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path={quoteattr(str(console_log))}/>
    </serial>{"".join(disk_xml(disk, access) for disk in disks)}{more_devices}
  </devices>
</domain>
"""
