"""backup/run/run.py: jobs that failed with a transient error are retried at the end of the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Callable, cast

import pytest

from backup.ceph.errors import ClusterError, LockHeld
from backup.errors import BackupError, Interrupted, TransientError
from backup.hypervisor.connections import Hypervisors
from backup.job.failed_points import FailedPoints
from backup.job.job_order import JobOrder
from backup.job_result import NOT_BEGUN, JobResult, Status
from backup.model import Level
from backup.report.run_report import RunResult
from backup.run import confirm, list_domains, run
from backup.run import retry as retry_module
from backup.run.run import Run
from backup.selection import choose
from backup.stored import PointId, StoredPoint
from backup.system import transient
from backup.system.stop_request import StopRequest

from ..disk_elements import rbd
from ..driver_node import domain_element, node_uri
from ..jobs_on_paper import NoOutput
from ..no_watchdog import NoWatchdog
from ..recorder import Recorder
from ..samples import OTHER_UUID, RUN, UUID, domain, held_point, settings

FAILS = ("fails", "transient", "lost", "stored")
STATUS = {"saved": Status.SAVED, "waiting": Status.SKIPPED, **dict.fromkeys(FAILS, Status.FAILED)}


class ScriptedPool:
    """Ends each domain's jobs according to its script, one attempt after the other."""

    def __init__(self, **scripts: str) -> None:
        self.scripts = {name: script.split() for name, script in scripts.items()}
        self.rounds: list[list[str]] = []
        self.attempts: list[set[int]] = []
        self.full_reads: list[list[str]] = []
        self.known: list[set[int]] = []
        self.orders: list[Sequence[JobOrder]] = []
        self.stop = StopRequest()

    def __call__(self, *_: object) -> ScriptedPool:
        return self

    def __enter__(self) -> ScriptedPool:
        return self

    def __exit__(self, *_: object) -> None:
        """No process is left of it."""

    def warm_up(self, count: int) -> None:
        """Has no processes."""

    def run(self, orders: Sequence[JobOrder]) -> Sequence[JobResult]:
        self.orders.append(orders)
        self.rounds.append([order.name for order in orders])
        self.attempts.append({order.attempt for order in orders})
        self.full_reads.append([order.name for order in orders if order.full_read])
        self.known.append({len(order.known) for order in orders})
        return [self._result(order) for order in orders]

    def _result(self, order: JobOrder) -> JobResult:
        end = self.scripts[order.name].pop(0)
        return JobResult(
            order.name,
            order.uuid,
            STATUS[end],
            NOT_BEGUN if end == "waiting" else "",
            transient=end in ("transient", "lost", "stored"),
            full_read=end == "lost",
            withdraw=end == "stored",
        )


class Discards(NoOutput):
    """Has always something of this run, and of another one, to discard."""

    def __init__(self) -> None:
        self.discarded: list[Collection[PointId]] = []

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return self.restore_points()

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return [held_point(RUN, UUID), held_point("20200101T000000Z-othr", OTHER_UUID)]

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.discarded.append(points)


def back_up(
    pool: ScriptedPool,
    output: Discards,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    retry_for: int = 0,
    **constants: object,
) -> RunResult:
    monkeypatch.setattr(run, "Pool", pool)
    monkeypatch.setattr(confirm, "missing", lambda *_: ())
    monkeypatch.setattr(run, "watched", lambda *_: nullcontext(NoWatchdog()))
    monkeypatch.setattr(list_domains, "largest_first", lambda domains, *_: [(one, 0) for one in domains])
    domains = (domain_element("db", OTHER_UUID, rbd()), domain_element("web", UUID, rbd()))
    uri = node_uri(directory / "node.xml", *domains)
    runtime_dir = str(directory / "run")
    chosen = settings(libvirt_uri=uri, runtime_dir=runtime_dir, retry_for=retry_for, **constants)
    return Run(chosen, output, Recorder(), pool.stop, RUN).back_up(())


