"""backup/run/cleanup.py: guests of killed runs are thawed or resumed at their libvirt."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup.errors import Interrupted
from backup.hypervisor import connections
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.errors import HypervisorError
from backup.model import Domain, Level
from backup.quiesce import thaw, thaw_rounds
from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.quiesce.thaw_rounds import thaw_guests
from backup.run.cleanup import clean_node, thaw_node
from backup.system.stop_request import StopRequest
from backup.watch.node_lock import only_run

from ..driver_node import domain_element, node_uri
from ..paper_hypervisor import PaperHypervisor
from ..recorder import Recorder
from ..samples import OTHER_URI, OTHER_UUID, URI, UUID, domain, settings
from ..waiting import wait_until

FOR_EVER = 1_000_000


class Node:
    """A node with notes of web and db, each quiesced at another libvirt."""

    def __init__(self, directory: Path, method: Method) -> None:
        self.notes = FreezeNotes(str(directory))
        self.recorder = Recorder()
        self.web = PaperHypervisor(domain("web", UUID), self.notes)
        self.db = PaperHypervisor(domain("db", OTHER_UUID, uri=OTHER_URI), self.notes)
        for hypervisor in (self.web, self.db):
            self.notes.write(hypervisor.listed, method)
            hypervisor.frozen, hypervisor.paused = method is Method.FREEZE, method is Method.PAUSE
        self.reachable = {URI: self.web, OTHER_URI: self.db}
        self.settings = settings(runtime_dir=str(directory), freeze_timeout=0)

    def connect(self, uri: str, *_: object) -> PaperHypervisor:
        if uri not in self.reachable:
            raise HypervisorError(f"cannot connect to libvirt at {uri}: no route to host", "virsh")
        return self.reachable[uri]

    def thaw(self, uuid: str | None = None) -> int:
        return thaw_guests(self.settings, self.recorder, uuid)

    def names_in_notes(self) -> list[str]:
        return [note.name for note in self.notes.all()]


@pytest.fixture(params=Method)
def node(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node(tmp_path, request.param)
    for module in (thaw_rounds, connections):
        monkeypatch.setattr(module, "Hypervisor", node.connect)
    monkeypatch.setattr(thaw_rounds, "FIRST_PAUSE", 0.001)
    for module in (thaw, thaw_rounds):
        monkeypatch.setattr(module, "CHECK_AGAIN", 0.001)
    return node


def test_each_guest_is_thawed_at_its_own_libvirt_with_a_warning(node: Node) -> None:
    method = node.notes.all()[0].method
    assert node.thaw() == 0
    assert (node.web.moves, node.db.moves, node.names_in_notes()) == (True, True, [])
    done, state = ("thawed", "frozen") if method is Method.FREEZE else ("resumed", "paused")
    text = f"{done}: an interrupted backup had left the guest {state}"
    assert node.recorder.messages == [(Level.WARNING, name, text) for name in ("web", "db")]
    assert node.web.closed
    assert node.db.closed


def test_a_guest_that_cannot_be_thawed_is_reported_and_counted_and_its_note_stays(node: Node) -> None:
    node.web.failing_thaws = node.web.failing_resumes = FOR_EVER
    assert node.thaw() == 1
    assert (node.web.moves, node.db.moves, node.names_in_notes()) == (False, True, ["web"])
    (error,) = node.recorder.told(Level.ERROR)
    assert error.startswith("the guest may still be ")
    assert len(node.recorder.told(Level.WARNING)) == 1, "of db alone"
    assert node.web.closed


def test_a_guest_whose_libvirt_cannot_be_reached_does_not_hinder_the_others(node: Node) -> None:
    del node.reachable[URI]
    assert node.thaw() == 1
    assert (node.web.moves, node.db.moves, node.names_in_notes()) == (False, True, ["web"])
    assert [(level, name) for level, name, _ in node.recorder.messages] == [
        (Level.WARNING, "db"),
        (Level.ERROR, "web"),
    ]
    assert (
        node.recorder.messages[1][2] == f"cannot connect to libvirt at {URI}: no route to host (hint: virsh)"
    )


def test_after_a_worker_s_death_only_its_own_domain_is_thawed(node: Node) -> None:
    del node.reachable[OTHER_URI]  # it is not even asked
    assert node.thaw(UUID) == 0
    assert (node.web.moves, node.db.moves, node.names_in_notes()) == (True, False, ["db"])


def test_without_notes_nothing_is_asked(node: Node) -> None:
    assert node.thaw() == 0
    node.recorder.messages.clear()
    node.reachable.clear()
    assert node.thaw() == 0
    assert node.recorder.messages == []


def test_a_domain_that_is_gone_needs_no_thaw(node: Node) -> None:
    node.web.gone = node.db.gone = True
    assert node.thaw() == 0
    assert (node.web.asked, node.db.asked, node.names_in_notes()) == ([], [], [])


def clean(directory: Path, recorder: Recorder, *uris: str) -> int:
    directories = {"runtime_dir": str(directory / "run"), "state_dir": str(directory / "state")}
    return clean_node(settings(libvirt_uri=uris, **directories), recorder, StopRequest())


def test_files_that_a_killed_drill_wrote_are_removed(recorder: Recorder, tmp_path: Path) -> None:
    uri = node_uri(tmp_path / "node.xml", domain_element())
    nvram, own = tmp_path / "web-drill_VARS.fd", {"own": [str(tmp_path / "web-drill_VARS.fd")]}
    nvram.touch()
    (tmp_path / "state/written").mkdir(parents=True)
    record = {"name": "web-drill", "host": socket.gethostname(), "uri": uri, "domain": OTHER_UUID, **own}
    (tmp_path / "state/written/1.json").write_text(json.dumps(record))
    assert clean(tmp_path, recorder, uri) == 0
    text = f"removed what an interrupted restore or drill left: {nvram}"
    assert recorder.messages == [(Level.WARNING, "web-drill", text)]
    assert not nvram.exists()


def test_an_unreachable_libvirt_counts_as_a_failure_of_the_cleanup(
    recorder: Recorder, tmp_path: Path
) -> None:
    uri = node_uri(tmp_path / "node.xml", domain_element())
    assert clean(tmp_path, recorder, uri) == 0
    assert clean(tmp_path, recorder, "nonsense:///system", uri) == 1
    ((level, name, error),) = recorder.messages
    assert (level, name) == (Level.ERROR, "")
    assert error.startswith("cannot connect to libvirt at nonsense:///system: ")


def test_a_libvirt_that_fails_while_it_lists_does_not_keep_the_others_from_being_cleaned(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [node_uri(tmp_path / f"{name}.xml", domain_element()) for name in ("first", "second")]
    cleaned = []

    def domains(self: Hypervisor, _check_stop: object) -> list[Domain]:
        if self.uri == uris[0]:
            raise HypervisorError("cannot list the domains: connection lost")
        cleaned.append(self.uri)
        return []

    monkeypatch.setattr(Hypervisor, "domains", domains)
    assert clean(tmp_path, recorder, *uris) == 1
    assert cleaned == [uris[1]]
    assert recorder.told(Level.ERROR) == ["cannot list the domains: connection lost"]


def test_an_unreadable_note_is_reported_and_counted(recorder: Recorder, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    (held / f"{UUID}.json").write_text("{")
    assert thaw_guests(settings(runtime_dir=str(tmp_path)), recorder) == 1
    (error,) = recorder.told(Level.ERROR)
    assert f"cannot read {held}/{UUID}.json, the note of a guest that may be frozen or paused" in error
    assert f"virsh domfsthaw {UUID}" in error


def test_an_unreadable_note_does_not_keep_other_guests_from_being_thawed(
    recorder: Recorder, tmp_path: Path
) -> None:
    notes = FreezeNotes(str(tmp_path))
    notes.write(domain(uri=node_uri(tmp_path / "node.xml", domain_element())), Method.PAUSE)
    (tmp_path / "held" / "0-unreadable.json").write_text("{")  # read before the other
    assert thaw_guests(settings(runtime_dir=str(tmp_path)), recorder) == 1
    assert notes.all() == []
    assert recorder.told(Level.WARNING) == ["resumed: an interrupted backup had left the guest paused"]


def test_the_thaw_alone_goes_on_until_no_guest_is_left_and_keeps_no_run_from_beginning(
    node: Node, tmp_path: Path
) -> None:
    """What virt-rbd-backup-thaw.service does, while other runs begin and end."""
    tmp_path.chmod(0o700)
    node.db.failing_thaws = node.db.failing_resumes = FOR_EVER
    stop = StopRequest()
    with ThreadPoolExecutor(1) as beside:
        with only_run(str(tmp_path)):
            ended = beside.submit(thaw_node, node.settings, node.recorder, stop)
            time.sleep(0.3)
            assert node.names_in_notes() == ["web", "db"], "a run may be quiescing them on purpose"
        wait_until(lambda: node.names_in_notes() == ["db"], 10, "the run has ended")
        with only_run(str(tmp_path)):
            assert not ended.done()
        node.db.failing_thaws = node.db.failing_resumes = 0
        assert ended.result(30) == 0
    assert node.names_in_notes() == []


def test_the_thaw_alone_hears_a_request_to_stop(node: Node, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    node.db.failing_thaws = node.db.failing_resumes = FOR_EVER
    stop = StopRequest()
    stop.request(Interrupted("stopped by SIGTERM", 15))
    with pytest.raises(Interrupted):
        thaw_node(node.settings, node.recorder, stop)


def test_the_thaw_alone_ends_with_an_error_where_a_record_cannot_be_read(
    tmp_path: Path, recorder: Recorder
) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held/web.json").write_text("{")
    assert thaw_node(settings(runtime_dir=str(tmp_path)), recorder, StopRequest()) == 1
    assert "web.json, the note of a guest" in recorder.told(Level.ERROR)[0]
