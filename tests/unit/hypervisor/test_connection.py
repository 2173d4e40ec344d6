"""backup/hypervisor/connection.py, with libvirt's own test driver."""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Callable
from xml.etree import ElementTree

import libvirt
import pytest

from backup.errors import DomainGone, Interrupted, TransientError
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.errors import HypervisorError
from backup.model import ClusterAddress, Consistency, Definition, NodeFile, State
from backup.quiesce.freeze import Quiescer
from backup.quiesce.freeze_notes import FreezeNotes

from ..driver_node import SHUT_OFF, domain_element, node_uri
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, UUID, domain, settings


@pytest.fixture
def nvram(tmp_path: Path) -> Path:
    path = tmp_path / "nvram.fd"
    path.write_bytes(b"\0variables")
    return path


@pytest.fixture
def hypervisor(tmp_path: Path, nvram: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Hypervisor]:
    """A node with a running and a shut off domain; libvirt itself must not write to standard error."""
    system = f"<loader type='pflash'>/fw.fd</loader><nvram>{nvram}</nvram>"
    web = domain_element("web", UUID, system=system)
    archive = domain_element("archive", OTHER_UUID, system=system, state=SHUT_OFF)
    with Hypervisor(node_uri(tmp_path / "node.xml", web, archive)) as hypervisor:
        yield hypervisor
    assert capfd.readouterr().err == ""


def test_a_domain_that_no_longer_exists_raises_domain_gone(hypervisor: Hypervisor) -> None:
    with raises("the domain is no longer defined", DomainGone):
        hypervisor.domain("00000000-0000-4000-8000-000000000000")


