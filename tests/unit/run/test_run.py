"""backup/run/run.py: from the domains of all libvirts to the orders of the workers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, cast

import pytest

from backup.errors import AlreadyRunning, BackupError, ConfigError, Interrupted, TransientError
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.errors import HypervisorError
from backup.job.failed_points import FailedPoints
from backup.job.job_order import JobOrder
from backup.job_result import JobResult, Status
from backup.model import Consistency, Domain, Level
from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.report.run_report import RunResult
from backup.restore_point.known_points import known_runs
from backup.run import confirm, list_domains, run
from backup.run.run import Run
from backup.stored import PointId, StoredPoint
from backup.system.process_group import ProcessId
from backup.system.stop_request import StopRequest
from backup.watch.guard import Guard
from backup.watch.node_lock import only_run
from backup.watch.watchdog import Watchdog

from ..disk_elements import rbd
from ..driver_node import SHUT_OFF, domain_element, node_uri
from ..hook_files import HookFiles
from ..jobs_on_paper import NoOutput
from ..no_watchdog import NoWatchdog
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, RUN, TAKEN, UUID, domain, held_point, settings

GONE_UUID = "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e03"


class NothingLeft(NoOutput):
    """Has restore points, and nothing to tidy up."""

    points: Sequence[StoredPoint] = ()

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return self.points

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return self.points

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        assert not points


class PoolOnPaper:
    """Takes the orders, and does none."""

    def __init__(self) -> None:
        self.orders: Sequence[JobOrder] = ()

    def __call__(self, *_: object) -> PoolOnPaper:
        return self

    def __enter__(self) -> PoolOnPaper:
        return self

    def __exit__(self, *_: object) -> None:
        """No process is left of it."""

    def warm_up(self, count: int) -> None:
        """Has no processes."""

    def run(self, orders: Sequence[JobOrder]) -> Sequence[JobResult]:
        self.orders = orders
        return [JobResult(one.name, one.uuid, Status.SAVED) for one in orders]


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> PoolOnPaper:
    pool = PoolOnPaper()
    monkeypatch.setattr(run, "Pool", pool)
    monkeypatch.setattr(confirm, "missing", lambda *_: ())
    monkeypatch.setattr(run, "watched", lambda *_: nullcontext(NoWatchdog()))
    monkeypatch.setattr(list_domains, "largest_first", lambda domains, *_: [(one, 0) for one in domains])
    return pool


@pytest.fixture
def uris(tmp_path: Path) -> tuple[str, str]:
    """Two libvirts: db runs at the first, where web is defined only; web runs at the second."""
    return (
        node_uri(
            tmp_path / "first.xml",
            domain_element("db", OTHER_UUID, rbd()),
            domain_element("web", UUID, rbd(), state=SHUT_OFF),
        ),
        node_uri(tmp_path / "second.xml", domain_element("web", UUID, rbd())),
    )


def back_up(directory: Path, recorder: Recorder, uris: Sequence[str], *names: str, **more: Any) -> RunResult:
    chosen = settings(libvirt_uri=[*uris], runtime_dir=str(directory / "run"), **more)
    return Run(chosen, NothingLeft(), recorder, StopRequest(), RUN).back_up(names)


def test_each_domain_is_ordered_once_at_the_libvirt_where_it_runs(
    uris: tuple[str, str], pool: PoolOnPaper, recorder: Recorder, tmp_path: Path
) -> None:
    result = back_up(tmp_path, recorder, uris, min_age=3600)
    assert pool.orders == [
        JobOrder(RUN, "db", OTHER_UUID, uris[0], 3600),
        JobOrder(RUN, "web", UUID, uris[1], 3600),
    ]
    assert (result.exit_code, result.errors, recorder.messages) == (0, [], [])


def test_no_job_begins_without_a_watchdog_that_watches(
    uris: tuple[str, str], pool: PoolOnPaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise BackupError("the watchdog process did not start within 60 s")

    monkeypatch.setattr(NoWatchdog, "wait_until_ready", never)
    with raises("the watchdog process did not start within 60 s"):
        back_up(tmp_path, Recorder(), uris)
    assert pool.orders == ()


@pytest.mark.parametrize("keeps", [True, False])
def test_an_order_has_the_domain_s_restore_points_if_the_output_builds_on_them(
    keeps: bool, uris: tuple[str, str], pool: PoolOnPaper, tmp_path: Path
) -> None:
    output = NothingLeft()
    output.keeps_base_snapshots = keeps
    points = [
        held_point("first", UUID, "1"),
        held_point("second", UUID, "2"),
        held_point("first", "gone", "3"),
    ]
    output.points = points
    chosen = settings(libvirt_uri=[*uris], runtime_dir=str(tmp_path / "run"))
    Run(chosen, output, Recorder(), StopRequest(), RUN).back_up(())
    known = {order.name: list(order.known) for order in pool.orders}
    assert known == {"db": [], "web": points[:2] if keeps else []}


def test_with_min_age_a_restore_point_of_the_future_skips_no_domain(
    uris: tuple[str, str], pool: PoolOnPaper, tmp_path: Path
) -> None:
    """Of a clock that was wrong once: until that time has come there would be no backup."""
    output = NothingLeft()
    late = datetime.now(timezone.utc) + timedelta(days=900)
    output.points = [
        held_point("first", UUID, "1"),
        replace(held_point("second", UUID, "2"), taken=late),
        replace(held_point("third", OTHER_UUID, "3"), taken=late),
    ]
    chosen = settings(libvirt_uri=[*uris], runtime_dir=str(tmp_path / "run"), min_age=3600)
    Run(chosen, output, Recorder(), StopRequest(), RUN).back_up(())
    assert {order.name: order.last_saved for order in pool.orders} == {"db": None, "web": TAKEN}


def test_named_domains_are_saved_whatever_their_age(
    uris: tuple[str, str], pool: PoolOnPaper, recorder: Recorder, tmp_path: Path
) -> None:
    back_up(tmp_path, recorder, uris, "web", min_age=3600)
    assert pool.orders == [JobOrder(RUN, "web", UUID, uris[1], 0)]


def test_a_named_domain_that_is_backed_up_at_another_libvirt_gives_no_warning(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path
) -> None:
    back_up(tmp_path, recorder, uris, "web")
    assert recorder.told(Level.WARNING) == []


def test_a_named_domain_that_is_skipped_gives_a_warning(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path
) -> None:
    back_up(tmp_path, recorder, uris, "web", "db", exclude_domains=["db"])
    warned = [message for message in recorder.messages if message[1] == "db"]
    assert warned == [(Level.WARNING, "db", "named, but not backed up: in EXCLUDE_DOMAINS")]


def test_an_unreachable_libvirt_is_reported_and_the_others_are_backed_up(
    uris: tuple[str, str], pool: PoolOnPaper, recorder: Recorder, tmp_path: Path
) -> None:
    nowhere = f"test://{tmp_path}/nowhere.xml"
    result = back_up(tmp_path, recorder, [nowhere, uris[0]])
    assert result.all_listed is False
    assert [order.name for order in pool.orders] == ["db", "web"]
    assert result.exit_code == 3
    (error,) = result.errors
    assert error.startswith(f"cannot connect to libvirt at {nowhere}: ")
    (reported,) = recorder.told(Level.ERROR)
    assert reported.startswith(error)
    assert "(hint: check that libvirtd is running" in reported
    assert back_up(tmp_path / "all", Recorder(), uris).all_listed is True


def test_a_libvirt_that_fails_during_the_listing_is_reported_too(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = Hypervisor.domains

    def refused(self: Hypervisor, check_stop: object) -> object:
        if self.uri == uris[1]:
            raise HypervisorError("cannot list the domains: connection lost")
        return domains(self, check_stop)  # type: ignore[arg-type]

    monkeypatch.setattr(Hypervisor, "domains", refused)
    result = back_up(tmp_path, recorder, uris)
    assert (result.exit_code, result.errors) == (3, ["cannot list the domains: connection lost"])
    assert recorder.told(Level.ERROR) == ["cannot list the domains: connection lost"]


def test_a_stop_is_heard_while_the_output_is_waited_for(
    uris: tuple[str, str], pool: PoolOnPaper, recorder: Recorder, tmp_path: Path
) -> None:
    class Unanswering(NothingLeft):
        def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            while True:
                check_stop()
                time.sleep(0.01)

    stop = StopRequest()
    threading.Timer(0.3, stop.request, [Interrupted("interrupted", 15)]).start()
    chosen = settings(libvirt_uri=[*uris], runtime_dir=str(tmp_path / "run"))
    with raises("interrupted", Interrupted):
        Run(chosen, Unanswering(), recorder, stop, RUN).back_up(())
    assert pool.orders == ()


def test_a_repository_that_does_not_answer_once_costs_no_domain(
    uris: tuple[str, str], pool: PoolOnPaper, recorder: Recorder, tmp_path: Path
) -> None:
    class BrokenOnce(NothingLeft):
        asked = 0

        def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            self.asked += 1
            if self.asked == 1:
                raise TransientError("restic snapshots failed: connection reset")
            return ()

    chosen = settings(libvirt_uri=[*uris], runtime_dir=str(tmp_path / "run"))
    assert Run(chosen, BrokenOnce(), recorder, StopRequest(), RUN).back_up(()).exit_code == 0
    assert [order.name for order in pool.orders] == ["db", "web"]
    text = "restic snapshots failed: connection reset; retried in 0 s (RETRY_FOR), 900 of 900 s left"
    assert recorder.told(Level.WARNING) == [text]


def test_locks_of_the_dead_are_removed_before_anything_else_takes_one(
    uris: tuple[str, str], pool: PoolOnPaper, recorder: Recorder, tmp_path: Path
) -> None:
    calls: list[str] = []

    class InOrder(NothingLeft):
        def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            calls.append("is ready")
            return ()

        def discard(
            self,
            points: Collection[PointId],
            wait_if_busy: bool,
            check_stop: Callable[[], None] = lambda: None,
        ) -> None:
            calls.append("begins")
            time.sleep(0.2)
            calls.append("ends")

    chosen = settings(libvirt_uri=[*uris], runtime_dir=str(tmp_path / "run"))
    assert Run(chosen, InOrder(), recorder, StopRequest(), RUN).back_up(()).exit_code == 0
    assert calls == ["begins", "ends", "is ready"]


@pytest.fixture
def files(tmp_path: Path) -> HookFiles:
    return HookFiles(tmp_path)


AROUND = ["before-run.d/x", "after-run.d/x"]


def hooked(
    directory: Path, recorder: Recorder, uris: Sequence[str], files: HookFiles, *names: str
) -> RunResult:
    """Do a run with hooks around it that print the state of the node's lock, and their variables."""
    for name in AROUND:
        if not (files.directory / name).exists():
            files.add(name, f"flock --nonblock {directory}/run/run.lock echo alone; env | grep ^VIRT | sort")
    result = back_up(directory, recorder, uris, *names, hooks=str(files.directory))
    assert not [text for text in recorder.told(Level.INFO) if "alone" in text]
    return result


