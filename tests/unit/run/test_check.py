"""backup/run/check.py: a check of everything ends on a request to stop, whatever hangs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError, Interrupted
from backup.hypervisor.connection import Hypervisor
from backup.model import Domain, Image
from backup.orphaned import places
from backup.run import check
from backup.run.check import examine
from backup.settings import Settings
from backup.stored import StoredPoint
from backup.system.stop_request import StopRequest
from backup.system.time_limit import CheckStop

from ..disk_elements import other, rbd
from ..driver_node import SHUT_OFF, domain_element, node_uri
from ..jobs_on_paper import NoOutput
from ..paper_cluster import PaperCluster, PaperClusters
from ..raising import raises
from ..samples import OTHER_UUID, RUN, UUID, settings


class Hangs:
    """Calls that hang until the test is over."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.entered = threading.Event()

    def __call__(self, *_: object) -> None:
        self.entered.set()
        assert self.go_on.wait(30)


@pytest.fixture
def hangs() -> Iterator[Hangs]:
    hangs = Hangs()
    yield hangs
    hangs.go_on.set()


class Cluster(PaperCluster):
    """Permits snapshots."""

    def allow_snapshots(self, image: Image) -> None:
        """Permitted."""


class NoPoints(NoOutput):
    """Has no restore point."""

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return ()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    cluster.snapshots = {"vms/a": set()}
    for module in (check, places):
        monkeypatch.setattr(module, "Clusters", lambda *_: PaperClusters(cluster))
    cluster.watching = {"vms/a": 1}
    return cluster


@pytest.fixture
def chosen(tmp_path: Path, cluster: Cluster) -> Settings:
    uri = node_uri(tmp_path / "node.xml", domain_element("web", UUID, rbd("vms/a")))
    directories = {"runtime_dir": str(tmp_path / "run"), "state_dir": str(tmp_path / "state")}
    return settings(libvirt_uri=uri, freeze="required", **directories)


def assert_stops(chosen: Settings, output: NoOutput, hangs: Hangs) -> None:
    stop = StopRequest()
    began = time.monotonic()

    def request() -> None:
        assert hangs.entered.wait(10)
        stop.request(Interrupted("interrupted", 15))

    threading.Thread(target=request).start()
    with raises("interrupted", Interrupted):
        list(examine(chosen, output, stop.check))
    assert time.monotonic() < began + 8


def test_all_requirements_of_a_backup_are_checked(chosen: Settings) -> None:
    subjects = [found.subject for found in examine(chosen, NoPoints())]
    assert subjects[-2:] == [
        "pool vms: client.libvirt may make snapshots",
        "domain web, disk vda: image vms/a",
    ]


def test_a_state_directory_that_cannot_be_written_is_a_problem(chosen: Settings) -> None:
    """Without it nothing is known of earlier runs: no report, no proof, no failed restore point."""

    def problem(path: str) -> str:
        checked = examine(replace(chosen, state_dir=path), NoPoints())
        (found,) = [one for one in checked if one.subject == f"STATE_DIR {path}"]
        return str(found.problem or "")

    assert problem(chosen.state_dir) == ""
    assert problem("/proc/x") == "cannot create /proc/x: no such file or directory (hint: see STATE_DIR)"


def test_a_full_pool_that_has_the_data_of_an_image_is_a_problem(chosen: Settings, cluster: Cluster) -> None:
    cluster.data_pools, cluster.full = {"vms/a": "erasure-coded"}, {"erasure-coded"}
    problems = {found.subject: found.problem for found in examine(chosen, NoPoints()) if found.problem}
    assert str(problems["domain web, disk vda: image vms/a"]) == "pool erasure-coded is full"


