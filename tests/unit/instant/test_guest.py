"""backup/instant/guest.py: a guest on a restore point, and nothing of it afterwards, whatever happened."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import libvirt
import pytest

from backup.errors import BackupError, NotDrillable, TransientError
from backup.hypervisor import firmware
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.qcow2 import HEADER, MAGIC
from backup.instant import guest
from backup.instant.guest import DIRECTORY_LIMIT, InstantGuest
from backup.model import Consistency, Definition, Level, NodeFile
from backup.mount.shown_file import File, Text
from backup.mount.shown_point import ShownPoint
from backup.restore import domain as restored_domain
from backup.restore.domain import RestoredDomain
from backup.restore.written_files import remove_left
from backup.stored import PointId, SavedDomain, SavedImage

from ..driver_node import domain_element, node_uri
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, MIB, OTHER_UUID, RUN, TAKEN, UUID

DISK = "<disk type='network'>{}<source protocol='rbd' name='{}'/><target dev='{}'/></disk>"
QCOW2 = b"QFI\xfb" + bytes(20) + (64 * MIB).to_bytes(8, "big") + bytes(MIB)
NVRAM = b"variables"


class Damaged(Text):
    """A file that cannot be read."""

    def is_there(self, offset: int, length: int) -> bool:
        return False

    def read(self, offset: int, length: int) -> bytes:
        if offset == 0:
            return super().read(offset, length)
        raise BackupError("the pack 0123abcd is missing", "another restore point may be sound")


class Hanging(Text):
    """A file of which a read takes a second."""

    def read(self, offset: int, length: int) -> bytes:
        time.sleep(1)
        return super().read(offset, length)


def saved_domain(node: Path, devices: str = "", system: str = "") -> SavedDomain:
    names = {"vda": "vms/a", "vdb": "vms/b", "nvram": "vms/nvram"}
    images = tuple(SavedImage(one, name, MIB, MIB, 0, 0.0, "", LAYOUT) for one, name in names.items())
    disks = DISK.format("", "vms/a", "vda") + DISK.format("<driver type='qcow2'/>", "vms/b", "vdb")
    definition = Definition(domain_element(devices=disks + devices, system=system))
    return SavedDomain(PointId(RUN, UUID), "web", TAKEN, Consistency.OFFLINE, images, (), definition, {})


@dataclass
class Node:
    """A node of libvirt's test driver, with directories of its own."""

    root: Path
    hypervisor: Hypervisor
    damage: str = ""

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def records(self) -> list[Path]:
        return list((self.root / "state/written").glob("*"))

    def guest(
        self, disks: Mapping[str, File] | None = None, system: str = "", parent: str = ""
    ) -> InstantGuest:
        saved, recorder = saved_domain(self.root, system=system), Recorder()
        state = str(self.root / "state")
        domain = RestoredDomain.from_saved(saved, self.hypervisor, "web-drill", True, False, recorder, state)
        files = disks or {
            "vda": File("vda.raw", Text(bytes(MIB + 1)), MIB),
            "vdb": File("vdb.raw", Text(QCOW2), MIB),
        }
        point = ShownPoint(saved, files, (), lambda: None, lambda: self.damage)
        return InstantGuest(domain, point, parent or str(self.images), lambda: None)

    def names(self) -> list[str]:
        return [one.name for one in self.hypervisor.domains()]

    def require_nothing_left(self) -> None:
        assert (list(self.images.iterdir()), self.records, self.names()) == ([], [], ["db"])


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """The test driver does not know how to destroy a domain by itself."""
    monkeypatch.setattr(libvirt, "VIR_DOMAIN_START_AUTODESTROY", 0)
    monkeypatch.setattr(guest, "ROOM", 1 << 20)
    monkeypatch.setattr(guest, "RESERVE", 1 << 20)
    (tmp_path / "images").mkdir()
    with Hypervisor(node_uri(tmp_path / "node.xml", domain_element("db", OTHER_UUID))) as hypervisor:
        yield Node(tmp_path, hypervisor)


