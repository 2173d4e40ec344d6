"""backup/restore/domain.py: restored domains, defined in libvirt's own test driver."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import libvirt
import pytest

from backup.errors import BackupError, NotDefined
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.restored_xml import Redefinition, redefined
from backup.model import TPM_STATE, Consistency, Definition, Disk, Image, Level, NodeFile
from backup.restore.domain import RestoredDomain
from backup.restore.restorer import define_on_images
from backup.restore.written_files import remove_left
from backup.stored import PointId, SavedDomain, SavedImage

from ..driver_node import SHUT_OFF, domain_element, node_uri
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, MIB, OTHER_UUID, RUN, TAKEN, UUID, image

MONITORS = [("10.0.0.1", "6789")]
VDA = {"vda": image("scratch/web-root")}
DISK = "<disk type='network'><source protocol='rbd' name='{}'/><target dev='{}'/></disk>"
DISKS = DISK.format("vms/web-root", "vda") + DISK.format("vms/web-data", "vdb")
NAMES = {"vda": "vms/web-root", "vdb": "vms/web-data", "vdc": "vms/web-more"}


@pytest.fixture
def hypervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hypervisor]:
    """A node with another domain; the test driver does not know how to destroy one by itself."""
    monkeypatch.setattr(libvirt, "VIR_DOMAIN_START_AUTODESTROY", 0)
    with Hypervisor(node_uri(tmp_path / "node.xml", domain_element("db", OTHER_UUID))) as hypervisor:
        yield hypervisor


@pytest.fixture
def nvram(tmp_path: Path) -> Path:
    """Where the saved domain has its NVRAM; nothing is there yet."""
    (tmp_path / "nvram").mkdir()
    return tmp_path / "nvram" / "web_VARS.fd"


def restored(
    hypervisor: Hypervisor,
    nvram: Path | None,
    devices: str = "",
    autostart: bool | None = None,
    **changes: Any,
) -> RestoredDomain:
    system = f"<loader type='pflash'>/fw.fd</loader><nvram>{nvram}</nvram>" if nvram else ""
    definition = Definition(
        domain_element(devices=DISKS + devices, system=system),
        "",
        str(nvram or ""),
        b"saved" if nvram else b"",
        autostart,
    )
    images = tuple(SavedImage(one, name, MIB, 0, 0, 0.0, "", LAYOUT) for one, name in NAMES.items())
    saved = SavedDomain(PointId(RUN, UUID), "web", TAKEN, Consistency.OFFLINE, images, (), definition, {})
    values: Mapping[str, Any] = {
        "name": "web",
        "uuid": UUID,
        "force": False,
        "reporter": Recorder(),
        "state_dir": str(nvram.parents[1] / "state" if nvram else "/dev/null"),
        **changes,
    }
    return RestoredDomain(saved, hypervisor, **values)


def define(domain: RestoredDomain, images: Mapping[str, Image] = VDA) -> None:
    domain.define(domain.xml(images, MONITORS))


def defined_by_somebody(domain: RestoredDomain) -> None:
    domain.hypervisor.define(domain_element(state=SHUT_OFF))


def test_a_domain_is_defined_with_its_nvram_which_only_root_can_read(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    domain = restored(hypervisor, nvram)
    define(domain)
    assert hypervisor.domain(UUID).disks[0].image == VDA["vda"]
    assert (nvram.read_bytes(), nvram.stat().st_mode & 0o077) == (b"saved", 0)
    assert list(nvram.parent.iterdir()) == [nvram]


AS_SAVED = {
    "the same": ({"vda": "vms/web-root", "vdb": "vms/web-data"}, (), ["new/vda", "new/vdb"], []),
    "another image at the next start": (
        {"vda": "vms/web-root", "vdb": "vms/ran", "vdb.next": "vms/web-data"},
        (),
        ["new/vda", "new/vdb.next"],
        ["vdb: restored, but not in the definition: it was attached only to the running domain"],
    ),
    "one that was not saved": (
        {"vda": "vms/web-root", "vdb": "vms/ran"},
        ("vdb.next",),
        ["new/vda", "vms/web-data"],
        ["vdb: restored, but not in the definition: it was attached only to the running domain"],
    ),
    "another order": ({"vda": "vms/web-data", "vdb": "vms/web-root"}, (), ["new/vdb", "new/vda"], []),
    "from a version that saved only what ran": (
        {"vda": "vms/web-root", "vdb": "vms/ran"},
        (),
        ["new/vda", "new/vdb"],
        [
            "vdb: gets vms/ran; its next start would have given it vms/web-data, which is not in the backup",
        ],
    ),
    "two clusters with the same names": (
        {"vda": "vms/web-root", "vdb": "vms/web-data", "vdc": "vms/web-data"},
        (),
        ["new/vda", "new/vdb"],
        ["vdc: restored, but not in the definition: it was attached only to the running domain"],
    ),
}


@pytest.mark.parametrize("case", AS_SAVED)
def test_a_disk_gets_the_image_that_its_definition_names(hypervisor: Hypervisor, case: str) -> None:
    names, skipped, expected, warnings = AS_SAVED[case]
    domain = restored(hypervisor, None)
    images = tuple(SavedImage(target, name, MIB, 0, 0, 0.0, "", LAYOUT) for target, name in names.items())
    disks = tuple(Disk(target, "", skipped="excluded in its metadata") for target in skipped)
    domain = replace(domain, saved=replace(domain.saved, images=images, skipped_disks=disks))
    define(domain, {target: image(f"new/{target}") for target in names})
    assert [str(disk.image) for disk in hypervisor.domain(UUID).disks] == expected
    reporter = cast(Recorder, domain.reporter)
    assert [text for level, _, text in reporter.messages if level is Level.WARNING] == warnings


def test_a_domain_or_nvram_that_was_created_meanwhile_is_not_overwritten(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    domain = restored(hypervisor, nvram)
    domain.require_definable()
    xml = domain.xml(VDA, MONITORS)
    nvram.write_bytes(b"in use")
    with raises(f"the NVRAM {nvram} exists"):
        domain.define(xml)
    nvram.unlink()
    defined_by_somebody(domain)
    with raises(f"the domain web (UUID {UUID}) is already defined here"):
        domain.define(xml)
    assert hypervisor.domain(UUID).disks == ()
    assert list(nvram.parent.iterdir()) == []


def test_a_domain_that_could_not_be_defined_is_reported_with_a_hint(hypervisor: Hypervisor) -> None:
    domain = restored(hypervisor, None)
    xml = domain.xml(VDA, MONITORS)
    defined_by_somebody(domain)
    with raises(
        f"the images are restored, but the domain web (UUID {UUID}) is already defined here"
    ) as caught:
        define_on_images(domain, xml, start=False)
    assert isinstance(caught.value, NotDefined)
    assert caught.value.hint.endswith(
        "--force replaces it; then restore again with --force, which replaces the restored images"
    )


def test_a_domain_that_does_not_start_is_reported_as_restored(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uuid: str) -> None:
        raise BackupError("cannot start the domain: no", f"virsh start {uuid}")

    monkeypatch.setattr(hypervisor, "start", refuse)
    domain = restored(hypervisor, None)
    with raises("the domain is restored, but cannot start the domain: no", NotDefined) as caught:
        define_on_images(domain, domain.xml(VDA, MONITORS), start=True)
    assert caught.value.hint == f"virsh start {UUID}"
    assert hypervisor.domain(UUID).name == "web"


def test_a_definition_that_libvirt_refuses_leaves_the_nvram_as_it_was(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    nvram.write_bytes(b"precious")
    domain = restored(hypervisor, nvram, force=True)
    with pytest.raises(HypervisorError, match="cannot define the domain"):
        domain.define("<domain/>")
    assert nvram.read_bytes() == b"precious"
    assert list(nvram.parent.iterdir()) == [nvram]
    define(domain)
    assert nvram.read_bytes() == b"saved"


def test_an_nvram_that_cannot_be_written_is_an_error_at_the_start(
    hypervisor: Hypervisor, nvram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvram.parent.rmdir()
    domain = restored(hypervisor, nvram)
    directory = nvram.parent
    with raises(f"cannot write the NVRAM {nvram}: {directory} is missing or not writable"):
        domain.require_definable()
    directory.mkdir()
    domain.require_definable()
    monkeypatch.setattr(hypervisor, "local", False)
    with raises(f"cannot write the NVRAM {nvram} on another node ({hypervisor.uri})"):
        domain.require_definable()
    restored(hypervisor, None).require_definable()


def test_differences_from_the_saved_domain_are_warnings(hypervisor: Hypervisor) -> None:
    recorder = Recorder()
    domain = restored(hypervisor, None, reporter=recorder)
    domain.xml({"vda": image("a/b"), "vdc": image("a/c")}, MONITORS)
    assert recorder.told(Level.WARNING) == [
        "vdb: not restored, the definition still names its original image",
        "vdc: restored, but not in the definition: it was attached only to the running domain",
    ]
    recorder.messages.clear()
    restored(hypervisor, None, reporter=recorder, name="two", uuid=OTHER_UUID).xml(VDA, MONITORS)
    assert recorder.told(Level.WARNING) == ["removed from the copy's definition: vdb, which was not restored"]


def drive(medium: str) -> str:
    return f"<disk type='file' device='cdrom'>{medium}<target dev='sda'/><readonly/></disk>"


def test_the_original_is_restored_with_a_hint_to_its_missing_medium(
    hypervisor: Hypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iso, recorder = tmp_path / "x.iso", Recorder()
    missing = restored(hypervisor, None, drive(f"<source file='{iso}'/>"), reporter=recorder)
    define(missing)
    hint = "before the start: virsh change-media web sda --eject --config"
    text = f"sda: its medium {iso} does not exist on this node (hint: {hint})"
    assert text in recorder.told(Level.WARNING)
    recorder.messages.clear()
    optional = drive(f"<source file='{iso}' startupPolicy='optional'/>")
    restored(hypervisor, None, optional, reporter=recorder).xml(VDA, MONITORS)
    restored(hypervisor, None, drive(""), reporter=recorder).xml(VDA, MONITORS)
    monkeypatch.setattr(hypervisor, "local", False)
    missing.xml(VDA, MONITORS)
    monkeypatch.setattr(hypervisor, "local", True)
    iso.touch()
    missing.xml(VDA, MONITORS)
    assert not any("medium" in text for text in recorder.told(Level.WARNING))


def test_copies_and_drills_start_with_an_empty_drive_and_report_it(hypervisor: Hypervisor) -> None:
    recorder = Recorder()
    medium = drive("<source file='/gone/x.iso'/>")
    copy = restored(hypervisor, None, medium, reporter=recorder, name="two", uuid=OTHER_UUID[:-1] + "9")
    text = "removed from the copy's definition: the medium /gone/x.iso of cdrom sda, which starts empty"
    assert "/gone/x.iso" not in copy.xml(VDA, MONITORS)
    assert text in recorder.told(Level.WARNING)
    xml = copy.isolated_xml(VDA, MONITORS)
    assert "/gone/x.iso" not in xml
    with copy.running_temporarily(xml):
        pass
    assert text in recorder.told(Level.INFO)


def test_an_image_that_was_in_a_drive_of_the_running_domain_only_is_restored_beside_it(
    hypervisor: Hypervisor,
) -> None:
    recorder = Recorder()
    restored(hypervisor, None, drive(""), reporter=recorder).xml({**VDA, "sda": image("a/b")}, MONITORS)
    text = "sda: restored, but not in the definition: it was attached only to the running domain"
    assert text in recorder.told(Level.WARNING)


def autostarts(hypervisor: Hypervisor, uuid: str = UUID) -> bool:
    return bool(hypervisor.handle(uuid).autostart())


@pytest.mark.parametrize("saved", [False, True])
def test_the_original_gets_its_autostart_again_also_where_it_replaces_a_domain(
    hypervisor: Hypervisor, saved: bool
) -> None:
    recorder = Recorder()
    define(restored(hypervisor, None, reporter=recorder, autostart=saved))
    assert autostarts(hypervisor) is saved
    assert recorder.told(Level.INFO)[1:] == (["autostart is set again"] if saved else [])
    hypervisor.set_autostart(UUID, not saved)
    define(restored(hypervisor, None, force=True, autostart=saved))
    assert autostarts(hypervisor) is saved


def test_an_older_restore_point_leaves_the_autostart_as_it_is(hypervisor: Hypervisor) -> None:
    define(restored(hypervisor, None))
    hypervisor.set_autostart(UUID, True)
    define(restored(hypervisor, None, force=True))
    assert autostarts(hypervisor)


@pytest.mark.parametrize("changes", [{"name": "two"}, {"name": "two", "uuid": OTHER_UUID[:-1] + "9"}])
def test_a_copy_does_not_start_with_its_node(hypervisor: Hypervisor, changes: dict[str, str]) -> None:
    recorder = Recorder()
    copy = restored(hypervisor, None, reporter=recorder, autostart=True, **changes)
    define(copy)
    assert not autostarts(hypervisor, copy.uuid)
    assert "without autostart, which the original has: virsh autostart two" in recorder.told(Level.INFO)


def test_an_autostart_that_cannot_be_set_is_a_warning(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uuid: str, autostart: bool) -> None:
        raise HypervisorError("cannot set the domain's autostart: no", f"virsh autostart {uuid}")

    monkeypatch.setattr(hypervisor, "set_autostart", refuse)
    recorder = Recorder()
    define(restored(hypervisor, None, reporter=recorder, autostart=True))
    assert f"cannot set the domain's autostart: no (hint: virsh autostart {UUID})" in recorder.told(
        Level.WARNING
    )
    assert hypervisor.domain(UUID).name == "web"


def test_a_temporary_guest_leaves_no_nvram_and_overwrites_a_leftover_one(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    domain = restored(hypervisor, nvram, name="web-drill")
    passing = nvram.with_name("web-drill_VARS.fd")
    passing.write_bytes(b"of a drill that was killed")
    nvram.write_bytes(b"of the saved one")
    domain.require_free()
    with domain.running_temporarily(domain.isolated_xml(VDA, MONITORS)):
        assert passing.read_bytes() == b"saved"
        assert [one.name for one in hypervisor.domains()] == ["db", "web-drill"]
    assert [one.name for one in hypervisor.domains()] == ["db"]
    assert {path: path.read_bytes() for path in nvram.parent.iterdir()} == {nvram: b"of the saved one"}


def test_a_failing_removal_of_the_nvram_hides_no_error(
    hypervisor: Hypervisor, nvram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: str) -> None:
        os.stat(path)
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "unlink", read_only)
    recorder = Recorder()
    domain = restored(hypervisor, nvram, name="web-drill", reporter=recorder)
    failure = f"cannot remove {nvram.with_name('web-drill_VARS.fd')}: read-only file system"
    xml = domain.isolated_xml(VDA, MONITORS)
    with raises("it did not boot"), domain.running_temporarily(xml):
        raise BackupError("it did not boot")
    (message,) = recorder.told(Level.ERROR)
    assert message.startswith(failure)
    monkeypatch.undo()
    remove_left(domain.state_dir, lambda _: hypervisor, recorder)
    assert not nvram.with_name("web-drill_VARS.fd").exists(), "the record is still there"


def with_tpm(domain: RestoredDomain, *places: str) -> RestoredDomain:
    """Give the saved domain a TPM at the first place, and states that were read at all."""
    tpm = (
        f"<tpm><backend type='emulator' version='2.0'><source type='dir' path='{places[0]}'/></backend></tpm>"
    )
    xml = domain.saved.definition.inactive_xml.replace("</devices>", f"{tpm}</devices>")
    files = tuple(NodeFile(TPM_STATE, f"{place}/tpm2-00.permall", b"state") for place in places[1:])
    definition = replace(domain.saved.definition, inactive_xml=xml, files=files)
    return replace(domain, saved=replace(domain.saved, definition=definition))


def test_a_copy_s_state_is_where_its_definition_names_it(hypervisor: Hypervisor, nvram: Path) -> None:
    place = nvram.parent / "tpm-of-web"
    domain = with_tpm(restored(hypervisor, nvram, name="two", uuid=str(uuid4())), f"{place}/", str(place))
    xml, _ = redefined(domain.saved.definition.inactive_xml, Redefinition("two", domain.uuid, True, VDA, []))
    (state,) = domain._tpm_state
    assert state.path == f"{nvram.parent}/two_TPM/tpm2-00.permall"
    assert f"{nvram.parent}/two_TPM" in xml


def test_a_state_of_another_tpm_than_the_definition_s_is_not_written(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    place, other = nvram.parent / "tpm-of-web", nvram.parent / "tpm"
    for name in ("web", "two"):
        domain = with_tpm(restored(hypervisor, nvram, name=name), str(place), str(other))
        assert domain._tpm_state == []
        domain._warn_of_new_tpm()
        (text,) = cast(Recorder, domain.reporter).told(Level.WARNING)
        assert text.startswith(f"the backup has no state of its TPM ({place})")


def test_a_name_that_would_lead_its_files_elsewhere_is_refused(hypervisor: Hypervisor, nvram: Path) -> None:
    domain = restored(hypervisor, nvram, name="../../etc/two")
    with raises("invalid name '../../etc/two'"):
        domain.require_definable()


def with_loader(domain: RestoredDomain, loader: str) -> RestoredDomain:
    """Give the saved domain firmware that its guest writes to."""
    before = domain.saved.definition
    system = f"<os><loader readonly='no' type='pflash'>{loader}</loader></os>"
    xml = before.inactive_xml.replace("<devices>", f"{system}<devices>", 1)
    definition = replace(before, inactive_xml=xml, files=(NodeFile("loader", loader, b"saved", 0o644),))
    return replace(domain, saved=replace(domain.saved, definition=definition))


def test_firmware_that_a_guest_writes_to_is_restored_as_its_own(hypervisor: Hypervisor, nvram: Path) -> None:
    loader = nvram.with_name("fw.fd")
    loader.write_bytes(b"in use")
    state_dir = str(nvram.parents[1] / "state")
    refused = with_loader(restored(hypervisor, None, state_dir=state_dir), str(loader))
    with raises(f"the loader {loader} exists"):
        refused.require_definable()
    define(replace(refused, force=True))
    assert loader.read_bytes() == b"saved"


@pytest.mark.parametrize("drill", [False, True])
def test_a_copy_writes_to_firmware_of_its_own(hypervisor: Hypervisor, nvram: Path, drill: bool) -> None:
    loader, own = nvram.with_name("fw.fd"), nvram.with_name("two_LOADER.fd")
    loader.write_bytes(b"in use")
    state_dir, uuid = str(nvram.parents[1] / "state"), OTHER_UUID[:-1] + "9"
    copy = with_loader(restored(hypervisor, None, name="two", uuid=uuid, state_dir=state_dir), str(loader))
    if drill:
        xml = copy.isolated_xml(VDA, MONITORS)
        with copy.running_temporarily(xml):
            assert (str(own) in xml, own.read_bytes()) == (True, b"saved")
        assert not own.exists()
    else:
        define(copy)
        assert own.read_bytes() == b"saved"
    assert loader.read_bytes() == b"in use"


def test_firmware_that_a_guest_writes_to_gets_its_directory(hypervisor: Hypervisor, nvram: Path) -> None:
    loader = nvram.with_name("firmware") / "web" / "fw.fd"
    state_dir = str(nvram.parents[1] / "state")
    domain = with_loader(restored(hypervisor, None, state_dir=state_dir), str(loader))
    domain.require_definable()
    define(domain)
    assert loader.read_bytes() == b"saved"


def test_firmware_of_a_package_stays_as_it_is(hypervisor: Hypervisor, nvram: Path) -> None:
    domain = with_loader(restored(hypervisor, None), "/usr/bin/true")
    domain.require_definable()
    assert not domain._own_loader


def overlay(index: str = "", below: str = "", host: str = "") -> str:
    source = f"<source protocol='rbd' name='vms/web-root'{index}>{host}</source><target dev='vda'/>"
    return f"<disk type='network'><driver name='qemu' type='qcow2'/>{source}{below}</disk>"


LIVE_LAYERS = (
    "<backingStore type='network' index='2'><format type='raw'/>"
    "<source protocol='rbd' name='vms/base' index='3'/><backingStore/></backingStore>"
)


def on_a_base(
    hypervisor: Hypervisor, live: str = overlay(" index='1'", LIVE_LAYERS), **changes: Any
) -> tuple[RestoredDomain, Recorder]:
    """Give a domain whose definition does not have the layer below its disk, as while it does not run."""
    recorder = Recorder()
    domain = restored(hypervisor, None, reporter=recorder, **changes)
    names = {"vda": "vms/web-root", "vda.backing1": "vms/base"}
    images = tuple(SavedImage(one, name, MIB, 0, 0, 0.0, "", LAYOUT) for one, name in names.items())
    definition = Definition(domain_element(devices=overlay()), domain_element(devices=live))
    return replace(domain, saved=replace(domain.saved, images=images, definition=definition)), recorder


def test_a_restored_overlay_refers_to_its_restored_base(hypervisor: Hypervisor) -> None:
    moved = {"vda": image("new/root"), "vda.backing1": image("new/base")}
    for changes in ({}, {"name": "two"}):
        domain, recorder = on_a_base(hypervisor, **changes)
        xml = domain.xml(moved, MONITORS)
        names = [one.get("name") for one in ElementTree.fromstring(xml).iterfind("./devices/disk//source")]
        assert (names, "index" in xml) == (["new/root", "new/base"], False)
        assert recorder.told(Level.WARNING) == []
    define(domain, moved)


def test_an_overlay_in_its_old_place_keeps_its_definition(hypervisor: Hypervisor) -> None:
    domain, recorder = on_a_base(hypervisor)
    there = {"vda": image("vms/web-root"), "vda.backing1": image("vms/base")}
    assert "backingStore" not in domain.xml(there, MONITORS)
    assert recorder.told(Level.WARNING) == []


def test_a_copy_has_no_overlay_whose_base_was_not_restored(hypervisor: Hypervisor) -> None:
    domain, recorder = on_a_base(hypervisor, name="two")
    assert "<disk" not in domain.xml({"vda": image("new/root")}, MONITORS)
    assert recorder.told(Level.WARNING) == ["removed from the copy's definition: vda, which was not restored"]


@pytest.mark.parametrize(
    "live",
    [
        "",
        overlay(),
        overlay(" index='1'", "<backingStore/>"),
        overlay(" index='1'", LIVE_LAYERS).replace("vms/web-root", "vms/other"),
        overlay(" index='1'", LIVE_LAYERS, "<host name='other'/>"),
    ],
)
def test_the_layers_of_another_disk_are_not_added(hypervisor: Hypervisor, live: str) -> None:
    domain, _ = on_a_base(hypervisor, live)
    assert "backingStore" not in domain.xml({"vda": image("new/root")}, MONITORS)
