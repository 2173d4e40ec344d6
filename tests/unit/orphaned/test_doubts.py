"""backup/orphaned: in any doubt a snapshot stays, and is named where no backup replaces it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError
from backup.model import Level, State
from backup.orphaned.growing import growing
from backup.orphaned.places import NodeDomains, known_points
from backup.stored import PointId, StoredImage, StoredPoint

from ..jobs_on_paper import NoOutput
from ..paper_cluster import PaperClusters
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, UUID, settings
from .paper_removal import HERE, OLD, SHUT_OFF, WEB, YOUNG, Removal, base, left, point


@pytest.fixture
def node(tmp_path: Path, recorder: Recorder) -> Removal:
    return Removal(tmp_path, recorder)


def warnings(node: Removal, points: Sequence[StoredPoint] = ()) -> list[str]:
    """Give what check warns of."""
    nodes = [NodeDomains([WEB], PaperClusters(node.cluster))]
    return [one.subject for one in growing(nodes, True, points, settings(), lambda: None, lambda: None)]


@pytest.mark.parametrize("named", [base, left])
@pytest.mark.parametrize(
    "run",
    ["20261399T996199Z-abcd", "00000101T000000Z-abcd", "20260230T000000Z-abcd", "mine", "20260101T000000Z"],
)
def test_a_name_that_no_run_can_have_is_named_and_stays(
    node: Removal, run: str, named: Callable[..., str]
) -> None:
    name = named(run=run)
    node.cluster.snapshots["vms/b"].add(name)
    assert node.remove(with_bases=True) == {f"vms/b@{name}"}
    (text,) = node.recorder.told(Level.INFO)
    assert f"{name} of vms/b stays: {run} is not the name of a run" in text
    assert text.endswith(f"(if nothing needs it: rbd snap rm vms/b@{name})")
    (text,) = warnings(node)
    assert f"{run} is not the name of a run" in text


def test_a_leftover_with_a_complete_restore_point_is_a_base(node: Removal) -> None:
    """Its run was killed before it gave the snapshot a base's name: the next backup builds on it."""
    node.cluster.snapshots["vms/b"].add(left())
    image = StoredImage("vda", "vms/b", 1, "id")
    saved, made_here = (replace(point(name), images=(image,)) for name in ("node2", HERE))
    incomplete = replace(saved, id=PointId(YOUNG, OTHER_UUID, 2), manifest_id="")
    assert node.remove(points=[saved, incomplete]) == {f"vms/b@{left()}"}
    assert node.recorder.messages == [], "another node's next run replaces it"
    assert node.remove(points=[made_here]) == {f"vms/b@{left()}"}
    assert f"base snapshot {left()} of vms/b stays: " in node.recorder.told(Level.INFO)[0]
    assert "base snapshot" in warnings(node, [made_here])[0]
    assert node.remove(points=[incomplete]) == set(), "no backup builds on an incomplete one"


