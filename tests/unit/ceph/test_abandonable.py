"""backup/ceph/abandonable.py: work is awaited after a signal as long as the cluster answers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Callable

import pytest

from backup.ceph import connection
from backup.ceph.abandonable import unless_silent
from backup.ceph.errors import ClusterError
from backup.errors import BackupError, Interrupted
from backup.model import Image
from backup.restore.images import ImageRestore
from backup.restore.new_file import NewFile
from backup.stored import SavedImage
from backup.system import time_limit
from backup.system.stop_request import StopRequest

from ..jobs_on_paper import NoOutput
from ..paper_cluster import PaperCluster
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT
from ..waiting import wait_until

IMAGES = [Image("vms", "root"), Image("vms", "data")]


class Hanging(PaperCluster):
    """A cluster that hangs until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self._abandoned = []
        self.is_closed = False
        self.asked = threading.Event()  # whether it answers
        self._pools = {}
        self._rados = self

    def shutdown(self) -> None:
        self.is_closed = True

    def object_exists(self, image: Image, name: str) -> bool:
        self.asked.set()
        return self.go_on.wait(30)


class Signalled(StopRequest):
    """Has got a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.signal_number = signal.SIGTERM
        self.request(Interrupted("interrupted", signal.SIGTERM))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_LIMIT", 0.1)
    monkeypatch.setattr(time_limit, "_abandoned", [])


def test_the_result_of_the_work_is_returned_and_its_error_raised() -> None:
    assert unless_silent(lambda: 5, PaperCluster(), IMAGES, StopRequest(), Recorder()) == 5

    def fails() -> None:
        raise BackupError("restic failed")

    with raises("restic failed"):
        unless_silent(fails, PaperCluster(), IMAGES, StopRequest(), Recorder())


def test_work_that_undoes_what_it_began_is_awaited_while_the_cluster_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "ANSWER_LIMIT", 30)

    def undoes() -> int:
        time.sleep(0.7)
        return 5

    assert unless_silent(undoes, PaperCluster(), IMAGES, Signalled(), Recorder()) == 5


def test_work_with_a_cluster_that_hangs_is_abandoned_after_a_signal() -> None:
    cluster = Hanging()
    with raises("interrupted", Interrupted):
        unless_silent(lambda: cluster.go_on.wait(30), cluster, IMAGES, Signalled(), Recorder())
    assert time_limit.any_abandoned()
    assert_is_left_open(cluster)


def assert_is_left_open(cluster: Hanging) -> None:
    """Assert that the connection is closed only once no thread uses it any more."""
    cluster.close()
    assert not cluster.is_closed
    cluster.go_on.set()
    wait_until(lambda: not time_limit.any_abandoned(), 10, "the end of what was abandoned")
    cluster.close()
    assert cluster.is_closed


def test_a_connection_is_not_closed_under_the_question_whether_the_cluster_answers() -> None:
    cluster = Hanging()
    assert unless_silent(lambda: cluster.asked.wait(30), cluster, IMAGES, Signalled(), Recorder())
    assert_is_left_open(cluster)


def test_a_failure_that_stops_the_work_without_a_signal_is_no_reason_to_abandon_it() -> None:
    stop = StopRequest()
    stop.request(BackupError("restic failed"))
    cluster = Hanging()
    threading.Timer(0.7, cluster.go_on.set).start()
    assert unless_silent(lambda: cluster.go_on.wait(30), cluster, IMAGES, stop, Recorder())


class SlowTarget(NewFile):
    """A target whose final name takes a while; `before` is called first."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def commit(self) -> None:
        self.before()
        time.sleep(0.7)
        super().commit()


EMPTY = SavedImage("vda", "vms/root", 0, 0, 0, 0.0, "", LAYOUT)


def restored(tmp_path: Path, stop: StopRequest, before: Callable[[], None]) -> Sequence[str]:
    """Restore two disks with a cluster that hangs; return which have their names when that has ended."""
    targets = [SlowTarget(str(tmp_path / name), EMPTY, False) for name in ("vda.raw", "vdb.raw")]
    targets[0].before = before
    restore = ImageRestore("web", NoOutput(), 2, Recorder(), stop)
    work, cluster = partial(restore.restore, [(EMPTY, one) for one in targets]), Hanging()
    try:
        unless_silent(work, cluster, IMAGES, stop, Recorder(), restore.renaming)
    finally:
        cluster.go_on.set()
        names = sorted(path.name for path in tmp_path.iterdir())
    return names


def test_disks_that_are_getting_their_names_all_get_them(tmp_path: Path) -> None:
    stop = StopRequest()
    assert restored(tmp_path, stop, lambda: stop._handle(signal.SIGTERM, None)) == ["vda.raw", "vdb.raw"]
    assert not time_limit.any_abandoned()


def test_no_disk_gets_its_name_once_the_work_may_have_been_abandoned(tmp_path: Path) -> None:
    stop = StopRequest()

    class Unnoticed(threading.Event):
        """The signal comes, and the work is abandoned, just before it is set."""

        def set(self) -> None:
            stop._handle(signal.SIGTERM, None)
            super().set()

    restore = ImageRestore("web", NoOutput(), 2, Recorder(), stop, Unnoticed())
    with raises("interrupted", Interrupted):
        restore.restore([(EMPTY, NewFile(str(tmp_path / "vda.raw"), EMPTY, False))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "answers"), [(110, False), (1, True)])
def test_any_answer_counts_but_a_timeout(number: int, answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bool:
        raise ClusterError("refused", number=number)

    cluster = PaperCluster()
    monkeypatch.setattr(cluster, "object_exists", refused)
    assert cluster.answers(IMAGES[0]) is answers
