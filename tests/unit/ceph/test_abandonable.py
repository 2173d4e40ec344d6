"""backup/ceph/abandonable.py: work is awaited after a signal as long as the cluster answers."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from backup.ceph import connection
from backup.ceph.abandonable import unless_silent
from backup.ceph.errors import ClusterError
from backup.errors import BackupError, Interrupted
from backup.model import Image
from backup.system import time_limit
from backup.system.stop_request import StopRequest

from ..paper_cluster import PaperCluster
from ..raising import raises
from ..recorder import Recorder

IMAGES = [Image("vms", "root"), Image("vms", "data")]


class Hanging(PaperCluster):
    """A cluster that hangs until `go_on` is set."""

    _abandoned = False

    def object_exists(self, image: Image, name: str) -> bool:
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


def test_work_that_undoes_what_it_began_is_awaited_while_the_cluster_answers() -> None:
    def undoes() -> int:
        time.sleep(0.7)
        return 5

    assert unless_silent(undoes, PaperCluster(), IMAGES, Signalled(), Recorder()) == 5


def test_work_with_a_cluster_that_hangs_is_abandoned_after_a_signal() -> None:
    cluster = Hanging()
    with raises("interrupted", Interrupted):
        unless_silent(lambda: cluster.go_on.wait(30), cluster, IMAGES, Signalled(), Recorder())
    assert time_limit.any_abandoned()
    cluster.close()  # which would fail here: the work still uses the connection
    cluster.go_on.set()


def test_a_failure_that_stops_the_work_without_a_signal_is_no_reason_to_abandon_it() -> None:
    stop = StopRequest()
    stop.request(BackupError("restic failed"))
    cluster = Hanging()
    threading.Timer(0.7, cluster.go_on.set).start()
    assert unless_silent(lambda: cluster.go_on.wait(30), cluster, IMAGES, stop, Recorder())


@pytest.mark.parametrize(("number", "answers"), [(110, False), (1, True)])
def test_any_answer_counts_but_a_timeout(number: int, answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bool:
        raise ClusterError("refused", number=number)

    cluster = PaperCluster()
    monkeypatch.setattr(cluster, "object_exists", refused)
    assert cluster.answers(IMAGES[0]) is answers
