"""Finds data and files that only QEMU's own arguments in a domain's XML name (<qemu:commandline>).

Whatever names a path counts, unless it is known that nothing there has to be saved: QEMU has hundreds of
arguments.
(man 1 qemu-system-x86_64)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
COMMAND_LINE = f"{QEMU}commandline"

# Arguments whose value is a file, or names one as file=PATH, and which is saved with the definition.
SAVED_FILES = ("kernel", "initrd", "dtb", "bios", "option-rom", "fw_cfg", "acpitable", "smbios")
# Arguments that name data whatever their values are.
DATA_ARGUMENTS = (
    *("drive", "blockdev", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "pflash", "mtdblock", "sd"),
    *("virtfs", "fsdev", "tpmdev", "readconfig"),
)
# Values, of arguments that have other ones too, which name data or a device of the node without a path.
DATA_VALUES = {
    "device": r"vfio-|vhost-(user-(blk|fs|scsi)|scsi|vdpa)|ivshmem|usb-host|pci-assign",
    "object": r"memory-backend-file|ivshmem",
    "usbdevice": r"disk:|host:",
}
# Arguments whose paths are sockets, logs or names: nothing there is data of the guest.
CONNECTIONS = (
    *("chardev", "serial", "parallel", "monitor", "qmp", "qmp-pretty", "mon", "debugcon", "gdb", "vnc"),
    *("spice", "display", "incoming", "name", "append", "D", "trace", "pidfile", "mem-path"),
)
# Kinds of objects for which the same holds.
CONNECTING_OBJECT = re.compile(r'(qom-type=|"qom-type"\s*:\s*")?(rng-|input-linux|filter-|can-)')

PATH = re.compile(r'(?:^|[=:,"\s])(\.{0,2}/[^,"\s]*)')
# Names of parameters whose values are paths, also relative ones.
PARAMETERS = "file|filename|path|dir|rootdir|romfile|smb|tftp|sysfsdev|hostdevice"
NAMED_PATH = re.compile(rf'(?:^|[,{{"\s])(?:{PARAMETERS})"?\s*[=:]\s*"?([^,"}}\s]+)')
# Devices without data, what lasts as long as the node runs, and files that packages bring.
WITHOUT_DATA = re.compile(
    r"/dev/(u?random|hwrng|null|zero|kvm|net/tun|vhost-net|vhost-vsock|dri/|shm$|hugepages$)"
    r"|/run/|/var/run/|/usr/(?!local/)"
)


def arguments(domain: Element) -> Iterator[tuple[str, str]]:
    """Yield each argument with its value, "" for one without; an argument "" has a value only."""
    values = [one.get("value", "") for one in domain.findall(f"{COMMAND_LINE}/{QEMU}arg")]
    option = ""
    for value in values:
        if value.startswith("-") and not value[1:2].isdigit():
            if option:
                yield option, ""
            option = value
        else:
            yield option, value
            option = ""
    if option:
        yield option, ""


def with_data(domain: Element) -> Sequence[str]:
    """Return the arguments that name data or files which are not saved with the definition."""
    named = [option or "a disk image" for option, value in arguments(domain) if _names_data(option, value)]
    return tuple(dict.fromkeys(named))


def _names_data(option: str, value: str) -> bool:
    name = option.lstrip("-")
    if name in SAVED_FILES or name in CONNECTIONS:
        return False
    if not option or name in DATA_ARGUMENTS:
        return True
    if name in DATA_VALUES and re.search(DATA_VALUES[name], value):
        return True
    if name == "object" and CONNECTING_OBJECT.search(value):
        return False
    paths = [value] if name == "L" else [*PATH.findall(value), *NAMED_PATH.findall(value)]
    return any(path not in ("no", "none") and not WITHOUT_DATA.match(path) for path in paths)