def test_hooks_are_run_around_a_run_while_it_is_the_only_one(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path, files: HookFiles
) -> None:
    assert hooked(tmp_path, recorder, uris, files).exit_code == 0
    assert files.ran == AROUND
    variables = [text.split(": VIRT_RBD_BACKUP_")[1] for text in recorder.told(Level.INFO)]
    host = f"HOST={socket.gethostname()}"
    assert variables[:3] == [host, "PHASE=before-run", f"RUN={RUN}"]
    assert variables[3:] == ["EXIT_CODE=0", host, "PHASE=after-run", f"RUN={RUN}", "SUMMARY=2 saved"]


def test_a_failing_before_run_is_the_end_of_the_run(
    uris: tuple[str, str], pool: PoolOnPaper, recorder: Recorder, tmp_path: Path, files: HookFiles
) -> None:
    files.add("before-run.d/x", "exit 3")
    with raises("hook before-run.d/x failed with exit code 3"):
        hooked(tmp_path, recorder, uris, files)
    assert (pool.orders, files.ran) == ((), AROUND)
    assert "EXIT_CODE=1" in "".join(recorder.told(Level.INFO))


def test_a_failing_after_run_is_in_the_report_and_the_exit_code(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path, files: HookFiles
) -> None:
    files.add("after-run.d/x", "exit 3")
    result = hooked(tmp_path, recorder, uris, files)
    failure = "hook after-run.d/x failed with exit code 3"
    assert (result.exit_code, result.errors, recorder.told(Level.ERROR)) == (3, [failure], [failure])
    assert {one.status for one in result.results} == {Status.SAVED}