def test_an_old_leftover_with_a_complete_restore_point_is_removed(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(left(run=OLD))
    images = (StoredImage("vda", "vms/b", 1, "id"),)
    assert node.remove(points=[replace(point(), id=PointId(OLD, OTHER_UUID), images=images)]) == set()
    assert "older than 30 days" in node.recorder.told(Level.WARNING)[0]


@pytest.mark.parametrize("hours", [-11, 11])
def test_a_clock_that_is_wrong_by_hours_does_not_make_a_base_old(node: Removal, hours: int) -> None:
    began = datetime.now(timezone.utc) - timedelta(hours=24 + hours)
    young = base(run=f"{began:%Y%m%dT%H%M%SZ}-abcd")
    node.cluster.snapshots["vms/b"].add(young)
    assert node.remove(cleanup_days=1) == {f"vms/b@{young}"}


def test_any_number_of_days_can_be_set(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(base(run=OLD))
    assert node.remove(cleanup_days=10**12)


def test_an_old_base_of_an_image_that_another_client_has_open_stays(node: Removal) -> None:
    """A domain of another node has not been backed up for long: nothing else shows that it is alive."""
    node.cluster.snapshots["vms/b"].add(base(run=OLD))
    node.cluster.watching["vms/b"] = 1
    assert node.remove(with_bases=True) == {f"vms/b@{base(run=OLD)}"}
    (text,) = node.recorder.told(Level.INFO)
    assert "but another client may have its image open (see rbd status vms/b)" in text


def test_an_old_base_stays_while_a_libvirt_of_this_node_does_not_answer(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(base(run=OLD))
    assert node.remove(complete=False, with_bases=True) == {f"vms/b@{base(run=OLD)}"}
    assert node.remove() == set()


def test_the_base_of_an_image_that_is_still_open_stays_though_the_domain_does_not_name_it(
    node: Removal,
) -> None:
    """The image of the running domain was renamed, and the restore point is no longer in the repository."""
    node.cluster.snapshots["vms/b"].add(base(UUID))
    node.cluster.watching["vms/b"] = 1
    assert node.remove([WEB]) == {f"vms/b@{base(UUID)}"}


def test_the_base_of_another_node_s_domain_of_the_same_name_stays(node: Removal) -> None:
    """The definitions on two nodes have UUIDs of their own, and the domain runs here now."""
    node.cluster.snapshots["vms/a"].add(base())
    node.cluster.watching["vms/a"] = 1
    points = [point(name="web")]
    assert node.remove(points=points) == {f"vms/a@{base()}"}
    (text,) = node.recorder.told(Level.INFO)
    assert "its image belongs to domain web, which has another UUID, another node may have it" in text
    assert "belongs to domain web" in warnings(node, points)[0]
    assert node.remove(points=points, with_bases=True) == set(), "the admin wants it removed"


@pytest.mark.parametrize("state", [State.RUNNING, State.SHUT_OFF])
def test_a_shared_image_shows_no_new_uuid(node: Removal, state: State) -> None:
    """The other domain that shares it was moved to another node, where it is shut off and not saved yet."""
    node.cluster.snapshots["vms/a"].add(base())
    node.cluster.watching["vms/a"] = int(state.active)
    sharing = replace(WEB, state=state, disks=tuple(replace(disk, shared=True) for disk in WEB.disks))
    assert node.remove([sharing], [point(HERE, "db")]) == {f"vms/a@{base()}"}


def test_a_domain_that_only_reads_an_image_is_not_taken_for_the_client_that_writes(node: Removal) -> None:
    node.cluster.snapshots["vms/a"].add(base(run=OLD))
    node.cluster.watching["vms/a"] = 1
    reading = replace(WEB, disks=tuple(replace(disk, shared=True) for disk in WEB.disks))
    assert node.remove([reading]) == {f"vms/a@{base(run=OLD)}"}


def test_a_renamed_image_is_named(node: Removal) -> None:
    node.cluster.snapshots["vms/b"].add(base(UUID))
    saved = [replace(point(HERE, uuid=UUID), images=(StoredImage("vda", "vms/a", 1, "id"),))]
    assert node.remove([SHUT_OFF], saved) == {f"vms/b@{base(UUID)}"}
    assert "its image was renamed since (removed after 30 days)" in node.recorder.told(Level.INFO)[0]


def test_a_mirror_that_is_not_primary_is_passed_over(node: Removal) -> None:
    node.cluster.snapshots["vms/b"] |= {left(), base(run=OLD)}
    node.cluster.mirrors.add("vms/b")
    assert len(node.remove(with_bases=True)) == 2
    assert node.recorder.messages == []
    assert warnings(node) == []


def test_points_that_cannot_be_listed_are_no_empty_list() -> None:
    class Silent(NoOutput):
        def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            raise BackupError("no route to host")

    class Misconfigured(NoOutput):
        def configuration_errors(self) -> Sequence[BackupError]:
            return (BackupError("RESTIC_REPOSITORY is empty"),)

    text = "the pools are not searched for leftovers of other domains"
    text += ", as the restore points cannot be listed"
    with raises(f"{text}: no route to host"):
        known_points(Silent(), lambda: None)
    with raises(f"{text}: RESTIC_REPOSITORY is empty"):
        known_points(Misconfigured(), lambda: None)


def test_a_running_domain_is_not_taken_for_the_client_of_a_disk_that_its_next_start_adds(
    node: Removal,
) -> None:
    node.cluster.snapshots["vms/a"].add(base(run=OLD))
    node.cluster.watching["vms/a"] = 1
    later = replace(WEB, disks=tuple(replace(disk, client="", written=False) for disk in WEB.disks))
    assert node.remove([later]) == {f"vms/a@{base(run=OLD)}"}
    assert node.remove([WEB]) == set()