@pytest.mark.parametrize(
    ("web", "rounds", "status"),
    [
        ("transient saved", [["db", "web"], ["web"]], "saved"),
        ("transient transient", [["db", "web"], ["web"]], "failed"),
        ("transient fails", [["db", "web"], ["web"]], "failed"),
        ("fails", [["db", "web"]], "failed"),
    ],
)
def test_a_transient_failure_is_retried(
    web: str, rounds: object, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ScriptedPool(db="saved", web=web)
    result = back_up(pool, Discards(), tmp_path, monkeypatch)
    assert pool.rounds == rounds
    assert {one.name: one.status.value for one in result.results} == {"db": "saved", "web": status}
    assert result.exit_code == (0 if status == "saved" else 3)


def test_domains_that_have_just_started_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    booting = domain("booting", agent_connected=False, started=time.time() - 20)
    long_up = domain("up", OTHER_UUID, agent_connected=False, started=time.time() - 4000)
    monkeypatch.setattr(list_domains, "largest_first", lambda domains, *_: [(one, 0) for one in domains])
    choices = choose([booting, long_up], settings())

    def names(**constants: int) -> list[str]:
        hypervisors = cast(Hypervisors, ())
        found = list_domains.ordered(
            choices, (), hypervisors, settings(**constants), Recorder(), lambda: None
        )
        return [one.name for one, _ in found]

    assert names() == ["up", "booting"]
    assert names(agent_boot_timeout=0) == ["booting", "up"]


def test_a_domain_whose_previous_backup_is_damaged_gets_a_full_read_in_all_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_module, "moments", lambda _: iter([0.0] * 3))
    pool = ScriptedPool(db="transient saved", web="lost transient saved")
    assert back_up(pool, Discards(), tmp_path, monkeypatch).exit_code == 0
    assert pool.rounds == [["db", "web"], ["db", "web"], ["web"]]
    assert pool.full_reads == [[], ["web"], ["web"]]


def test_a_retry_does_not_rely_on_what_the_run_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, output = ScriptedPool(db="saved", web="transient saved"), Discards()
    output.keeps_base_snapshots = True
    back_up(pool, output, tmp_path, monkeypatch)
    assert pool.known == [{1}, {0}]