def described(path: Path) -> Mapping[str, object]:
    command = ["qemu-img", "info", "--force-share", "--output=json", str(path)]
    found: Mapping[str, object] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def test_it_runs_on_overlays_that_others_cannot_read_and_nothing_is_left(node: Node) -> None:
    with node.guest().running() as running:
        running.check()
        assert node.names() == ["db", "web-drill"]
        (directory,) = node.images.iterdir()
        assert sorted(path.name for path in directory.iterdir()) == ["nbd", "vda.qcow2", "vdb.qcow2"]
        assert directory.stat().st_mode & 0o777 == 0o711, "QEMU reaches it, and nobody lists it"
        for path, size in ((directory / "vda.qcow2", MIB + 512), (directory / "vdb.qcow2", 64 * MIB)):
            assert path.stat().st_mode & 0o077 == 0
            assert described(path)["virtual-size"] == size
        assert described(directory / "vdb.qcow2")["backing-filename-format"] == "qcow2"
        copy = subprocess.run(["qemu-io", "-c", "read 0 4096", directory / "vda.qcow2"], capture_output=True)
        assert copy.returncode == 0, "the overlay's own header leads to the server too"
        assert len(node.records) == 2
    node.require_nothing_left()


def test_nvram_on_rbd_is_copied_into_the_directory(node: Node) -> None:
    nvram = "<nvram type='network'><source protocol='rbd' name='vms/nvram'><host name='a'/></source></nvram>"
    disks = {
        "vda": File("vda.raw", Text(bytes(MIB)), MIB),
        "vdb": File("vdb.raw", Text(bytes(MIB)), MIB),
        "nvram": File("nvram.raw", Text(NVRAM), 9),
    }
    system = f"<loader readonly='yes' type='pflash'>/fw.fd</loader>{nvram}"
    with node.guest(disks, system).running():
        (directory,) = node.images.iterdir()
        found = directory / "web-drill_VARS.fd"
        assert (found.read_bytes(), found.stat().st_mode & 0o077) == (NVRAM, 0)
    node.require_nothing_left()


def test_after_a_failure_nothing_is_left_either(node: Node) -> None:
    with raises("it did not boot"), node.guest().running():
        raise BackupError("it did not boot")
    node.require_nothing_left()


def test_a_guest_that_libvirt_cannot_start_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(xml: str) -> None:
        raise BackupError("cannot start the domain: no memory")

    monkeypatch.setattr(node.hypervisor, "run_once", refuse)
    with raises("cannot start the domain: no memory"), node.guest().running():
        pass
    node.require_nothing_left()


def test_what_cannot_be_read_ends_it_with_the_reason(node: Node) -> None:
    disks = {
        "vda": File("vda.raw", Damaged(bytes(MIB)), MIB),
        "vdb": File("vdb.raw", Text(bytes(MIB)), MIB),
    }
    with node.guest(disks).running() as running:
        path = running.directory / "nbd"
        command = ["qemu-io", "-r", "-f", "raw", "-c", "read 4096 512", f"nbd+unix:///vda?socket={path}"]
        subprocess.run(command, check=False, capture_output=True)
        with raises("vda.raw: cannot read at offset 4096: the pack 0123abcd is missing"):
            running.check()
    node.require_nothing_left()


def test_a_repository_that_does_not_answer_proves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node.guest().running() as running:
        running.server._began[object()] = time.monotonic() - 121
        with raises("the repository has not answered for 121 s", TransientError):
            running.check()
    node.require_nothing_left()


def qcow2_header(features: int = 0, backing: int = 0) -> bytes:
    """A header of version 3, and zeros."""
    header = HEADER.pack(MAGIC, 3, backing, 8, 16, MIB, 0, 1, 65536, 131072, 1, 0, 0)
    return (header + features.to_bytes(8, "big")).ljust(MIB, b"\0")


