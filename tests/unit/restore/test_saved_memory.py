"""backup/restore/saved_memory.py: restored disks do not fit the memory that virsh managedsave saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.errors import Interrupted
from backup.model import Consistency, Definition, Level
from backup.restore import saved_memory
from backup.restore.saved_memory import require_no_saved_memory
from backup.stored import PointId, SavedDomain, SavedImage
from backup.system.module_import import FailedImport
from backup.system.stop_request import StopRequest

from ..disk_elements import other, rbd
from ..driver_node import SHUT_OFF, domain_element, node_uri
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, MIB, OTHER_UUID, RUN, TAKEN, UUID, image, settings

SAVED = SHUT_OFF + "<test:hasmanagedsave/>"
IMAGE = SavedImage("vda", "vms/root", MIB, 0, 0, 0.0, "", LAYOUT)
POINT = SavedDomain(
    PointId(RUN, UUID), "web", TAKEN, Consistency.OFFLINE, (IMAGE,), (), Definition("<domain/>"), {}
)
MESSAGE = "virsh managedsave has saved the memory of domain {}, which uses {}"


def check(*uris: str, place: str = "vms/root", stop: StopRequest | None = None) -> list[str]:
    """Check the restore of vda to this place; return the warnings."""
    recorder = Recorder()
    places = {"vda": image(place)}
    require_no_saved_memory(POINT, places, settings(libvirt_uri=uris), recorder, stop or StopRequest())
    return recorder.told(Level.WARNING)


def node(directory: Path, name: str, uuid: str, devices: str, state: str = SAVED) -> str:
    return node_uri(directory / f"{name}.xml", domain_element(name, uuid, devices, state=state))


def test_images_of_a_domain_whose_memory_is_saved_are_not_replaced(tmp_path: Path) -> None:
    with raises(MESSAGE.format("web", "vms/root")) as caught:
        check(node(tmp_path, "web", UUID, rbd("vms/root")))
    assert caught.value.hint.startswith("virsh managedsave-remove web ")
    with raises(MESSAGE.format("renamed", "vms/root")):
        check(node(tmp_path, "renamed", OTHER_UUID, rbd("vms/root")))
    with raises(MESSAGE.format("copy", "vms/copy")):
        check(node(tmp_path, "copy", OTHER_UUID, rbd("vms/copy")), place="vms/copy")
    with raises(MESSAGE.format("web", "its images")):
        check(node(tmp_path, "web", UUID, other("volume", "<source pool='gone' volume='root'/>")))


def test_every_libvirt_is_asked(tmp_path: Path) -> None:
    first = node(tmp_path, "db", OTHER_UUID, rbd("vms/db"))
    with raises(MESSAGE.format("web", "vms/root")):
        check(first, node(tmp_path, "web", UUID, rbd("vms/root")))
    with raises(MESSAGE.format("web", "vms/root")):
        check("none:///", node(tmp_path, "web", UUID, rbd("vms/root")))


@pytest.mark.parametrize("place", ["vms/root", "vms/elsewhere"])
def test_other_domains_and_other_images_do_not_matter(tmp_path: Path, place: str) -> None:
    for state in (SHUT_OFF, ""):
        assert check(node(tmp_path, "web", UUID, rbd("vms/root"), state), place=place) == []
    assert check(node(tmp_path, "db", OTHER_UUID, rbd("vms/db")), place=place) == []
    assert check(node(tmp_path, "web", UUID, rbd("vms/root")), place="vms/elsewhere") == []


def test_where_libvirt_cannot_be_asked_the_hint_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = check("none:///")
    assert text.startswith("not checked whether virsh managedsave has saved its memory: cannot connect")
    assert text.endswith("(hint: before its start, where it is defined: virsh managedsave-remove web)")
    assert check("none:///", place="vms/elsewhere") == []
    monkeypatch.setattr(saved_memory, "failed_imports", lambda _: [FailedImport("libvirt")])
    (text,) = check("test:///default")
    assert "memory: no module libvirt (hint: " in text


def test_a_stop_is_no_reason_to_go_on() -> None:
    stop = StopRequest()
    stop.request(Interrupted("interrupted", 15))
    with raises("interrupted", Interrupted):
        check("none:///", stop=stop)
