"""backup/job/quiesced_snapshots.py: files of a domain's definition, and when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError, Interrupted, TransientError
from backup.job import quiesced_snapshots
from backup.job_result import Status
from backup.model import TPM_STATE, Definition, Disk, Domain, Gap, Level, NodeFile
from backup.system.time_limit import CheckStop

from ..paper_node import PaperNode
from ..samples import domain

KERNEL = Disk("kernel:/srv/vmlinuz", "/srv/vmlinuz", skipped="permission denied", gap=Gap.FOREIGN)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperNode:
    return PaperNode(tmp_path, monkeypatch, domain())


def lacking(node: PaperNode, monkeypatch: pytest.MonkeyPatch, *unsaved: Disk) -> None:
    def with_files(
        _: Domain, definition: Definition, _limit: int, _check_stop: CheckStop
    ) -> tuple[Definition, Sequence[Disk]]:
        return definition, unsaved

    monkeypatch.setattr(node.hypervisor, "with_files", with_files)


def test_the_state_of_a_tpm_is_read_while_the_guest_is_frozen(
    node: PaperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = NodeFile(TPM_STATE, "/swtpm/state", b"now")

    def current(_: Domain, definition: Definition, limit: float, check_stop: CheckStop) -> Definition:
        assert node.hypervisor.frozen
        assert node.ours("vms/web-root"), "after its snapshots"
        assert 0 < limit < 30
        return replace(definition, files=(state,))

    monkeypatch.setattr(node.hypervisor, "with_current_state", current)
    assert node.back_up().status is Status.SAVED
    assert node.output.points[0].definition.files == (state,)


def test_a_state_that_cannot_be_read_then_fails_the_domain_and_thaws_its_guest(
    node: PaperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> Definition:
        raise TransientError("cannot read the domain's files: no answer within 20 s")

    monkeypatch.setattr(node.hypervisor, "with_current_state", hang)
    result = node.back_up()
    assert (result.status, result.transient, node.output.points) == (Status.FAILED, True, [])


def test_a_read_that_hangs_hears_a_stop(node: PaperNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: Domain, definition: Definition, limit: float, check_stop: CheckStop) -> Definition:
        node.stop.request(Interrupted("interrupted", 15))
        check_stop()
        raise AssertionError("went on")

    monkeypatch.setattr(node.hypervisor, "with_current_state", hang)
    assert (node.back_up().reason, node.output.points) == ("interrupted", [])


@pytest.mark.parametrize("call", ["definition", "with_files"])
def test_a_read_before_the_guest_is_touched_that_hangs_hears_a_stop(
    node: PaperNode, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def hang(*arguments: object) -> None:
        node.stop.request(Interrupted("interrupted", 15))
        *_, check_stop = arguments
        assert callable(check_stop)
        check_stop()
        raise AssertionError("went on")

    monkeypatch.setattr(node.hypervisor, call, hang)
    assert node.back_up().reason == "interrupted"
    assert node.hypervisor.asked == [], "the guest was not touched"


def test_nvram_that_qemu_has_not_written_yet_is_found_once_the_guest_is_thawed(
    node: PaperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: str, nvram: bytes) -> None:
        assert node.hypervisor.moves, "it takes time"
        raise BackupError(f"the NVRAM {path} has changes")

    monkeypatch.setattr(quiesced_snapshots, "require_written", check)
    assert node.back_up().reason.startswith("the NVRAM")
    assert node.output.points == []
    assert node.back_up(freeze="never", without_freeze="pause").status is Status.SAVED, "a pause writes all"


def test_a_file_that_is_not_saved_is_reported_like_a_disk(
    node: PaperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(node, monkeypatch, KERNEL)
    result = node.back_up()
    assert (result.status, result.skipped_disks) == (Status.SAVED, (KERNEL,))
    text = "kernel:/srv/vmlinuz (/srv/vmlinuz) is not backed up: permission denied"
    assert text in node.recorder.told(Level.INFO)


def test_a_file_that_is_not_saved_fails_a_domain_that_must_be_complete(
    node: PaperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(node, monkeypatch, KERNEL)
    result = node.back_up(uncovered_disks="fail")
    assert (result.status, "cannot be backed up" in result.reason) == (Status.FAILED, True)
    assert node.hypervisor.asked == [], "the guest was not touched"