def test_a_disk_whose_data_is_in_a_file_of_this_node_is_refused(node: Node) -> None:
    disks = {"vda": File("vda.raw", Text(bytes(MIB)), MIB)}
    disks["vdb"] = File("vdb.raw", Text(qcow2_header(features=0b100)), MIB)
    with raises("vdb: its header names a data file of this node", NotDrillable), node.guest(disks).running():
        pass
    disks["vdb"] = File("vdb.raw", Text(qcow2_header(backing=4096)), MIB)
    with node.guest(disks).running():
        """The definition says what is below it."""
    disks["vda"], disks["vdb"] = File("vda.raw", Text(qcow2_header(features=0b100)), MIB), disks["vda"]
    with node.guest(disks).running():
        """It is raw: QEMU does not read it as a header."""
    node.require_nothing_left()


@pytest.mark.parametrize("on_rbd", [True, False])
@pytest.mark.parametrize("header", [{"features": 0b100}, {"backing": 4096}])
def test_nvram_that_leads_to_a_file_of_this_node_is_refused(
    node: Node, header: Mapping[str, int], on_rbd: bool
) -> None:
    variables = qcow2_header(**header)
    disks = {"vda": File("vda.raw", Text(bytes(MIB)), MIB)}
    system = ""
    if on_rbd:
        disks["nvram"] = File("nvram.raw", Text(variables), MIB)
        source = "<source protocol='rbd' name='vms/nvram'><host name='a'/></source><format type='qcow2'/>"
        system = f"<loader readonly='yes' type='pflash'>/fw.fd</loader><nvram type='network'>{source}</nvram>"
    guest = node.guest(disks, system)
    if not on_rbd:
        saved = guest.domain.saved
        definition = replace(saved.definition, nvram_path=f"{node.root}/x_VARS.fd", nvram=variables)
        saved = replace(saved, definition=definition)
        guest = replace(
            guest, domain=replace(guest.domain, saved=saved), point=replace(guest.point, saved=saved)
        )
    with pytest.raises(NotDrillable, match=r"(?i)nvram: its header names"), guest.running():
        pass
    node.require_nothing_left()


def test_a_restore_point_without_a_disk_proves_nothing_and_one_that_lacks_some_is_a_warning(
    node: Node,
) -> None:
    with (
        raises("the restore point has no whole disk of the domain", NotDrillable),
        node.guest({"other": File("vda.raw", Text(bytes(MIB)), MIB)}).running(),
    ):
        pass
    guest = node.guest({"vda": File("vda.raw", Text(bytes(MIB)), MIB)})
    with guest.running():
        pass
    assert isinstance(guest.domain.reporter, Recorder)
    assert guest.domain.reporter.told(Level.WARNING) == [
        "removed from the copy's definition: vdb, which was not restored"
    ]
    node.require_nothing_left()


TEMPLATE = "<nvram template='/usr/share/OVMF/VARS.fd'>{}/web_VARS.fd</nvram>"
LOADER = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader>"


