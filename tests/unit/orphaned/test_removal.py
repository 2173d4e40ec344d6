"""backup/orphaned: what no domain can claim is removed from any image of the pools, and nothing else."""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from pathlib import Path

import pytest

from backup.ceph.errors import ClusterError, ImageGone
from backup.errors import BackupError, Interrupted
from backup.model import Image, Level, State
from backup.orphaned import removal
from backup.stored import StoredImage

from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, UUID, broken_disk
from ..slow_call import SlowCall
from .paper_removal import HERE, OLD, SHUT_OFF, WEB, Removal, base, left, point


@pytest.fixture
def node(tmp_path: Path, recorder: Recorder) -> Removal:
    return Removal(tmp_path, recorder)


def test_a_leftover_of_a_domain_that_no_node_has_is_removed_wherever_it_is(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(left())
    node.cluster.snapshots["vms/tenant/c"] = {left()}
    node.cluster.snapshots["ssd/d"] = {left()}
    node.cluster.snapshots["other/e"] = {left()}
    assert node.remove(points=[point(lock="ssd/")], cleanup_pools=["other"]) == set()
    text = f"removed leftover snapshot {left()} of vms/b (domain db, UUID {OTHER_UUID}, saved by node node2)"
    assert f"{text}: this node has no such domain" in node.recorder.told(Level.WARNING)


def test_a_pool_that_nothing_names_is_not_searched(node: Removal) -> None:
    node.cluster.snapshots["other/e"] = {left()}
    assert node.remove() == {f"other/e@{left()}"}


def test_a_leftover_whose_run_may_be_alive_stays(node: Removal, monkeypatch: pytest.MonkeyPatch) -> None:
    node.cluster.snapshots["vms/b"].add(left())
    node.cluster.locks[f"virt-rbd-backup.lock.{OTHER_UUID}"] = "another node"
    with pytest.raises(AssertionError):  # the lock is still there
        node.remove()
    assert left() in node.cluster.snapshots["vms/b"]
    assert node.recorder.told(Level.WARNING) == []


@pytest.mark.parametrize("with_bases", [False, True])
def test_a_young_base_that_another_node_may_need_stays(node: Removal, with_bases: bool) -> None:
    node.cluster.snapshots["vms/b"].add(base())
    assert node.remove(points=[point()], with_bases=with_bases) == {f"vms/b@{base()}"}
    assert node.recorder.messages == []


def test_an_old_base_of_an_unknown_domain_is_removed(node: Removal) -> None:
    node.cluster.snapshots["vms/b"] |= {base(run=OLD), base(run="not a run")}
    assert node.remove() == {f"vms/b@{base(run='not a run')}"}
    assert "older than 30 days (CLEANUP_DAYS)" in node.recorder.told(Level.WARNING)[0]
    node.cluster.snapshots["vms/b"] |= {base(run=OLD)}
    assert f"vms/b@{base(run=OLD)}" in node.remove(cleanup_days=0)


def test_all_removes_a_base_that_this_node_made_of_a_domain_that_it_no_longer_has(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(base())
    assert node.remove(points=[point(HERE)]) == {f"vms/b@{base()}"}
    (text,) = node.recorder.told(Level.INFO)
    assert f"base snapshot {base()} of vms/b stays: this node has no such domain" in text
    assert "cleanup --all" in text
    assert node.remove(points=[point(HERE)], with_bases=True, complete=False) == {f"vms/b@{base()}"}
    node.cluster.watching["vms/b"] = 1
    assert node.remove(points=[point(HERE)], with_bases=True) == {f"vms/b@{base()}"}, "it runs elsewhere"
    node.cluster.watching["vms/b"] = 0
    assert node.remove(points=[point(HERE)], with_bases=True) == set()


@pytest.mark.parametrize("state", [State.RUNNING, State.SHUT_OFF])
def test_the_base_of_a_domain_that_got_another_uuid_is_removed(node: Removal, state: State) -> None:
    node.cluster.snapshots["vms/a"].add(base())
    node.cluster.watching["vms/a"] = int(state.active)
    assert node.remove([replace(WEB, state=state)], [point(HERE, "web")]) == set()
    assert "its image belongs to domain web, which has another UUID" in node.recorder.told(Level.WARNING)[0]


def test_the_base_of_another_node_s_domain_on_a_shared_image_stays(node: Removal) -> None:
    node.cluster.snapshots["vms/a"].add(base())
    node.cluster.watching["vms/a"] = 1
    assert node.remove(points=[point()]) == {f"vms/a@{base()}"}
    assert node.remove([SHUT_OFF], [point(name="web")]) == {f"vms/a@{base()}"}


def test_the_base_of_a_detached_disk_is_removed_once_the_definition_here_is_the_true_one(
    node: Removal,
) -> None:
    node.cluster.snapshots["vms/b"].add(base(UUID))
    elsewhere = replace(WEB, state=State.ELSEWHERE)
    for here, points in (
        (elsewhere, [point(HERE, uuid=UUID)]),
        (SHUT_OFF, [point(uuid=UUID)]),
        (replace(WEB, disks=(*WEB.disks, broken_disk())), []),
        (replace(WEB, problem=BackupError("unreadable")), []),
    ):
        assert node.remove([here], points) == {f"vms/b@{base(UUID)}"}
    assert node.remove([WEB]) == set()
    node.cluster.snapshots["vms/b"].add(base(UUID))
    assert node.remove([SHUT_OFF], [point(HERE, uuid=UUID)]) == set()


def test_the_base_of_an_image_that_was_renamed_stays(node: Removal) -> None:
    """Once it is renamed back, the next backup builds on it."""
    node.cluster.snapshots["vms/b"].add(base(UUID))
    saved = [replace(point(HERE, uuid=UUID), images=(StoredImage("vda", "vms/a", 1, "id"),))]
    assert (
        node.remove([WEB], saved)
        == node.remove([SHUT_OFF], saved, with_bases=True)
        == {f"vms/b@{base(UUID)}"}
    )


def test_what_a_domain_of_this_node_has_is_not_touched(node: Removal) -> None:
    node.cluster.snapshots["vms/a"] |= {base(UUID, OLD), left(UUID)}
    assert len(node.remove(with_bases=True)) == 2


def test_an_image_in_the_trash_needs_no_base_unless_a_client_has_it_open(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(base())
    node.cluster.trash.add("vms/b")
    node.cluster.watching["vms/b"] = 1
    assert node.remove() == {f"vms/b@{base()}"}
    node.cluster.watching["vms/b"] = 0
    assert node.remove() == set()


def test_names_that_only_resemble_ours_are_never_touched(node: Removal) -> None:
    names = {"virt-rbd-backup.mine", f"my.{left()}", f"virt-rbd-backup.{OTHER_UUID}", f"{left()}.copy"}
    node.cluster.snapshots["vms/b"] |= names
    assert node.remove(with_bases=True) == {f"vms/b@{name}" for name in names}


def test_broken_images_cost_one_line_and_the_others_are_cleaned(
    node: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.cluster.snapshots |= {f"vms/{name}": {left()} for name in ("c", "d", "gone")}
    names = node.cluster.snapshot_names

    def names_of(image: Image) -> list[str]:
        if image.name in "ab":
            raise ClusterError(f"cannot list the snapshots of image {image}: input/output error")
        if image.name == "gone":
            raise ImageGone("gone meanwhile")
        return names(image)

    monkeypatch.setattr(node.cluster, "snapshot_names", names_of)
    assert node.remove() == {f"vms/gone@{left()}"}
    assert node.recorder.told(Level.WARNING)[0] == (
        "2 images of pool vms not searched for leftovers; "
        "the first error: cannot list the snapshots of image vms/a: input/output error"
    )


def test_a_cluster_that_does_not_answer_is_not_asked_for_each_of_its_images(
    node: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def silent(image: Image) -> list[str]:
        asked.append(image)
        time.sleep(0.05)  # as all threads ask at the same time
        raise ClusterError("timed out", number=errno.ETIMEDOUT)

    node.cluster.snapshots |= {f"vms/i{number}": set() for number in range(500)}
    monkeypatch.setattr(node.cluster, "snapshot_names", silent)
    node.remove()
    assert len(asked) <= 2 * removal.AT_A_TIME


def test_a_search_that_takes_too_long_leaves_the_rest_to_the_next_one(node: Removal) -> None:
    node.cluster.snapshots |= {f"vms/{number}": {left()} for number in range(3)}
    assert len(node.remove(limit=0)) == 3, "nothing is removed that was not searched"
    assert node.recorder.told(Level.INFO) == ["0 of 5 images searched for leftovers"]
    assert node.remove(limit=60) == set()


def test_a_removal_that_fails_is_a_warning(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(left())
    node.cluster.failing = {("remove", "vms/b")}
    assert node.remove() == {f"vms/b@{left()}"}
    (text,) = node.recorder.told(Level.WARNING)
    assert text.startswith(f"leftover snapshot of a domain with UUID {OTHER_UUID} not removed: ")


def test_a_mirror_that_is_not_primary_is_no_warning(node: Removal, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(image: Image, _name: str) -> None:
        raise ClusterError(f"image {image}: read-only file system", number=errno.EROFS)

    node.cluster.snapshots["vms/b"].add(left())
    monkeypatch.setattr(node.cluster, "remove_snapshot", read_only)
    assert node.remove() == {f"vms/b@{left()}"}
    assert node.recorder.told(Level.WARNING) == []


def test_thousands_of_images_are_searched_in_seconds_with_progress(
    node: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowCall(node.cluster.snapshot_names)
    node.cluster.snapshots |= {f"vms/i{number}": set() for number in range(3000)}
    monkeypatch.setattr(node.cluster, "snapshot_names", slow)
    node.remove(progress_interval=1)
    assert slow.at_once > removal.AT_A_TIME / 4, "they take 30 s one by one"
    assert node.recorder.told(Level.INFO)[0].endswith(" of 3002 images searched for leftovers")


def test_a_stop_is_heard_while_an_image_hangs(node: Removal, monkeypatch: pytest.MonkeyPatch) -> None:
    def hung(_image: Image) -> list[str]:
        node.stop.request(Interrupted("interrupted", 15))
        assert node.cluster.go_on.wait(20)
        return []

    monkeypatch.setattr(removal, "GRACE", 0.2)
    monkeypatch.setattr(node.cluster, "snapshot_names", hung)
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        node.remove()
    assert time.monotonic() < began + 15
    assert not node.closed.is_set(), "calls still use the connections"
    node.cluster.go_on.set()
    assert node.closed.wait(5)
