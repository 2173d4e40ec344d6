"""backup/run/prune.py: what is not kept is removed, and what cannot be removed costs nothing else."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError, ConfigError, Interrupted
from backup.job.failed_points import FailedPoints
from backup.job_result import JobResult, Status
from backup.model import Level
from backup.run.prune import prune, prune_saved
from backup.settings import Settings
from backup.stored import PointId, SavedImage
from backup.system.stop_request import StopRequest
from outputs.rbd_repository.names import disk_name

from ..jobs_on_paper import NoOutput
from ..outputs.saved_samples import FIRST, RUNS, complete, save
from ..paper_repository import PaperPool, PaperRbd
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, UUID, settings

RUN = "20240301T040506Z-abcd"
LIMITED = settings(output="rbd", keep_last=1)


@pytest.fixture
def output(tmp_path: Path) -> PaperRbd:
    output = PaperRbd.on(PaperPool(), str(tmp_path))
    for run in RUNS[:3]:
        save(output, run, {"vdb": FIRST["vdb"]})
    return output


def nothing() -> None:
    pass


def stopped_at(number: int) -> Callable[[], None]:
    """Give a check that finds a signal when it is called for this time, from 0 on."""
    calls = itertools.count()

    def check_stop() -> None:
        if next(calls) == number:
            raise Interrupted("interrupted", signal.SIGINT)

    return check_stop


def saved(uuid: str = UUID) -> JobResult:
    image = SavedImage("vda", "vms/web", 1, 1, 1, 0.1, "id", LAYOUT)
    return JobResult("web", uuid, Status.SAVED, images=(image,))


def test_a_dry_run_shows_and_removes_nothing(output: PaperRbd) -> None:
    pruned = prune(LIMITED, output, Recorder(), nothing, dry_run=True)
    assert [one.point.id.run for one in pruned] == RUNS[:2]
    assert [*complete(output)] == RUNS[:3]


def test_what_is_not_kept_is_removed(output: PaperRbd) -> None:
    recorder = Recorder()
    assert not any(one.problem for one in prune(LIMITED, output, recorder, nothing, ["web"]))
    assert [*complete(output)] == [RUNS[2]]
    assert len([text for text in recorder.told(Level.INFO) if "removed (KEEP_LAST" in text]) == 2


def test_without_a_limit_nothing_is_removed(output: PaperRbd) -> None:
    assert prune(settings(output="rbd"), output, Recorder(), nothing) == []
    assert [*complete(output)] == RUNS[:3]


def test_a_run_prunes_what_it_has_saved(output: PaperRbd) -> None:
    failed = JobResult("web", UUID, Status.FAILED)
    assert prune_saved(RUN, [failed], LIMITED, output, Recorder(), nothing) == ()
    assert prune_saved(RUN, [saved()], settings(output="rbd"), output, Recorder(), nothing) == ()
    assert [*complete(output)] == RUNS[:3]
    assert prune_saved(RUN, [saved()], LIMITED, output, Recorder(), nothing) == []
    assert [*complete(output)] == [RUNS[2]]


@pytest.mark.parametrize("broken", [False, True], ids=["as such", "as an error that follows from it"])
def test_a_stop_ends_the_pruning_of_a_run_and_nothing_else(
    output: PaperRbd, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    stop = StopRequest()

    def signalled(*_: object) -> None:
        stop.request(Interrupted("interrupted", signal.SIGTERM))
        if broken:
            raise BackupError("no answer")
        stop.check()

    monkeypatch.setattr(PaperRbd, "withdraw", signalled)
    recorder = Recorder()
    assert prune_saved(RUN, [saved()], LIMITED, output, recorder, stop.check) == ()
    warning = "stopping: the next run prunes the rest of the restore points"
    assert (recorder.told(Level.WARNING), recorder.told(Level.ERROR)) == ([warning], [])
    assert [*complete(output)] == RUNS[:3]


def test_what_is_in_use_is_no_failure_of_the_run(output: PaperRbd) -> None:
    output.pool.children[disk_name(UUID, "vdb"), RUNS[0]] = ["vms/clone"]
    recorder = Recorder()
    assert prune_saved(RUN, [saved()], LIMITED, output, recorder, nothing) == []
    assert [*complete(output)] == [RUNS[0], RUNS[2]]
    assert "has clones: vms/clone" in " ".join(recorder.told(Level.INFO))


def test_what_cannot_be_removed_is_a_failure_and_the_others_are_removed(
    output: PaperRbd, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw = output.withdraw

    def refused(points: list[PointId], check_stop: object = nothing) -> None:
        if points[0].run == RUNS[0]:
            raise BackupError("refused")
        withdraw(points)

    monkeypatch.setattr(PaperRbd, "withdraw", lambda _self, points, check_stop: refused(points))
    assert prune_saved(RUN, [saved()], LIMITED, output, Recorder(), nothing) == ["web: refused"]
    assert [*complete(output)] == [RUNS[0], RUNS[2]]


def test_a_repository_that_does_not_answer_is_an_error_of_the_run(
    output: PaperRbd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise BackupError("no answer")

    monkeypatch.setattr(PaperRbd, "restore_points", silent)
    recorder = Recorder()
    errors = prune_saved(RUN, [saved()], LIMITED, output, recorder, nothing)
    assert errors == ["restore points are not pruned: no answer"]
    assert recorder.told(Level.ERROR) == ["restore points are not pruned: no answer"]


@pytest.mark.parametrize("of_test", [settings(keep_last=1), settings(output="restic_incremental")])
def test_restic_has_a_retention_of_its_own(of_test: Settings) -> None:
    with pytest.raises(ConfigError, match="which restic itself prunes"):
        prune(of_test, NoOutput(), Recorder(), nothing)
    assert prune_saved(RUN, [saved()], of_test, NoOutput(), Recorder(), nothing) == ()


def test_by_a_clock_that_is_ahead_nothing_is_removed(output: PaperRbd) -> None:
    of_test, recorder = settings(output="rbd", keep_within_days=30), Recorder()
    assert prune(of_test, output, recorder, nothing) == []
    assert prune_saved(RUNS[2], [saved()], of_test, output, recorder, nothing) == []
    assert [*complete(output)] == RUNS[:3]
    warnings = recorder.told(Level.WARNING)
    assert len(warnings) == 2
    assert (
        "all earlier ones are older than 30 days (KEEP_WITHIN_DAYS) (hint: is the clock right?" in warnings[0]
    )
    with_both = settings(output="rbd", keep_last=1, keep_within_days=30)
    assert prune(with_both, output, recorder, nothing) == []
    assert len(prune(LIMITED, output, recorder, nothing)) == 2


def test_a_run_keeps_what_it_has_saved_by_a_clock_that_is_behind(output: PaperRbd) -> None:
    assert prune_saved(RUNS[0], [saved()], LIMITED, output, Recorder(), nothing) == []
    assert [*complete(output)] == [RUNS[0], RUNS[2]]


def test_a_point_that_failed_neither_counts_nor_is_removed(output: PaperRbd, tmp_path: Path) -> None:
    FailedPoints(str(tmp_path)).add(PointId(RUNS[2], UUID))
    of_test = settings(output="rbd", keep_last=1, state_dir=str(tmp_path))
    assert [one.point.id.run for one in prune(of_test, output, Recorder(), nothing)] == [RUNS[0]]
    assert [*complete(output)] == RUNS[1:3]


def test_an_interrupted_removal_is_completed_also_without_a_limit(output: PaperRbd) -> None:
    with pytest.raises(Interrupted):
        output.withdraw([PointId(RUNS[0], UUID)], stopped_at(1))
    disk = output.pool.of(disk_name(UUID, "vdb"))
    assert [*disk.snapshots] == RUNS[:3]
    recorder = Recorder()
    pruned = prune(settings(output="rbd"), output, recorder, nothing, ["web"])
    assert [one.point.id.run for one in pruned] == [RUNS[0]]
    assert [*disk.snapshots] == [one.id.run for one in output.restore_points()] == RUNS[1:3]
    assert "removed (its removal was interrupted)" in " ".join(recorder.told(Level.INFO))


def test_a_clock_in_doubt_is_none_for_an_interrupted_removal(output: PaperRbd) -> None:
    with pytest.raises(Interrupted):
        output.withdraw([PointId(RUNS[0], UUID)], stopped_at(1))
    pruned = prune(settings(output="rbd", keep_within_days=30), output, Recorder(), nothing)
    assert [one.point.id.run for one in pruned] == [RUNS[0]]
    assert [*complete(output)] == RUNS[1:3]


def test_an_unknown_domain_is_an_error(output: PaperRbd) -> None:
    with raises("there is no restore point of a domain 'wbe'", ConfigError):
        prune(LIMITED, output, Recorder(), nothing, ["wbe"])