@pytest.mark.parametrize("named", [True, False])
def test_nvram_that_libvirt_creates_is_recorded_and_removed(
    node: Node, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    directory = node.root / "nvram"
    directory.mkdir()
    monkeypatch.setattr(firmware, "NVRAM_DIRECTORY", str(directory))
    system = LOADER + (TEMPLATE.format(directory) if named else "")
    with node.guest(system=system).running():
        recorded = [json.loads(path.read_text().splitlines()[-1]) for path in node.records]
        (directory / "web-drill_VARS.fd").write_bytes(b"libvirt")
        assert any(str(directory / "web-drill_VARS.fd") in one["own"] for one in recorded)
    assert not list(directory.iterdir())
    (directory / "web-drill_VARS.fd").write_bytes(b"of another")
    with node.guest(system=system).running():
        pass
    assert [path.read_bytes() for path in directory.iterdir()] == [b"of another"], "it was there before"
    node.require_nothing_left()


def test_nvram_that_cannot_be_written_here_proves_nothing(node: Node) -> None:
    guest = node.guest(system=LOADER + "<nvram>/nowhere/web_VARS.fd</nvram>")
    saved = guest.domain.saved
    definition = replace(saved.definition, nvram_path="/nowhere/web_VARS.fd", nvram=NVRAM)
    guest = replace(guest, domain=replace(guest.domain, saved=replace(saved, definition=definition)))
    with pytest.raises(NotDrillable, match="/nowhere is missing or not writable"), guest.running():
        pass
    node.require_nothing_left()


def with_kernel(guest: InstantGuest, path: str, named: bool = True) -> InstantGuest:
    """Let the restore point have a file, which the definition names."""
    saved = guest.domain.saved
    xml = saved.definition.inactive_xml
    if named:
        xml = xml.replace("</os>", f"<kernel>{path}</kernel></os>")
    files = (NodeFile("kernel", path, b"* * * * * root id", 0o755, "root:root"),)
    definition = replace(saved.definition, inactive_xml=xml, files=files)
    return replace(guest, domain=replace(guest.domain, saved=replace(saved, definition=definition)))


def test_a_file_that_the_definition_does_not_name_is_not_written(node: Node) -> None:
    path = node.root / "kernel"
    with with_kernel(node.guest(), str(path)).running():
        assert path.exists()
    with with_kernel(node.guest(), str(path), named=False).running():
        assert not path.exists()
    node.require_nothing_left()


@pytest.mark.parametrize("directory", ["/etc/cron.d", "/var/spool/cron/crontabs", "{root}/../{name}/link"])
def test_no_file_is_written_to_a_directory_of_the_system(node: Node, directory: str) -> None:
    (node.root / "link").symlink_to("/etc/cron.d")
    path = directory.format(root=node.root, name=node.root.name) + "/evil"
    message = f"a drill does not write the kernel {path} to a directory of the system"
    with raises(message, NotDrillable), with_kernel(node.guest(), path).running():
        pass
    assert not Path(path).exists()
    node.require_nothing_left()


@pytest.mark.parametrize("xml", ["no XML", "<domain>", "<domain/>", "<pool><name/><uuid/><devices/></pool>"])
def test_a_definition_that_is_none_is_damaged(node: Node, xml: str) -> None:
    saved = replace(saved_domain(node.root), definition=Definition(xml))
    with pytest.raises(BackupError, match="the saved definition of the domain is damaged"):
        RestoredDomain.from_saved(saved, node.hypervisor, "web-drill", True, False, Recorder(), "")


@pytest.mark.parametrize("has_agent", [True, False])
def test_when_its_time_is_up_an_answer_that_is_missing_proves_nothing(node: Node, has_agent: bool) -> None:
    with node.guest().running() as running:
        running.server.has_read = True
        running.check_end(has_agent)
        running.server._began[object()] = time.monotonic() - 11
        running.check()
        with raises("the repository has not answered for 11 s", TransientError):
            running.check_end(has_agent)
    node.require_nothing_left()


def test_a_guest_without_an_agent_that_has_read_nothing_proves_nothing(node: Node) -> None:
    with node.guest().running() as running:
        running.check_end(has_agent=True)
        with raises("the guest has read nothing of its disks, and has no agent", NotDrillable):
            running.check_end(has_agent=False)


def test_a_path_that_is_too_long_for_a_socket_proves_nothing(node: Node) -> None:
    parent = node.root / "long"
    parent = parent / ("x" * (DIRECTORY_LIMIT - len(str(parent)) - 1))
    parent.mkdir(parents=True)
    with node.guest(parent=str(parent)).running():
        pass
    longer = parent.parent / f"{parent.name}y"
    longer.mkdir()
    with pytest.raises(NotDrillable, match="cannot listen on"), node.guest(parent=str(longer)).running():
        pass
    assert not list(longer.iterdir())


def test_data_that_is_lost_ends_it_also_while_the_read_is_retried(node: Node) -> None:
    with node.guest().running() as running:
        node.damage = "Load(<data/0123>) returned error, retrying: no such file"
        with raises(f"the guest needs what the repository has lost: {node.damage}"):
            running.check()
    with (
        raises(f"the guest needs what the repository has lost: {node.damage}"),
        node.guest({"vda": File("vda.raw", Hanging(bytes(MIB)), MIB)}).running(),
    ):
        pass
    node.require_nothing_left()


def test_a_guest_that_writes_too_much_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.guest().running() as running:
        monkeypatch.setattr(guest, "RESERVE", 1 << 60)
        with pytest.raises(NotDrillable, match="the guest fills DRILL_DIR"):
            running.check()
    node.require_nothing_left()


def test_without_room_it_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "ROOM", 1 << 60)
    with pytest.raises(NotDrillable, match="the guest's writes may need"), node.guest().running():
        pass
    node.require_nothing_left()