def test_a_thread_that_cannot_be_started_is_an_error_of_libvirt_so_that_a_thaw_is_retried(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    calls: list[Callable[[], object]] = [
        lambda: hypervisor.state(UUID),
        lambda: hypervisor.thaw(domain(), 5),
        lambda: hypervisor.resume(domain()),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", none_left)
        for call in calls:
            with pytest.raises(HypervisorError, match="can't start new thread") as caught:
                call()
            assert caught.value.transient
        hypervisor.__exit__()
    assert hypervisor.state(UUID) is State.RUNNING


def test_freeze_and_thaw_return_the_number_of_changed_file_systems(hypervisor: Hypervisor) -> None:
    assert [hypervisor.freeze(domain(), 5) for _ in range(2)] == [2, 0]
    assert [hypervisor.thaw(domain(), 5) for _ in range(2)] == [2, 0]


def test_a_domain_that_is_shut_off_can_be_neither_frozen_nor_thawed(hypervisor: Hypervisor) -> None:
    archive = domain(uuid=OTHER_UUID)
    with pytest.raises(HypervisorError, match=r"^cannot freeze the guest's file systems: "):
        hypervisor.freeze(archive, 5)
    with pytest.raises(HypervisorError, match=r"^cannot thaw the guest's file systems: "):
        hypervisor.thaw(archive, 5)


def test_an_agent_that_answers_passes_the_probe_and_one_of_a_domain_shut_off_does_not(
    hypervisor: Hypervisor,
) -> None:
    hypervisor.probe_agent(domain(), 5)
    with pytest.raises(HypervisorError, match=r"^the guest agent does not answer: "):
        hypervisor.probe_agent(domain(uuid=OTHER_UUID), 5)


def test_a_resume_waits_for_a_pause_that_is_still_pending(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt executes them one after the other, while the domain is still shown as running."""
    asked = []
    handle = SimpleNamespace(state=lambda: (1, 0), resume=lambda: asked.append("resume"))
    monkeypatch.setattr(hypervisor, "handle", lambda _uuid: handle)
    hypervisor.resume(domain())
    assert asked == ["resume"]


def test_resuming_a_running_domain_again_is_no_error(hypervisor: Hypervisor) -> None:
    hypervisor.pause(domain())
    assert hypervisor.domain(UUID).state is State.PAUSED
    hypervisor.resume(domain())
    hypervisor.resume(domain())
    assert hypervisor.domain(UUID).state is State.RUNNING


def test_a_domain_that_is_shut_off_cannot_be_paused(hypervisor: Hypervisor) -> None:
    with pytest.raises(HypervisorError, match=r"^cannot pause the domain: "):
        hypervisor.pause(domain(uuid=OTHER_UUID))


def test_the_definition_of_a_running_domain_has_inactive_xml_live_xml_and_nvram(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    definition = hypervisor.definition(domain())
    inactive, live = map(ElementTree.fromstring, (definition.inactive_xml, definition.live_xml))
    assert (inactive.get("id"), live.get("id")) == (None, "1")
    assert (definition.nvram_path, definition.nvram) == (str(nvram), b"\0variables")


def test_a_domain_that_is_shut_off_has_no_live_xml_and_may_have_no_nvram_yet(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    nvram.unlink()
    definition = hypervisor.definition(hypervisor.domain(OTHER_UUID))
    assert (definition.live_xml, definition.nvram_path, definition.nvram) == ("", str(nvram), b"")


@pytest.mark.parametrize(
    ("state", "ending", "content"),
    [(SHUT_OFF, "fd", b"\0own"), (SHUT_OFF, "qcow2", b"\0own"), (SHUT_OFF, "", b""), ("", "fd", b"")],
    ids=["shut off", "qcow2", "never ran", "running"],
)
def test_nvram_that_only_libvirt_s_rule_names_is_found_while_the_domain_is_shut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, ending: str, content: bytes
) -> None:
    """The live XML names it, the inactive one of libvirt before 9.2 does not."""
    monkeypatch.setattr("backup.hypervisor.firmware.NVRAM_DIRECTORY", str(tmp_path))
    path = tmp_path / f"web_VARS.{ending}"
    if ending:
        path.write_bytes(b"\0own")
    chosen = domain_element("web", UUID, state=state).replace("<os>", "<os firmware='efi'>")
    with Hypervisor(node_uri(tmp_path / "node.xml", chosen)) as hypervisor:
        definition = hypervisor.definition(hypervisor.domain(UUID))
    assert (definition.nvram_path, definition.nvram) == (str(path) if content else "", content)


def test_the_definition_knows_whether_the_domain_starts_with_its_node(hypervisor: Hypervisor) -> None:
    assert hypervisor.definition(domain()).autostart is False
    hypervisor.set_autostart(UUID, True)
    assert hypervisor.definition(domain()).autostart is True
    hypervisor.set_autostart(UUID, False)
    assert hypervisor.definition(domain()).autostart is False


def test_an_autostart_that_cannot_be_set_gets_the_command_as_a_hint(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_autostart: bool) -> None:
        raise libvirt.libvirtError("no")

    monkeypatch.setattr(hypervisor, "handle", lambda _: SimpleNamespace(setAutostart=refuse))
    for autostart, option in ((True, ""), (False, "--disable ")):
        with pytest.raises(HypervisorError, match=r"^cannot set the domain's autostart") as caught:
            hypervisor.set_autostart(UUID, autostart)
        assert caught.value.hint == f"virsh autostart {option}{UUID}"


def test_what_only_libvirt_stores_of_a_domain_is_known_with_its_definition(hypervisor: Hypervisor) -> None:
    assert hypervisor.definition(domain()).not_saved == ()
    handle = hypervisor.handle(OTHER_UUID)
    for name in ("before-upgrade", "after"):
        handle.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")
    archive = hypervisor.domain(OTHER_UUID)
    assert hypervisor.definition(archive).not_saved == (
        "the metadata of libvirt's snapshots after, before-upgrade",
    )
    hypervisor.handle(UUID).managedSave()
    saved = hypervisor.domain(UUID)
    assert hypervisor.definition(saved).not_saved == ("the memory that virsh managedsave saved",)


def test_nvram_of_a_running_domain_that_cannot_be_read_is_an_error(
    hypervisor: Hypervisor, nvram: Path
) -> None:
    nvram.unlink()
    with raises(f"cannot read the domain's NVRAM {nvram}: no such file or directory") as caught:
        hypervisor.definition(domain())
    assert caught.value.hint == "without it the restored guest would not boot"
    nvram.mkdir()
    with raises(f"cannot read the domain's NVRAM {nvram}: is a directory"):
        hypervisor.definition(hypervisor.domain(OTHER_UUID))


def test_files_that_hang_while_the_guest_is_frozen_are_abandoned_in_time(
    hypervisor: Hypervisor, nvram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = hypervisor.definition(domain())
    nvram.write_bytes(b"now")
    assert hypervisor.with_current_state(domain(), definition, 5).nvram == b"now"
    nvram.unlink()
    os.mkfifo(nvram)  # a read waits for a writer
    began = time.monotonic()
    with raises("cannot read the domain's files: no answer within 0 s", TransientError):
        hypervisor.with_current_state(domain(), definition, -1)
    with raises("interrupted", Interrupted):
        hypervisor.with_current_state(domain(), definition, 60, interrupted)
    assert time.monotonic() < began + 5
    without = replace(definition, nvram_path="")
    assert hypervisor.with_current_state(domain(), without, -1) == without, "there is nothing to read"
    os.close(os.open(nvram, os.O_RDWR))  # ends the reads


def test_firmware_that_a_guest_writes_to_is_read_with_its_nvram(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    loader = tmp_path / "fw.fd"
    loader.write_bytes(b"now")
    xml = f"<domain><os><loader readonly='no' type='pflash'>{loader}</loader></os></domain>"
    definition = Definition(xml, xml, files=(NodeFile("loader", str(loader), b"before"),))
    (file,) = hypervisor.with_current_state(domain(), definition, 5).files
    assert file.content == b"now"


def interrupted() -> None:
    raise Interrupted("interrupted", 2)


def test_a_disk_without_credentials_needs_no_secret(hypervisor: Hypervisor) -> None:
    assert hypervisor.secret(ClusterAddress(user="admin")) == ""


@pytest.mark.parametrize(
    "address",
    [ClusterAddress(user="libvirt", secret_uuid=UUID), ClusterAddress(user="libvirt", secret_usage=UUID)],
    ids=["uuid", "usage"],
)
def test_an_error_about_a_secret_names_the_secret_and_the_cephx_user(
    hypervisor: Hypervisor, address: ClusterAddress
) -> None:
    with pytest.raises(HypervisorError) as caught:
        hypervisor.secret(address)
    assert caught.value.message.startswith(f"cannot get libvirt's secret {UUID} of client.libvirt: ")
    assert "virsh secret-list" in caught.value.hint


def test_an_error_about_an_unreachable_libvirt_names_its_uri(tmp_path: Path) -> None:
    uri = f"test://{tmp_path}/nowhere.xml"
    with pytest.raises(HypervisorError) as caught:
        Hypervisor(uri)
    assert caught.value.message.startswith(f"cannot connect to libvirt at {uri}: ")
    assert f"virsh --connect {uri} list; see LIBVIRT_URI" in caught.value.hint


def test_freezing_and_pausing_a_domain_works_with_libvirt_itself(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    notes = FreezeNotes(str(tmp_path))
    quiescer = Quiescer(hypervisor, notes, settings(), Recorder())
    listed = domain(instance=hypervisor.instance(UUID))
    with quiescer.quiesced(listed) as quiesced:
        assert hypervisor.freeze(listed, 5) == 0, "all of them are frozen"
    assert quiesced.consistency is Consistency.FILESYSTEM
    assert hypervisor.thaw(listed, 5) == 0
    with quiescer.quiesced(replace(listed, agent_connected=False)) as quiesced:
        assert hypervisor.domain(UUID).state is State.PAUSED
    assert quiesced.consistency is Consistency.PAUSED
    assert hypervisor.domain(UUID).state is State.RUNNING
    assert notes.all() == []


@pytest.mark.parametrize(
    ("operation", "cancelled"),
    [
        (libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, True),
        (libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, False),
        (libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE, False),
        (None, False),
    ],
)
def test_only_a_migration_to_another_node_is_cancelled(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch, operation: int | None, cancelled: bool
) -> None:
    asked = []
    stats = {} if operation is None else {"operation": operation}
    handle = SimpleNamespace(jobStats=lambda: stats, abortJob=lambda: asked.append("abort"))
    monkeypatch.setattr(hypervisor, "handle", lambda _uuid: handle)
    assert hypervisor.cancel_migration(UUID) is cancelled
    assert asked == ["abort"] * cancelled


@pytest.mark.parametrize(
    ("memory", "sending"), [({"memory_total": 0}, False), ({"memory_total": 1}, True), ({}, True)]
)
def test_a_migration_that_is_being_prepared_is_known_by_the_memory_that_it_has_not_counted_yet(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch, memory: dict[str, int], sending: bool
) -> None:
    asked = []
    stats = {"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, **memory}
    handle = SimpleNamespace(jobStats=lambda: stats, abortJob=lambda: asked.append("abort"))
    monkeypatch.setattr(hypervisor, "handle", lambda _uuid: handle)
    assert hypervisor.cancel_migration(UUID, sending=True) is sending
    assert hypervisor.cancel_migration(UUID)
    assert asked == ["abort"] * (sending + 1)


@pytest.mark.parametrize(("alive", "code"), [(True, 1), (False, 1), (True, 38)])
def test_what_qemu_refuses_to_start_is_only_transient_where_the_connection_is_lost(
    hypervisor: Hypervisor, alive: bool, code: int
) -> None:
    def refuse(_xml: str, _flags: int) -> None:
        error = libvirt.libvirtError("")
        error.err = (code, 10, "internal error: Image is not in qcow2 format", 2, None, None, None, 0, 0)
        raise error

    opened = hypervisor._open
    answers = iter([True, alive])
    hypervisor._open = SimpleNamespace(createXML=refuse, isAlive=lambda: next(answers))
    try:
        with pytest.raises(HypervisorError, match="not in qcow2 format") as caught:
            hypervisor.run_once("<domain/>")
    finally:
        hypervisor._open = opened
    assert caught.value.transient == (not alive or code == 38)


def test_each_new_connection_is_counted(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    hypervisor.domains()
    assert hypervisor.connection_number == 1
    opened = hypervisor._open
    monkeypatch.setattr(opened, "isAlive", lambda: False, raising=False)
    hypervisor.domains()
    assert hypervisor.connection_number == 2