def test_after_run_is_run_even_if_the_run_fails(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path, files: HookFiles
) -> None:
    with pytest.raises(ConfigError):
        hooked(tmp_path, recorder, uris, files, "no-such-domain")
    assert files.ran == AROUND


def test_a_run_that_is_not_the_only_one_has_no_hooks(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path, files: HookFiles
) -> None:
    with only_run(str(tmp_path / "run")), pytest.raises(AlreadyRunning):
        hooked(tmp_path, recorder, uris, files)
    assert files.ran == []


def test_missed_hooks_are_run_before_anything_is_backed_up(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path, files: HookFiles
) -> None:
    files.add("after-thaw.d/x")
    (tmp_path / "run/hooked").mkdir(parents=True)
    (tmp_path / "run").chmod(0o700)
    (tmp_path / f"run/hooked/{UUID}.json").write_text(f'{{"DOMAIN": "web", "UUID": "{UUID}"}}')
    assert hooked(tmp_path, recorder, uris, files).exit_code == 0
    assert files.ran == ["before-run.d/x", "after-thaw.d/x", "after-run.d/x"]


def test_guests_of_a_killed_run_are_thawed_before_any_hook_runs(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path, files: HookFiles
) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    FreezeNotes(str(tmp_path / "run")).write(domain(uri=uris[0]), Method.PAUSE)
    files.add("before-run.d/x", f"ls {tmp_path}/run/held")
    assert hooked(tmp_path, recorder, uris, files).exit_code == 0
    assert [text for text in recorder.told(Level.INFO) if ".json" in text] == []


