"""job/domain_job.py and hooks/job_hooks.py: the hooks of a job, while which no guest is quiesced."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.errors import Interrupted
from backup.hooks.hooks import Hooks
from backup.hooks.job_hooks import run_missed_hooks
from backup.hypervisor.errors import HypervisorError
from backup.job_result import JobResult, Phase, Status
from backup.model import Level

from ..hook_files import HookFiles
from ..paper_node import PaperNode
from ..samples import RUN, UUID, domain, settings

ALL = ["before-freeze.d/x", "after-thaw.d/x", "after-job.d/x"]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperNode:
    return PaperNode(tmp_path, monkeypatch, domain())


@pytest.fixture
def files(tmp_path: Path) -> HookFiles:
    """Hooks in all phases of a job that print quiesced guests, and their variables."""
    files = HookFiles(tmp_path)
    for name in ALL:
        files.add(
            name,
            f"ls {tmp_path}/held 2>/dev/null | sed 's/^/HELD: /'; env | grep ^VIRT | sort | paste -sd' '",
        )
    return files


def back_up(node: PaperNode, files: HookFiles, **constants: Any) -> JobResult:
    """Do the job; assert that no guest was quiesced during a hook and that no note is left."""
    result = node.back_up(hooks=str(files.directory), **constants)
    assert not [text for _, _, text in node.recorder.messages if "HELD" in text]
    assert notes(node) == []
    return result


def notes(node: PaperNode) -> Sequence[Path]:
    return list(node.directory.glob("hooked/*"))


def heard(node: PaperNode, name: str) -> str:
    """Return the variables that a hook printed."""
    before = f"hook {name}: "
    (line,) = [text for text in node.recorder.told(Level.INFO) if text.startswith(before)]
    return line[len(before) :].replace("VIRT_RBD_BACKUP_", "")


def test_the_guest_is_frozen_between_the_hooks_and_while_none_runs(
    node: PaperNode, files: HookFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, list[str]] = {}

    def ask(what: str, _timeout: int | None = None) -> None:
        ran[what] = files.ran

    monkeypatch.setattr(node.hypervisor, "_ask", ask)
    result = back_up(node, files)
    assert (result.status, files.ran) == (Status.SAVED, ALL)
    assert ran == dict.fromkeys(("probe", "freeze", "thaw"), ALL[:1])
    phases = [phase for _, phase, _ in node.recorder.phases]
    assert phases == [
        Phase.PREPARE,
        Phase.HOOKS,
        Phase.SNAPSHOT,
        Phase.HOOKS,
        Phase.STREAM,
        Phase.TIDY,
        Phase.HOOKS,
    ]


def test_each_hook_gets_the_variables_known_by_then(node: PaperNode, files: HookFiles) -> None:
    back_up(node, files)
    of_domain = f"LIBVIRT=qemu:///system PHASE={{}} RUN={RUN} STATE=running UUID={UUID}"
    before, thawed, after = (heard(node, name) for name in ALL)
    assert before.startswith("DOMAIN=web HOST=")
    assert before.endswith(of_domain.format("before-freeze"))
    assert thawed.startswith("CONSISTENCY=filesystem DOMAIN=web ")
    assert thawed.endswith(of_domain.format("after-thaw"))
    assert after.startswith("CONSISTENCY=filesystem DOMAIN=web ")
    assert after.endswith(f"PHASE=after-job REASON= RUN={RUN} STATUS=saved UUID={UUID}")


def test_a_failing_before_freeze_fails_the_domain_before_it_is_quiesced(
    node: PaperNode, files: HookFiles
) -> None:
    files.add("before-freeze.d/x", "exit 3")
    result = back_up(node, files)
    assert (result.status, result.reason) == (
        Status.FAILED,
        "hook before-freeze.d/x failed with exit code 3",
    )
    assert not result.transient
    assert (node.hypervisor.asked, node.output.points) == ([], [])
    assert files.ran == ALL, "what it has begun is undone"
    assert "REASON=hook before-freeze.d/x failed with exit code 3" in heard(node, "after-job.d/x")


def test_a_failing_after_thaw_fails_a_domain_that_is_saved_all_the_same(
    node: PaperNode, files: HookFiles
) -> None:
    files.add("after-thaw.d/x", "exit 3")
    result = back_up(node, files)
    failure = "hook after-thaw.d/x failed with exit code 3"
    assert (result.status, result.reason) == (Status.FAILED, f"saved, but {failure}")
    assert len(result.images) == len(node.output.points) == 1
    assert node.recorder.told(Level.ERROR) == [failure], "at once, not only when all is saved"
    assert files.ran == ALL


def test_a_request_to_stop_ends_before_freeze_and_runs_after_thaw(node: PaperNode, files: HookFiles) -> None:
    files.add("before-freeze.d/x", f"kill -TERM {os.getpid()}; sleep 1000")
    before = signal.getsignal(signal.SIGTERM)
    node.stop.on_signals(signal.SIGTERM)
    try:
        result = back_up(node, files)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.status, result.reason, files.ran) == (Status.FAILED, "interrupted", ALL)
    assert node.hypervisor.asked == []


def test_after_thaw_is_run_if_the_freeze_fails_and_the_freeze_s_error_is_reported(
    node: PaperNode, files: HookFiles
) -> None:
    node.hypervisor.freeze_error = HypervisorError("the guest agent is busy")
    files.add("after-thaw.d/x", "exit 3")
    result = back_up(node, files, freeze="required")
    assert (result.status, result.reason) == (Status.FAILED, "the guest agent is busy")
    assert files.ran == ALL


def test_after_thaw_and_after_job_are_run_even_if_the_run_is_stopped_in_between(
    node: PaperNode, files: HookFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze = node.hypervisor.freeze

    def stopped_while_frozen(*arguments: Any) -> int:
        node.stop.request(Interrupted("interrupted", 15))
        return freeze(*arguments)

    monkeypatch.setattr(node.hypervisor, "freeze", stopped_while_frozen)
    result = back_up(node, files)
    assert (result.status, result.reason, files.ran) == (Status.FAILED, "interrupted", ALL)


@pytest.mark.parametrize(("min_age", "prefix"), [(0, "saved, but "), (3600, "skipped, but ")])
def test_a_failing_after_job_fails_a_successful_job(
    node: PaperNode, files: HookFiles, min_age: int, prefix: str
) -> None:
    node.output.age = 60
    files.add("after-job.d/x", "exit 3")
    result = back_up(node, files, min_age=min_age)
    failure = "hook after-job.d/x failed with exit code 3"
    assert (result.status, result.reason) == (Status.FAILED, prefix + failure)


def test_a_failing_after_job_does_not_hide_why_the_domain_failed(node: PaperNode, files: HookFiles) -> None:
    files.add("before-freeze.d/x", "exit 3")
    files.add("after-job.d/x", "exit 4")
    assert back_up(node, files).reason == "hook before-freeze.d/x failed with exit code 3"
    assert node.recorder.told(Level.ERROR) == ["hook after-job.d/x failed with exit code 4"]


def test_a_domain_that_can_t_be_locked_has_no_hooks_around_a_freeze(
    node: PaperNode, files: HookFiles
) -> None:
    node.cluster.locks[f"virt-rbd-backup.lock.{UUID}"] = "another node"
    back_up(node, files)
    assert files.ran == ["after-job.d/x"]


def test_a_note_is_written_before_the_first_hook(node: PaperNode, files: HookFiles) -> None:
    note = node.directory / "hooked" / f"{UUID}.json"
    files.add("before-freeze.d/x", f"cp {note} {node.directory}/copy")
    back_up(node, files)
    variables = json.loads((node.directory / "copy").read_text())
    assert (variables["DOMAIN"], variables["UUID"], variables["RUN"]) == ("web", UUID, RUN)


@pytest.mark.parametrize("name", [UUID, None])
def test_the_next_process_runs_missed_hooks_once(node: PaperNode, files: HookFiles, name: str | None) -> None:
    leave_note(node)
    assert run_missed(node, files, "another") == 0
    assert files.ran == []
    assert run_missed(node, files, name) == 0
    assert (files.ran, notes(node)) == (["after-thaw.d/x"], [])
    assert f"RUN={RUN}" in heard(node, "after-thaw.d/x")
    assert node.recorder.told(Level.WARNING) == [
        "running the after-thaw hooks that an interrupted backup did not run"
    ]


def test_a_missed_hook_that_fails_is_reported_and_counted(node: PaperNode, files: HookFiles) -> None:
    leave_note(node)
    files.add("after-thaw.d/x", "exit 3")
    assert run_missed(node, files) == 1
    assert node.recorder.told(Level.ERROR) == ["hook after-thaw.d/x failed with exit code 3"]
    assert notes(node) == []


def test_an_unfinished_hook_note_is_removed(node: PaperNode, files: HookFiles) -> None:
    leave_note(node).write_text('{"DOM')
    assert (run_missed(node, files), files.ran, notes(node)) == (0, [], [])


def test_a_second_signal_leaves_the_note_for_cleanup(node: PaperNode, files: HookFiles) -> None:
    def signalled_twice() -> None:
        raise Interrupted("interrupted", 2)

    note = leave_note(node)
    assert run_missed(node, files, check_stop=signalled_twice) == 1
    assert notes(node) == [note]


def test_no_hook_runs_if_its_note_cannot_be_written(node: PaperNode, files: HookFiles) -> None:
    (node.directory / "hooked").touch()
    result = node.back_up(hooks=str(files.directory))
    assert (result.status, files.ran) == (Status.FAILED, ["after-job.d/x"])
    assert result.reason.startswith(f"cannot write {node.directory}/hooked/{UUID}.json")


def run_missed(
    node: PaperNode,
    files: HookFiles,
    uuid: str | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> int:
    constants = settings(hooks=str(files.directory), runtime_dir=str(node.directory))
    return run_missed_hooks(Hooks(constants, "later", node.recorder), uuid, check_stop)


def leave_note(node: PaperNode) -> Path:
    """Write a note as a killed worker leaves it."""
    note = node.directory / "hooked" / f"{UUID}.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"DOMAIN": "web", "UUID": UUID, "RUN": RUN}))
    return note


def test_a_bug_between_the_hooks_is_raised_after_after_thaw(
    node: PaperNode, files: HookFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(node.hypervisor, "definition", bug)
    with pytest.raises(ZeroDivisionError):
        back_up(node, files)
    assert files.ran == ALL[:2]