def test_an_image_that_the_running_domain_does_not_have_open_is_a_problem(
    chosen: Settings, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.watching = {}
    problems = {found.subject: found.problem for found in examine(chosen, NoPoints()) if found.problem}
    problem = problems["domain web, disk vda: image vms/a"]
    assert problem
    assert problem.message == "vms/a is open in no client, although the domain is running"
    assert "CEPH_CONF" in problem.hint
    off = node_uri(tmp_path / "off.xml", domain_element("web", UUID, rbd("vms/a"), state=SHUT_OFF))
    assert not any(found.problem for found in examine(replace(chosen, libvirt_uri=off), NoPoints()))


def test_what_is_not_backed_up_is_reported_and_no_problem_unless_configured(
    chosen: Settings, tmp_path: Path
) -> None:
    shared = "<filesystem><source dir='/srv/a'/><target dir='data'/></filesystem>"
    file = other("file", "<source file='/x'/>").replace("'vda'", "'vdb'")
    uri = node_uri(tmp_path / "node.xml", domain_element("web", UUID, rbd("vms/a") + file + shared))
    chosen = replace(chosen, libvirt_uri=uri)
    found = {one.subject: one.problem for one in examine(chosen, NoPoints())}
    for text in (
        "disk vdb (/x) is not backed up: no RBD image (file)",
        "filesystem:data (/srv/a) is not backed up: no RBD image (9p file system)",
    ):
        assert found[f"domain web: {text}"] is None
    chosen = replace(chosen, uncovered_disks="fail")
    problems = [str(one.problem) for one in examine(chosen, NoPoints()) if one.problem]
    assert any("disk vdb (/x) cannot be backed up" in text for text in problems)


def test_a_tpm_whose_state_a_backup_could_not_read_is_a_problem(chosen: Settings, tmp_path: Path) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    uri = node_uri(tmp_path / "node.xml", domain_element("web", UUID, rbd("vms/a") + tpm))
    problems = [str(one.problem) for one in examine(replace(chosen, libvirt_uri=uri), NoPoints())]
    text = f"cannot read the state of the domain's TPM /var/lib/libvirt/swtpm/{UUID}/tpm2: no such file"
    assert any(text in problem for problem in problems)


def test_a_stop_is_heard_while_the_output_hangs(chosen: Settings, hangs: Hangs) -> None:
    class Output(NoPoints):
        def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
            hangs()
            return ()

    assert_stops(chosen, Output(), hangs)


def test_a_stop_is_heard_while_libvirt_hangs(
    chosen: Settings, hangs: Hangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libvirt.open", hangs)
    assert_stops(chosen, NoPoints(), hangs)


@pytest.mark.parametrize("call", ["identified", "allow_snapshots"])
def test_a_stop_is_heard_while_the_cluster_hangs(
    call: str, chosen: Settings, cluster: Cluster, hangs: Hangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "GRACE", 0.2)
    monkeypatch.setattr(cluster, call, hangs)
    assert_stops(chosen, NoPoints(), hangs)


def test_a_stop_is_heard_while_an_agent_hangs_once_its_timeout_is_reset(
    chosen: Settings, hangs: Hangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Hypervisor.domains

    def with_agent(self: Hypervisor, check_stop: CheckStop) -> list[Domain]:
        return [Domain(one.uuid, one.name, one.state, one.disks, True, uri=one.uri) for one in listed(self)]

    unset = threading.Event()

    def probe(self: Hypervisor, domain: Domain, timeout: int) -> None:
        hangs.entered.set()
        time.sleep(1)  # within the grace
        unset.set()

    monkeypatch.setattr(Hypervisor, "domains", with_agent)
    monkeypatch.setattr(Hypervisor, "probe_agent", probe)
    assert_stops(chosen, NoPoints(), hangs)
    assert unset.is_set()


def test_what_grows_is_a_warning_and_no_problem(chosen: Settings, cluster: Cluster) -> None:
    cluster.snapshots["vms/detached"] = {f"virt-rbd-backup.kept.{UUID}.{RUN}"}
    cluster.snapshots["vms/of-nobody"] = {f"virt-rbd-backup.{OTHER_UUID}.{RUN}", "foreign"}
    cluster.snapshots["vms/a"] = {f"virt-rbd-backup.kept.{UUID}.{RUN}"}
    found = [one for one in examine(chosen, NoPoints()) if one.warning]
    assert [one.problem for one in found] == [None] * 3
    for image, one in zip(("a", "detached", "of-nobody"), sorted(found, key=lambda one: one.subject)):
        assert one.subject.startswith(f"image vms/{image}: ")
        assert " grows: " in one.subject


def test_a_repository_that_does_not_answer_makes_nothing_look_unclaimed(
    chosen: Settings, cluster: Cluster
) -> None:
    class Silent(NoPoints):
        def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
            raise BackupError("no route to host")

    cluster.snapshots["vms/of-nobody"] = {f"virt-rbd-backup.kept.{OTHER_UUID}.{RUN}"}
    (found,) = [one for one in examine(chosen, Silent()) if one.warning]
    assert found.subject.endswith("as the restore points cannot be listed: no route to host")


def test_what_an_instant_drill_lacks_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(directory: Path) -> str:
        return check._instant_drill(settings(drill_dir=str(directory))).subject

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    fuse = [True]
    exists = os.path.exists
    monkeypatch.setattr("os.path.exists", lambda path: fuse[0] if path == "/dev/fuse" else exists(path))
    long = tmp_path / ("x" * 75)
    long.mkdir()
    assert found(tmp_path) == "drill --instant is possible: qemu-img, fusermount3 and DRILL_DIR are there"
    assert found(tmp_path / "a").endswith(f"DRILL_DIR {tmp_path}/a does not exist")
    assert found(long).endswith("is longer than 74 bytes")
    fuse[0] = False
    assert found(tmp_path).endswith("the device /dev/fuse is missing: modprobe fuse")
    fuse[0] = True
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert found(tmp_path).endswith("it needs root")