class Busy(Discards):
    """Has a restore point of the run that looks complete, and at first cannot withdraw it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = [held_point(RUN, UUID, manifest_id="manifest")]
        self.asked = 0

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return self.left

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        self.asked += 1
        if self.asked == 1:
            raise BackupError("the repository is locked")
        self.left = []


def test_what_failed_and_looks_complete_is_withdrawn_in_the_end_although_the_retry_saved_the_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Busy()
    result = back_up(ScriptedPool(db="saved", web="stored saved"), output, tmp_path, monkeypatch)
    assert result.exit_code == 0
    assert (output.asked, output.left) == (2, [])


def test_what_failed_in_an_earlier_run_does_not_count_and_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = held_point("20240101T000000Z-dead", UUID, manifest_id="manifest")
    failed = FailedPoints(str(tmp_path / "state"))
    failed.add(earlier.id)
    output, pool = Busy(), ScriptedPool(db="saved", web="saved")
    output.left, output.asked, output.keeps_base_snapshots = [earlier], 1, True
    back_up(pool, output, tmp_path, monkeypatch, state_dir=str(tmp_path / "state"), min_age=3600)
    (orders,) = pool.orders
    web = next(one for one in orders if one.name == "web")
    assert (web.known, web.last_saved, web.min_age) == ((), None, 0)
    assert next(one for one in orders if one.name == "db").min_age == 3600
    assert (output.left, failed.all()) == ([], set())


def test_images_of_a_killed_run_that_noted_its_failure_are_removed_as_those_of_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = held_point("20240101T000000Z-dead", UUID)
    FailedPoints(str(tmp_path / "state")).add(left.id)
    discarded: list[StoredPoint] = []
    monkeypatch.setattr(run, "discard_of_dead", lambda points, *_: discarded.extend(points))
    output = Busy()
    output.left = [left]
    pool = ScriptedPool(db="saved", web="saved")
    back_up(pool, output, tmp_path, monkeypatch, state_dir=str(tmp_path / "state"))
    assert discarded == [left]


@pytest.mark.parametrize(
    ("retry_for", "takes", "moments"),
    [
        (300, 0, [0, 10, 30, 70, 150, 300]),
        (15, 0, [0, 10, 15]),
        (0, 0, [0]),
        (300, 100, [0, 110, 230, 330]),
        (300, 7200, [0, 7200]),
        (0, 7200, [0]),
    ],
)
def test_retries_go_on_with_growing_pauses_and_one_begins_after_retry_for(
    retry_for: float, takes: float, moments: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    found = []
    for begins in transient.moments(retry_for):
        clock[0] = max(clock[0], begins)
        found.append(clock[0] - 1000)
        clock[0] += takes
    assert found == moments


def test_a_transient_failure_is_retried_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient, "FIRST_PAUSE", 0.01)
    pool = ScriptedPool(db="saved", web="transient transient transient transient saved")
    result = back_up(pool, Discards(), tmp_path, monkeypatch, retry_for=60)
    assert pool.rounds == [["db", "web"], *4 * [["web"]]]
    assert pool.attempts == [{1}, {2}, {3}, {4}, {5}]
    assert result.exit_code == 0


def test_a_run_that_is_stopped_while_it_waits_for_a_retry_does_not_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ScriptedPool(db="saved", web="transient transient saved")

    class StopsWhileWaiting(Recorder):
        def message(self, level: Level, domain: str, text: str) -> None:
            if "are retried in 10 s (RETRY_FOR)" in text:
                pool.stop.request(Interrupted("interrupted", 15))

    monkeypatch.setattr(sys.modules[__name__], "Recorder", StopsWhileWaiting)
    back_up(pool, Discards(), tmp_path, monkeypatch, retry_for=60)
    assert pool.rounds == [["db", "web"], ["web"]]


def test_the_incomplete_point_of_the_first_attempt_is_discarded_before_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Discards()
    back_up(ScriptedPool(db="saved", web="transient saved"), output, tmp_path, monkeypatch)
    own = [PointId(RUN, UUID)]
    assert [points for points in output.discarded if points] == [own], "before the second attempt"
    back_up(ScriptedPool(db="saved", web="transient fails"), output, tmp_path, monkeypatch)
    assert [points for points in output.discarded if points] == 3 * [own], "and in the end, if that fails too"


def test_a_run_that_saved_all_only_removes_dead_locks_from_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Discards()
    back_up(ScriptedPool(db="saved", web="saved"), output, tmp_path, monkeypatch)
    assert output.discarded == [()]


def test_a_run_that_is_asked_to_stop_retries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(ScriptedPool):
        def run(self, orders: Sequence[JobOrder]) -> Sequence[JobResult]:
            self.stop.request(Interrupted("interrupted", 15))
            return super().run(orders)

    pool = Stopped(db="saved", web="transient saved")
    back_up(pool, Discards(), tmp_path, monkeypatch)
    assert pool.rounds == [["db", "web"]]


def test_a_failed_domain_that_a_stop_keeps_from_its_retry_stays_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ScriptedPool(db="transient saved", web="transient waiting")
    result = back_up(pool, Discards(), tmp_path, monkeypatch)
    assert pool.rounds == [["db", "web"], ["db", "web"]]
    assert [(one.name, one.status.value) for one in result.results] == [("web", "failed"), ("db", "saved")]


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (BackupError("no"), False),
        (TransientError("busy"), True),
        (LockHeld("held"), True),
        (ClusterError("late", number=110), True),
        (ClusterError("denied", number=1), False),
    ],
)
def test_each_error_is_transient_or_not(error: BackupError, transient: bool) -> None:
    assert error.transient is transient