@pytest.mark.parametrize(("method", "state"), [(Method.FREEZE, "frozen"), (Method.PAUSE, "paused")])
def test_a_guest_that_may_still_be_frozen_at_the_end_fails_the_run_and_not_its_saved_domain(
    uris: tuple[str, str],
    recorder: Recorder,
    tmp_path: Path,
    pool: PoolOnPaper,
    monkeypatch: pytest.MonkeyPatch,
    method: Method,
    state: str,
) -> None:
    unreachable = domain("mail", GONE_UUID, uri=f"test://{tmp_path}/nowhere.xml")

    def frozen(orders: Sequence[JobOrder]) -> Sequence[JobResult]:
        FreezeNotes(str(tmp_path / "run")).write(unreachable, method)
        return [JobResult(one.name, one.uuid, Status.SAVED) for one in orders]

    monkeypatch.setattr(pool, "run", frozen)
    result = back_up(tmp_path, recorder, uris)
    assert result.exit_code == 3
    assert result.errors == [f"mail: the guest may still be {state} after the run"]
    assert {one.status for one in result.results} == {Status.SAVED}
    assert f"the guest may still be {state} after the run (hint: virsh" in recorder.told(Level.ERROR)[-1]


def test_a_record_that_cannot_be_read_fails_the_run(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run/held").mkdir()
    (tmp_path / f"run/held/{UUID}.json").write_text("{")
    result = back_up(tmp_path, recorder, uris)
    assert result.exit_code == 3
    (error,) = result.errors
    assert f"{UUID}.json, the note of a guest that may be frozen or paused" in error


def test_a_run_that_could_do_nothing_names_a_guest_that_may_still_be_frozen(
    uris: tuple[str, str], recorder: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    nowhere = f"test://{tmp_path}/nowhere.xml"
    FreezeNotes(str(tmp_path / "run")).write(domain(uri=nowhere), Method.FREEZE)
    chosen = settings(libvirt_uri=[nowhere], runtime_dir=str(tmp_path / "run"), freeze_timeout=1)
    failing = Run(chosen, NothingLeft(), recorder, StopRequest(), RUN)
    with pytest.raises(BackupError) as caught:
        failing.back_up(())
    result = failing.nothing_done((), caught.value)
    assert (result.exit_code, len(result.errors)) == (1, 2)
    assert result.errors[1] == "web: the guest may still be frozen after the run"


@pytest.mark.parametrize("stopped", [False, True])
def test_a_freeze_of_a_killed_worker_is_waited_for_at_the_end_unless_the_run_has_to_stop(
    uris: tuple[str, str],
    recorder: Recorder,
    tmp_path: Path,
    pool: PoolOnPaper,
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
) -> None:
    stop = StopRequest()

    def killed(orders: Sequence[JobOrder]) -> Sequence[JobResult]:
        write_note(tmp_path / "run", domain(uri=uris[1]), possible=1.5)
        if stopped:
            stop.request(Interrupted("stopped by SIGTERM", 15))
        return [JobResult(one.name, one.uuid, Status.SAVED) for one in orders]

    monkeypatch.setattr(pool, "run", killed)
    chosen = settings(libvirt_uri=[*uris], runtime_dir=str(tmp_path / "run"))
    result = Run(chosen, NothingLeft(), recorder, stop, RUN).back_up(())
    assert result.errors == (["web: the guest may still be paused after the run"] if stopped else [])


def write_note(runtime_dir: Path, of: Domain, possible: float) -> None:
    """Write the note of another process, which was killed."""
    notes = FreezeNotes(str(runtime_dir))
    note = notes.write(of, Method.PAUSE, possible=possible)
    notes._put(replace(note, owner=ProcessId(1, 1)))


def test_a_domain_with_images_missing_in_the_repository_at_the_end_fails(
    uris: tuple[str, str],
    tmp_path: Path,
    recorder: Recorder,
    pool: PoolOnPaper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program removed them before their manifest was written."""
    asked = []

    def missing(points: Sequence[StoredPoint], run_id: str, result: JobResult) -> Sequence[str]:
        asked.append(run_id)
        return ("vda (vms/web-root)",) if result.name == "web" else ()

    class Lacks(NothingLeft):
        points = (held_point(RUN, UUID, "manifest"), held_point(RUN, OTHER_UUID, "manifest"))

        def withdraw(
            self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None
        ) -> None:
            withdrawn.extend(points)

    withdrawn: list[PointId] = []
    monkeypatch.setattr(confirm, "missing", missing)
    output = Lacks()
    chosen = settings(libvirt_uri=list(uris), runtime_dir=str(tmp_path / "run"))
    result = Run(chosen, output, recorder, StopRequest(), RUN).back_up(())
    assert {one.name: one.status for one in result.results} == {"db": Status.SAVED, "web": Status.FAILED}
    assert result.exit_code == 3
    (error,) = recorder.told(Level.ERROR)
    assert error.startswith(
        "failed: the repository no longer has all saved images, missing: vda (vms/web-root) (hint:"
    )
    assert not any(one.images for one in result.results if one.name == "web")
    assert set(asked) == {RUN}
    (web,) = [one.uuid for one in result.results if one.name == "web"]
    assert withdrawn == [PointId(RUN, web)]


def test_a_point_with_missing_images_that_cannot_be_removed_is_removed_by_the_next_run(
    uris: tuple[str, str], tmp_path: Path, pool: PoolOnPaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a prune has the repository, the point stays, and looks complete."""
    lost = PointId(RUN, UUID)

    class Locked(NothingLeft):
        points = (held_point(RUN, UUID, "manifest"),)
        locked = True

        def withdraw(
            self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None
        ) -> None:
            if self.locked:
                raise BackupError("locked by a prune")
            withdrawn.extend(points)

    def saved(orders: Sequence[JobOrder]) -> Sequence[JobResult]:
        made = JobResult("", "", Status.SAVED, consistency=Consistency.CRASH, taken=TAKEN)
        return [replace(made, name=one.name, uuid=one.uuid) for one in orders]

    withdrawn: list[PointId] = []
    monkeypatch.setattr(pool, "run", saved)
    monkeypatch.setattr(confirm, "missing", lambda _points, _run, one: ("vda",) * (one.uuid == UUID))
    state = str(tmp_path / "state")
    chosen = settings(libvirt_uri=list(uris), runtime_dir=str(tmp_path / "run"), state_dir=state)
    output, recorder = Locked(), Recorder()
    result = Run(chosen, output, recorder, StopRequest(), RUN).back_up(())
    (web,) = [one for one in result.results if one.uuid == UUID]
    assert (web.status, web.consistency, web.taken, web.withdraw) == (Status.FAILED, None, None, True)
    assert "still in the repository, and look complete: locked by a prune" in recorder.told(Level.ERROR)[-1]
    assert FailedPoints(state).all() == {lost}
    output.locked = False
    monkeypatch.setattr(confirm, "missing", lambda *_: ())
    Run(chosen, output, recorder, StopRequest(), "20240204T040506Z-next").back_up(())
    assert withdrawn == [lost]
    assert FailedPoints(state).all() == set()


def test_a_repository_that_cannot_be_listed_at_the_end_is_a_warning(
    uris: tuple[str, str], tmp_path: Path, recorder: Recorder
) -> None:
    class Unlisted(NothingLeft):
        def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            raise BackupError("the repository's host is gone")

    chosen = settings(libvirt_uri=list(uris), runtime_dir=str(tmp_path / "run"))
    result = Run(chosen, Unlisted(), recorder, StopRequest(), RUN).back_up(())
    assert result.exit_code == 0
    assert recorder.told(Level.WARNING)[-1] == (
        "cannot confirm that the repository holds all saved images: the repository's host is gone"
    )


def test_shells_know_the_restore_points_of_before_a_run_and_its_own(
    uris: tuple[str, str], tmp_path: Path, recorder: Recorder
) -> None:
    class Saves(NothingLeft):
        points = (held_point("before", UUID, "manifest"),)

        def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            assert known_runs(str(tmp_path)) == {"web": ["before"]}
            return [*self.points, held_point(RUN, UUID, "manifest")]

    runtime_dir = str(tmp_path / "run")
    chosen = settings(libvirt_uri=list(uris), runtime_dir=runtime_dir, state_dir=str(tmp_path))
    assert Run(chosen, Saves(), recorder, StopRequest(), RUN).back_up(()).exit_code == 0
    assert known_runs(str(tmp_path)) == {"web": [RUN, "before"]}


def test_other_workers_hear_of_a_request_to_stop_while_a_dead_one_s_hooks_run(
    uris: tuple[str, str], tmp_path: Path, recorder: Recorder, files: HookFiles
) -> None:
    files.add("after-thaw.d/x", "sleep 0.5")
    (tmp_path / "run/hooked").mkdir(parents=True)
    (tmp_path / f"run/hooked/{UUID}.json").write_text(f'{{"DOMAIN": "web", "UUID": "{UUID}"}}')
    runtime_dir, calls = str(tmp_path / "run"), list[bool]()
    chosen = settings(libvirt_uri=[*uris], runtime_dir=runtime_dir, hooks=str(files.directory))
    one = Run(chosen, NothingLeft(), recorder, StopRequest(), RUN)
    guard = Guard(chosen, recorder, cast(Watchdog, NoWatchdog()))
    died = one._worker_died(guard, JobOrder(RUN, "web", UUID), lambda: calls.append(bool(files.ran)))
    assert (died, files.ran) == ("", ["after-thaw.d/x"])
    assert calls[-1], "while the hook runs"


def test_a_run_without_a_domain_does_not_wait_for_an_output_that_hangs(
    tmp_path: Path, recorder: Recorder
) -> None:
    class Hangs(NothingLeft):
        def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            for _ in range(2000):
                check_stop()
                time.sleep(0.01)
            raise AssertionError("it was waited for")

    uri = node_uri(tmp_path / "empty.xml")
    chosen = settings(libvirt_uri=uri, runtime_dir=str(tmp_path / "run"))
    began = time.monotonic()
    assert Run(chosen, Hangs(), recorder, StopRequest(), RUN).back_up(()).exit_code == 0
    assert time.monotonic() - began < 10
