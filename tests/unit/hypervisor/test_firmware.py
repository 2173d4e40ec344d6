"""backup/hypervisor/firmware.py: firmware that its guest writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.hypervisor.firmware import (
    NVRAM_DIRECTORY,
    of_guest,
    unnamed_nvram,
    with_current_loader,
    writable_loader,
)
from backup.hypervisor.restored_xml import redefined
from backup.model import Definition, NodeFile

from ..raising import raises
from .test_restored_xml import change

XML = "<domain><name>x</name><uuid>x</uuid><os>{}</os><devices/></domain>"
WRITABLE = "<loader readonly='no' type='pflash'>{}</loader>"


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (WRITABLE.format("/srv/fw.fd"), "/srv/fw.fd"),
        (WRITABLE.format(" /srv/fw.fd "), "/srv/fw.fd"),
        (WRITABLE.format("/usr/share/fw.fd"), "/usr/share/fw.fd"),
        (WRITABLE.format("/srv/fw.fd") + "<nvram>/srv/v.fd</nvram>", "/srv/fw.fd"),
        ("<loader type='pflash'>/srv/fw.fd</loader>", "/srv/fw.fd"),
        ("<loader type='pflash'>/srv/fw.fd</loader><nvram>/srv/v.fd</nvram>", ""),
        ("<loader type='pflash'>/usr/share/fw.fd</loader>", ""),
        ("<loader type='pflash' stateless='yes'>/srv/fw.fd</loader>", ""),
        ("<loader readonly='yes' type='pflash'>/srv/fw.fd</loader>", ""),
        ("<loader readonly='no' type='rom'>/srv/fw.bin</loader>", ""),
        ("<loader>/srv/fw.bin</loader>", ""),
        ("<loader readonly='no' type='pflash'/>", ""),
        ("", ""),
    ],
)
def test_a_guest_writes_to_flash_that_is_not_read_only(system: str, expected: str) -> None:
    assert writable_loader(XML.format(system)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/fw.fd", "/srv/two_LOADER.fd"),
        ("/usr/share/fw.fd", "/var/lib/libvirt/qemu/nvram/two_LOADER.fd"),
    ],
)
@pytest.mark.parametrize("isolated", [False, True])
def test_a_copy_writes_to_firmware_of_its_own(path: str, expected: str, isolated: bool) -> None:
    xml, _ = redefined(XML.format(WRITABLE.format(path)), change(copy=True, isolated=isolated, name="two"))
    assert writable_loader(xml) == expected
    assert writable_loader(redefined(XML.format(WRITABLE.format(path)), change())[0]) == path


def test_a_copy_shares_firmware_that_nobody_writes_to() -> None:
    loader = '<loader readonly="yes" type="pflash">/srv/fw.fd</loader>'
    assert loader in redefined(XML.format(loader), change(copy=True))[0]


def test_the_firmware_of_a_running_guest_is_read_again(tmp_path: Path) -> None:
    loader, kernel = tmp_path / "fw.fd", NodeFile("kernel", "/boot/vmlinuz", b"kernel")
    loader.write_bytes(b"now")
    before = NodeFile("loader", str(loader), b"before")
    xml = XML.format(WRITABLE.format(loader))
    definition = with_current_loader(Definition(xml, xml, files=(kernel, before)))
    assert [file.content for file in definition.files] == [b"kernel", b"now"]
    assert list(of_guest(definition)) == [("", b""), (str(loader), b"now")]
    assert with_current_loader(Definition(xml, "", files=(before,))).files == (before,), "shut off"
    loader.unlink()
    with raises(f"cannot read the domain's firmware {loader}: no such file or directory"):
        with_current_loader(definition)


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("<os firmware='efi'/>", ["web_VARS.fd", "web_VARS.qcow2"]),
        ("<os firmware='efi'><loader secure='yes'/></os>", ["web_VARS.fd", "web_VARS.qcow2"]),
        ("<os firmware='efi'><loader stateless='yes'/></os>", []),
        ("<os firmware='efi'><nvram type='network'/></os>", []),
        ("<os firmware='bios'/>", []),
        ("<os><loader type='pflash' readonly='no'>/srv/fw.fd</loader></os>", []),
        ("<os/>", []),
        ("", []),
    ],
)
def test_only_libvirt_s_own_choice_of_uefi_has_nvram_that_nothing_names(
    system: str, expected: list[str]
) -> None:
    paths = [f"{NVRAM_DIRECTORY}/{name}" for name in expected]
    assert unnamed_nvram(f"<domain>{system}</domain>", "web") == paths
