"""backup/hooks/hooks.py: which programs are hooks, their order, and their failures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backup.errors import BackupError, Interrupted
from backup.hooks.hooks import Hooks, When, check_hooks
from backup.job_result import Phase
from backup.model import Level

from ..hook_files import HookFiles
from ..raising import raises
from ..recorder import Recorder
from ..samples import RUN, settings


@pytest.fixture
def files(tmp_path: Path) -> HookFiles:
    return HookFiles(tmp_path)


def hooks_of(files: HookFiles, recorder: Recorder, domain: str = "", **constants: Any) -> Hooks:
    return Hooks(settings(hooks=str(files.directory), **constants), RUN, recorder, domain)


def test_hooks_run_one_after_the_other_in_the_order_of_their_names(
    files: HookFiles, recorder: Recorder
) -> None:
    for name in ("20-second", "10-first", "A-third"):
        files.add(f"before-run.d/{name}")
    hooks_of(files, recorder).run(When.BEFORE_RUN, {})
    assert files.ran == ["before-run.d/10-first", "before-run.d/20-second", "before-run.d/A-third"]


def test_without_hooks_nothing_is_run_and_nothing_is_reported(files: HookFiles, recorder: Recorder) -> None:
    Hooks(settings(hooks=""), RUN, recorder).run(When.BEFORE_RUN, {})
    hooks_of(files, recorder, "web").run(When.BEFORE_FREEZE, {})
    assert (recorder.messages, recorder.phases) == ([], [])


def test_a_hook_gets_its_variables_and_its_output_is_logged(files: HookFiles, recorder: Recorder) -> None:
    files.add(
        "before-run.d/10-x", 'echo "$VIRT_RBD_BACKUP_PHASE of $VIRT_RBD_BACKUP_RUN: $VIRT_RBD_BACKUP_Y"'
    )
    hooks_of(files, recorder, "web").run(When.BEFORE_RUN, {"Y": "z"})
    text = f"hook before-run.d/10-x: before-run of {RUN}: z"
    assert [message for message in recorder.messages if message[0] is Level.INFO] == [
        (Level.INFO, "web", text)
    ]


def test_the_phase_limit_includes_the_time_of_a_hook(files: HookFiles, recorder: Recorder) -> None:
    files.add("before-freeze.d/10-x")
    hooks_of(files, recorder, "web", hook_timeout=7).run(When.BEFORE_FREEZE, {})
    ((name, phase, limit),) = recorder.phases
    assert (name, phase, limit > 7) == ("web", Phase.HOOKS, True)


def test_before_a_step_the_first_failure_ends_the_phase(files: HookFiles, recorder: Recorder) -> None:
    files.add("before-run.d/10-fails", "echo no space; exit 3")
    files.add("before-run.d/20-next")
    with raises("hook before-run.d/10-fails failed with exit code 3: no space"):
        hooks_of(files, recorder).run(When.BEFORE_RUN, {})
    assert files.ran == ["before-run.d/10-fails"]


def test_after_a_step_all_are_run_and_the_first_failure_is_raised(
    files: HookFiles, recorder: Recorder
) -> None:
    files.add("after-thaw.d/10-fails", "exit 3")
    files.add("after-thaw.d/20-fails-too", "exit 4")
    files.add("after-thaw.d/30-next")
    with raises("hook after-thaw.d/10-fails failed with exit code 3"):
        hooks_of(files, recorder, "web").run(When.AFTER_THAW, {})
    assert len(files.ran) == 3
    assert recorder.told(Level.ERROR) == ["hook after-thaw.d/20-fails-too failed with exit code 4"]


def test_a_request_to_stop_ends_a_hook_and_those_after_it(files: HookFiles, recorder: Recorder) -> None:
    files.add("after-run.d/10-x", "sleep 1000")
    files.add("after-run.d/20-y")

    def check_stop() -> None:
        if files.ran:
            raise Interrupted("interrupted", 2)

    with raises("interrupted"):
        hooks_of(files, recorder).run(When.AFTER_RUN, {}, check_stop)
    assert files.ran == ["after-run.d/10-x"]


@pytest.mark.parametrize("what", ["hook", "phase", "directory"])
def test_a_hook_that_others_could_have_written_is_not_run(
    files: HookFiles, recorder: Recorder, what: str
) -> None:
    hook = files.add("before-run.d/10-x")
    writable = {"hook": hook, "phase": hook.parent, "directory": files.directory}[what]
    writable.chmod(0o722)
    with raises(f"{writable} can be written by others (mode 0722, owner {os.geteuid()})"):
        hooks_of(files, recorder).run(When.BEFORE_RUN, {})
    assert files.ran == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_hook_is_not_run(files: HookFiles, recorder: Recorder) -> None:
    os.chown(files.add("before-run.d/10-x"), 12345, -1)
    with pytest.raises(BackupError, match="owner 12345"):
        hooks_of(files, recorder).run(When.BEFORE_RUN, {})
    assert files.ran == []


def test_a_hooks_directory_that_does_not_exist_is_an_error(files: HookFiles, recorder: Recorder) -> None:
    files.directory.rmdir()
    with raises(f"directory {files.directory} does not exist"):
        hooks_of(files, recorder).run(When.BEFORE_RUN, {})


@pytest.mark.parametrize("name", ["10-x.sh", "10-x~", "10-x.dpkg-old", ".10-x", "#10-x#"])
def test_files_that_run_parts_would_not_run_are_ignored(
    files: HookFiles, recorder: Recorder, name: str
) -> None:
    files.add(f"before-run.d/{name}")
    hooks_of(files, recorder).run(When.BEFORE_RUN, {})
    assert files.ran == []


def test_check_lists_hooks_and_ignored_files(files: HookFiles) -> None:
    files.add("before-run.d/10-good")
    files.add("before-run.d/20-x.sh")
    files.add("after-run.d/README", mode=0o600)
    (files.directory / "after-job.d/folder").mkdir(parents=True)
    files.add("before-backup.d/10-x")
    bad = files.add("after-thaw.d/10-bad", mode=0o777)
    found = list(check_hooks(settings(hooks=str(files.directory))))
    assert [one.subject for one in found] == [
        f"HOOKS {files.directory}",
        "hook after-job.d/folder: ignored, not a file",
        "hook after-run.d/README: ignored, not executable",
        "hook after-thaw.d/10-bad",
        f"{files.directory}/before-backup.d: ignored, as it is no phase of hooks",
        "hook before-run.d/10-good",
        "hook before-run.d/20-x.sh: ignored, its name has other characters than letters, digits, - and _",
    ]
    (problem,) = [one.problem for one in found if one.problem]
    assert problem.message.startswith(f"{bad} can be written by others (mode 0777")
    assert files.ran == []


def test_check_reports_a_directory_that_does_not_exist(files: HookFiles) -> None:
    files.directory.rmdir()
    (found,) = check_hooks(settings(hooks=str(files.directory)))
    assert found.problem
    assert found.problem.message == f"cannot read {files.directory}: no such file or directory"
