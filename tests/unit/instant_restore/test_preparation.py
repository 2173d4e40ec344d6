"""backup/instant_restore/preparation.py: what cannot begin leaves nothing."""

from __future__ import annotations

import errno
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Callable, Optional

import pytest

from backup.ceph.errors import ClusterError
from backup.errors import BackupError
from backup.instant import record as records
from backup.instant.record import Record, Stage
from backup.instant_restore import preparation
from backup.instant_restore.preparation import begun
from backup.model import Consistency, Image, Level
from backup.restore.order import RestoreOrder
from backup.system.stop_request import StopRequest

from ..recorder import Recorder
from ..samples import LAYOUT, MIB, TAKEN, UUID, held_point, image

PLACES = {"vda": image("vms/a"), "vdb": image("ssd/b")}
OVERLAYS = [f"{one}.virt-rbd-backup.overlay" for one in PLACES.values()]
OTHER = "ssd/b.virt-rbd-backup.overlay"


class Cluster:
    """The record and the overlays; each change can fail, once it is done or before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.record: Optional[Record] = None
        self.overlays: list[str] = []
        self.steps, self.fail_at = 0, 0
        self.error: BaseException = KeyboardInterrupt()
        self.late = False  # whether what fails is done nevertheless
        monkeypatch.setattr(records, "create", lambda _, record: self.step(lambda: self.set(record)))
        monkeypatch.setattr(records, "read", lambda *_: self.record)
        monkeypatch.setattr(records, "write", lambda _, record, *__: self.step(lambda: self.set(record)))
        monkeypatch.setattr(records, "remove", lambda *_: self.set(None))
        monkeypatch.setattr(preparation, "_require_possible", lambda *_: None)
        monkeypatch.setattr(preparation, "_empty_overlay", lambda *_: self.step(lambda: None))
        monkeypatch.setattr(preparation, "image_id", lambda *_: "")
        monkeypatch.setattr(preparation, "create_overlay", self.create)
        monkeypatch.setattr(preparation, "remove_overlay", self.remove)

    def set(self, record: Optional[Record]) -> None:
        self.record = record

    def create(self, _: object, overlay: Image, *__: object) -> None:
        if str(overlay) in self.overlays:
            raise ClusterError("it exists", number=errno.EEXIST)
        self.step(lambda: self.overlays.append(str(overlay)))

    def remove(self, _: object, overlay: Image, __: object, stop: StopRequest) -> None:
        stop.check()
        if str(overlay) in self.overlays:
            self.overlays.remove(str(overlay))

    def step(self, change: Callable[[], None]) -> None:
        self.steps += 1
        if self.steps == self.fail_at:
            if self.late:
                change()
            raise self.error
        change()

    def begun(self, recorder: Optional[Recorder] = None) -> None:
        saved = SimpleNamespace(
            name="web",
            taken=TAKEN,
            consistency=Consistency.CRASH,
            images=[SimpleNamespace(target=one, size=MIB, layout=LAYOUT) for one in PLACES],
        )
        domain = SimpleNamespace(name="web", uuid=UUID, attached=lambda places: places)
        stop = StopRequest()
        if self.fail_at:
            stop.check = lambda: None  # type: ignore[method-assign]
            stop.request(BackupError("stopped"))
        values: Any = SimpleNamespace(
            saved=saved,
            places=PLACES,
            domain=domain,
            point=held_point(),
            cluster=self,
            stop=stop,
            reporter=recorder or Recorder(),
        )
        begun(values, RestoreOrder("web", suffix="-copy", force=True))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_begun_there_are_a_record_and_overlays(cluster: Cluster) -> None:
    cluster.begun()
    assert cluster.record
    assert cluster.record.stage is Stage.RUNNING
    assert cluster.record.options == "--suffix=-copy --force"
    assert cluster.overlays == OVERLAYS


@pytest.mark.parametrize("late", [False, True], ids=["before it is done", "once it is done"])
def test_interrupted_at_any_step_nothing_is_left(cluster: Cluster, late: bool) -> None:
    cluster.late = late
    for number in range(1, 7):
        cluster.steps, cluster.fail_at = 0, number
        with pytest.raises(KeyboardInterrupt):
            cluster.begun()
        assert (cluster.record, cluster.overlays) == (None, []), number


def test_the_overlay_of_another_one_that_was_quicker_stays(cluster: Cluster) -> None:
    cluster.overlays = [OTHER]
    with pytest.raises(ClusterError, match="it exists"):
        cluster.begun()
    assert (cluster.record, cluster.overlays) == (None, [OTHER])


def test_what_another_node_has_begun_since_stays(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.fail_at, cluster.late = 6, True
    begins = cluster.set

    def taken_over(record: Optional[Record]) -> None:
        begins(record and replace(record, token="another") if cluster.steps == 6 else record)

    monkeypatch.setattr(cluster, "set", taken_over)
    with pytest.raises(KeyboardInterrupt):
        cluster.begun()
    assert (cluster.record and cluster.record.token, cluster.overlays) == ("another", OVERLAYS)


def test_what_cannot_be_undone_is_reported_and_the_reason_is_raised(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BackupError("in use")

    cluster.fail_at = 6
    recorder = Recorder()
    monkeypatch.setattr(preparation, "remove_overlay", fail)
    with pytest.raises(KeyboardInterrupt):
        cluster.begun(recorder)
    assert recorder.told(Level.ERROR) == ["in use"]
    assert cluster.record, "by which the next one removes them"