def test_a_directory_that_is_missing_is_named(node: Node) -> None:
    with (
        raises("cannot use /nowhere (DRILL_DIR): no such file or directory", NotDrillable),
        node.guest(parent="/nowhere").running(),
    ):
        pass
    node.require_nothing_left()


def test_the_guest_of_another_drill_is_not_touched(node: Node) -> None:
    node.hypervisor.define(domain_element("web-drill", UUID[:-1] + "7"))
    with pytest.raises(NotDrillable, match="another domain named web-drill"), node.guest().running():
        pass
    assert node.names() == ["db", "web-drill"]


def test_on_another_node_it_is_refused(node: Node) -> None:
    node.hypervisor.local = False
    with pytest.raises(NotDrillable, match="is on another node"), node.guest().running():
        pass
    node.require_nothing_left()


def test_a_guest_that_cannot_be_ended_stays_recorded_and_the_next_command_ends_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restored_domain, "RESTART_LIMIT", 0.0)
    real = Hypervisor.destroy

    def unreachable(hypervisor: Hypervisor, uuid: str) -> None:
        raise TransientError("libvirt is being restarted")

    with pytest.raises(TransientError, match="being restarted"), node.guest().running():
        monkeypatch.setattr(Hypervisor, "destroy", unreachable)
    assert (len(node.records), node.names()) == (2, ["db", "web-drill"])
    monkeypatch.setattr(Hypervisor, "destroy", real)
    recorder = Recorder()
    remove_left(str(node.root / "state"), lambda _: node.hypervisor, recorder)
    node.require_nothing_left()
    assert any("removed what an interrupted" in text for text in recorder.told(Level.WARNING))


KILLED = """
import os, signal, sys
from pathlib import Path
import libvirt
from backup.hypervisor.connection import Hypervisor
from backup.instant import guest
from tests.unit.instant.test_guest import Node

libvirt.VIR_DOMAIN_START_AUTODESTROY = 0
guest.ROOM = guest.RESERVE = 0
root, at, steps = Path(sys.argv[1]), sys.argv[2], []

def killed(place, name):
    real = getattr(place, name)
    def call(*arguments, **named):
        found = real(*arguments, **named)
        steps.append(name)
        if f"{name}{steps.count(name)}" == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(place, name, call)

killed(os, "mkdir")
killed(os, "chmod")
killed(guest, "qemu_img")
killed(Hypervisor, "run_once")
killed(Hypervisor, "destroy")
killed(os, "unlink")
with Hypervisor(sys.argv[3]) as hypervisor, Node(root, hypervisor).guest().running():
    if at == "running":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "at",
    ["qemu_img1", "qemu_img2", "chmod1", "chmod2", "run_once1", "running", "destroy1", "unlink1", "unlink2"],
)
def test_after_a_kill_at_any_moment_the_next_command_removes_what_is_left(node: Node, at: str) -> None:
    uri = f"test://{node.root}/node.xml"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(node.root), at, uri], cwd=Path(__file__).parents[3], timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert node.records, "whatever it has made is recorded before"
    (record, *_) = [json.loads(path.read_text().splitlines()[-1]) for path in node.records]
    assert (record["host"], len(record["domain"])) == (socket.gethostname(), 36)
    destroyed: list[str] = []
    node.hypervisor.destroy = destroyed.append  # type: ignore[assignment,method-assign]
    remove_left(str(node.root / "state"), lambda _: node.hypervisor, Recorder())
    assert set(destroyed) == {record["domain"]}
    node.require_nothing_left()
