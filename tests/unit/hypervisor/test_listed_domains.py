"""backup/hypervisor/connection.py: listing domains, with libvirt's own test driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import libvirt
import pytest

from backup.errors import DomainGone, Interrupted
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.described_domain import all_disks
from backup.hypervisor.domain_state import has_job, migrates_away, state_of
from backup.hypervisor.errors import HypervisorError
from backup.model import ClusterAddress, Domain, Gap, Image, Override, State
from backup.system.stop_request import StopRequest
from backup.system.time_limit import Bounded

from ..disk_elements import AUTH, PLACES, POOLS, SECRET_UUID, backing, domain_of, other, rbd
from ..driver_node import SHUT_OFF, domain_element, node_uri
from ..raising import raises
from ..samples import OTHER_UUID, UUID, domain

STATES = {
    "blocked": ("<test:runstate>2</test:runstate>", State.RUNNING),
    "crashed": ("<test:runstate>6</test:runstate>", State.CRASHED),
    "off": (SHUT_OFF, State.SHUT_OFF),
    "paused": ("<test:runstate>3</test:runstate>", State.PAUSED),
    "running": ("", State.RUNNING),
    "saved": (SHUT_OFF + "<test:hasmanagedsave/>", State.SAVED),
    "suspended": ("<test:runstate>7</test:runstate>", State.SUSPENDED),
}
WITH_SECRET = ClusterAddress(user="libvirt", secret_uuid=SECRET_UUID)
BACKUP = "<backup xmlns='virt-rbd-backup' {}/>"


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Assert that libvirt itself does not write to standard error."""
    yield
    assert capfd.readouterr().err == ""


def listed(directory: Path, *elements: str) -> list[Domain]:
    """List the domains of a node."""
    with Hypervisor(node_uri(directory / "node.xml", *elements)) as hypervisor:
        return [*hypervisor.domains()]


def test_all_domains_are_listed_by_name_with_the_uri_of_their_libvirt(tmp_path: Path) -> None:
    archive, web = listed(
        tmp_path,
        domain_element("web", UUID, rbd("vms/größe &amp; more", AUTH)),
        domain_element("archive", OTHER_UUID, state=SHUT_OFF),
    )
    uri = f"test://{tmp_path}/node.xml"
    assert archive == Domain(OTHER_UUID, "archive", State.SHUT_OFF, (), uri=uri)
    assert (web.name, web.uuid, web.uri, web.agent_connected) == ("web", UUID, uri, False)
    (root,) = web.disks
    assert root.image == Image("vms", "größe & more")
    assert root.address == ClusterAddress(user="libvirt", secret_uuid=SECRET_UUID)
    assert (web.override, web.problem) == (Override(), None)


def test_each_state_is_recognized(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        *(
            domain_element(name, UUID[:-2] + f"{number:02}", state=element)
            for number, (name, (element, _)) in enumerate(STATES.items())
        ),
    )
    assert {one.name: one.state for one in found} == {name: state for name, (_, state) in STATES.items()}


def test_pools_are_looked_up_in_libvirt_and_devices_on_the_node(tmp_path: Path) -> None:
    devices = (
        other("volume", "<source pool='ceph volumes' volume='root'/>"),
        other("volume", "<source pool='gone' volume='root'/>").replace("'vda'", "'vdb'"),
        other("block", "<source dev='/dev/rbd/nowhere/tenant/root'/>").replace("'vda'", "'vdc'"),
        other("block", "<source dev='/dev/rbd999999'/>").replace("'vda'", "'vdd'"),
    )
    (web,) = listed(tmp_path, POOLS["ceph volumes"], domain_element(devices="".join(devices)))
    volume, unknown, link, unmapped = web.disks
    assert (volume.image, volume.address.user) == (Image("vms", "root"), "libvirt")
    assert unknown.gap is Gap.BROKEN
    assert unknown.skipped.startswith("cannot look up libvirt's storage pool gone: ")
    assert link.image == Image("nowhere", "root", "tenant")
    assert unmapped.skipped == "cannot find out which image is mapped as /dev/rbd999999"


DRIVE = "<disk type='{}' device='cdrom'>{}<target dev='sda' bus='sata'/></disk>"


@pytest.mark.parametrize(
    ("now", "next_start", "expected"),
    [
        (DRIVE.format("file", ""), rbd("vms/config", device="cdrom", target="sda"), ["vms/config"]),
        (
            DRIVE.format("file", "<source file='/x.iso'/>"),
            rbd("vms/config", device="cdrom", target="sda"),
            ["/x.iso", "vms/config"],
        ),
        (rbd("vms/config", device="cdrom", target="sda"), DRIVE.format("file", ""), ["vms/config"]),
        (DRIVE.format("file", ""), DRIVE.format("file", "<source file='/x.iso'/>"), [""]),
    ],
)
def test_the_image_that_the_next_start_puts_into_an_empty_drive_counts(
    now: str, next_start: str, expected: list[str]
) -> None:
    inactive, live = (f"<domain><devices>{one}</devices></domain>" for one in (next_start, now))
    found = all_disks(live, inactive, PLACES)
    assert [disk.source for disk in found] == expected


def test_nothing_has_a_disk_open_that_only_the_next_start_adds() -> None:
    live, inactive = (
        f"<domain><devices>{one}</devices></domain>"
        for one in (rbd("vms/now"), rbd("vms/now") + rbd("vms/later", target="vdb"))
    )
    found = all_disks(live, inactive, PLACES)
    assert [(one.client, one.written) for one in found] == [("vda", True), ("", False)]
    assert [one.client for one in all_disks(inactive, inactive, PLACES)] == ["vda", "vdb"]


FILE = "<disk type='file'><source file='{}'/><target dev='vdb'/></disk>"
NEXT_START = {
    "another image": (rbd("vms/a", target="vdb"), rbd("vms/b", target="vdb"), [("vdb.next", "vms/b")]),
    "an image for a file": (FILE.format("/a"), rbd("vms/b", target="vdb"), [("vdb.next", "vms/b")]),
    "a file for an image": (rbd("vms/a", target="vdb"), FILE.format("/b"), [("vdb.next", "")]),
    "another file": (FILE.format("/a"), FILE.format("/b"), [("vdb.next", "")]),
    "an image of a pool": (
        rbd("vms/a"),
        other("volume", "<source pool='bare' volume='b'/>"),
        [("vda.next", "ssd/b")],
    ),
    "another cluster": (
        rbd("vms/a"),
        rbd("vms/a", "<host name='elsewhere' port='6789'/>"),
        [("vda.next", "vms/a")],
    ),
    "a changed order": (
        rbd("vms/a") + rbd("vms/b", target="vdb"),
        rbd("vms/b") + rbd("vms/a", target="vdb"),
        [],
    ),
    "the layer below": (
        rbd("vms/overlay", beside=backing("network", "<source protocol='rbd' name='vms/base'/>")),
        rbd("vms/base"),
        [],
    ),
    "another layer below": (
        rbd("vms/overlay", beside=backing("network", "<source protocol='rbd' name='vms/base'/>")),
        rbd("vms/overlay", beside=backing("network", "<source protocol='rbd' name='vms/old'/>")),
        [("vda.backing1.next", "vms/old")],
    ),
    "another directory": (
        "<filesystem><source dir='/a'/><target dir='data'/></filesystem>",
        "<filesystem><source dir='/b'/><target dir='data'/></filesystem>",
        [("filesystem:data.next", "")],
    ),
    "a medium in a file": (
        rbd("vms/config", device="cdrom"),
        other("file", "<source file='/x.iso'/>", device="cdrom"),
        [],
    ),
    "the same": (rbd("vms/a"), rbd("vms/a"), []),
}


@pytest.mark.parametrize("change", NEXT_START)
def test_what_the_next_start_puts_in_the_place_of_a_disk_is_a_disk_of_its_own(change: str) -> None:
    now, later, expected = NEXT_START[change]
    live, inactive = domain_of(now), domain_of(later)
    found = all_disks(live, inactive, PLACES)
    before = all_disks(live, live, PLACES)
    assert found[: len(before)] == before
    rest = found[len(before) :]
    assert [(disk.target, str(disk.image or "")) for disk in rest] == expected
    assert all(disk.image or disk.gap is Gap.FOREIGN for disk in rest)


def test_nvram_of_the_next_start_is_saved_too() -> None:
    live, inactive = (
        f"<domain><os><nvram type='network'><source protocol='rbd' name='vms/{name}'/></nvram></os></domain>"
        for name in "ab"
    )
    assert [(one.target, str(one)) for one in all_disks(live, inactive, PLACES)] == [
        ("nvram", "nvram (vms/a)"),
        ("nvram.next", "nvram.next (vms/b)"),
    ]


def test_persistent_metadata_takes_precedence_over_that_of_the_live_definition(
    tmp_path: Path,
) -> None:
    uri = node_uri(tmp_path / "node.xml", domain_element())
    with Hypervisor(uri) as hypervisor:
        handle = hypervisor.handle(UUID)
        steps = (
            (libvirt.VIR_DOMAIN_AFFECT_LIVE, "<backup enabled='no'/>", Override(enabled=False)),
            (libvirt.VIR_DOMAIN_AFFECT_CONFIG, "<backup freeze='never'/>", Override(freeze="never")),
            (libvirt.VIR_DOMAIN_AFFECT_CONFIG, None, Override(enabled=False)),
            (libvirt.VIR_DOMAIN_AFFECT_LIVE, None, Override()),
        )
        for affected, element, expected in steps:
            handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, "b", "virt-rbd-backup", affected)
            assert hypervisor.domain(UUID).override == expected


def test_invalid_metadata_is_a_problem_of_its_domain_only(tmp_path: Path) -> None:
    db, web = listed(
        tmp_path,
        domain_element("web", UUID, rbd(), metadata=BACKUP.format("enabled='perhaps'")),
        domain_element("db", OTHER_UUID, metadata=BACKUP.format("enabled='yes'"), state=SHUT_OFF),
    )
    assert web.problem is not None
    assert web.problem.message == "invalid <backup> in the domain's metadata: enabled='perhaps'"
    assert (web.override, web.state, len(web.disks)) == (Override(), State.RUNNING, 1)
    assert (db.override, db.problem) == (Override(enabled=True), None)


class WithOddDomains(Hypervisor):
    """After the listing, one of its domains vanishes and another cannot be read."""

    def _described(self, handle: Any) -> Domain:
        if handle.name() == "gone":
            raise DomainGone("the domain is no longer defined")
        if handle.name() == "unreadable":
            raise HypervisorError("cannot read the domain's definition: out of memory")
        return super()._described(handle)


def test_a_domain_that_vanishes_or_cannot_be_read_does_not_affect_others(tmp_path: Path) -> None:
    numbered = enumerate(("gone", "unreadable", "web"))
    elements = [domain_element(name, UUID[:-2] + f"{number:02}") for number, name in numbered]
    with WithOddDomains(node_uri(tmp_path / "node.xml", *elements)) as hypervisor:
        unreadable, web = hypervisor.domains()
    assert (web.name, web.problem) == ("web", None)
    assert unreadable == Domain(UUID[:-2] + "01", "unreadable", State.BUSY, (), uri=hypervisor.uri)
    assert unreadable.problem is not None
    assert unreadable.problem.message == "cannot read the domain's definition: out of memory"


class Hangs:
    """A connection that hangs after all domains were listed; `version`: it still returns its version."""

    has_volumes = False  # a domain with a volume of a pool: only the pool's lookup hangs

    def __init__(self, bare: Any, version: bool) -> None:
        self.bare = bare
        self.version = version
        self.go_on = threading.Event()
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)

    def listAllDomains(self, flags: int) -> Any:  # noqa: N802
        return [Handle(one, self) for one in self.bare.listAllDomains(flags)]

    def storagePoolLookupByName(self, _name: str) -> int:  # noqa: N802
        return self.hang()

    def getLibVersion(self) -> int:  # noqa: N802
        return 9 if self.version else self.hang()

    def hang(self) -> int:
        self.asked += 1
        self.go_on.wait(20)
        return 0


class Handle:
    """A domain of a libvirt that hangs: only its name and UUID are known."""

    def __init__(self, bare: Any, connection: Hangs) -> None:
        self.bare, self.connection = bare, connection
        self.has_volumes = connection.has_volumes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)

    def XMLDesc(self, flags: int) -> Any:  # noqa: N802
        return self.bare.XMLDesc(flags) if self.has_volumes else self.connection.hang()


VOLUMES = "".join(
    other("volume", "<source pool='ceph' volume='root'/>").replace("'vda'", f"'vd{letter}'")
    for letter in "abcdefgh"
)
MANY = [domain_element(f"web{number}", UUID[:-2] + f"{number:02}", VOLUMES) for number in range(20)]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[float, bool], Hypervisor]]:
    """Connect to a libvirt that hangs while listing."""
    with ExitStack() as stack:

        def connected(limit: float, version: bool) -> Hypervisor:
            seconds: int = limit  # type: ignore[assignment]  # below a second, for the test's sake
            hypervisor = stack.enter_context(Hypervisor(node_uri(tmp_path / "node.xml", *MANY), seconds))
            hangs = Hangs(hypervisor._open.bare, version)
            stack.callback(hangs.go_on.set)
            hypervisor._open = Bounded(hangs, seconds)
            return hypervisor

        yield connected


def test_a_libvirt_that_hangs_while_listing_costs_one_timeout_not_one_per_domain(
    connect: Callable[[float, bool], Hypervisor],
) -> None:
    hypervisor = connect(1.0, False)
    with pytest.raises(HypervisorError) as caught:
        hypervisor.domains()
    assert caught.value.message == f"libvirt at {hypervisor.uri} no longer answers: no answer within 1 s"
    assert "libvirt may hang" in caught.value.hint
    assert hypervisor._open.bare.asked == 2, "for one domain, and for the version"


def test_pool_lookups_that_hang_cost_one_timeout_too(
    connect: Callable[[float, bool], Hypervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hangs, "has_volumes", True)
    hypervisor = connect(1.0, False)
    with pytest.raises(HypervisorError) as caught:
        hypervisor.domains()
    assert caught.value.message == f"libvirt at {hypervisor.uri} no longer answers: no answer within 1 s"
    assert hypervisor._open.bare.asked == 2


def test_a_single_domain_that_hangs_is_the_failure_of_that_domain(
    connect: Callable[[float, bool], Hypervisor],
) -> None:
    listed = connect(1.0, True).domains()
    assert len(listed) == len(MANY)
    assert {str(one.problem and one.problem.message) for one in listed} == {
        "cannot read the domain's definition: no answer within 1 s"
    }


def test_a_stop_takes_effect_while_libvirt_hangs_during_a_listing(
    connect: Callable[[float, bool], Hypervisor],
) -> None:
    stop = StopRequest()
    threading.Timer(0.2, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        connect(60, True).domains(stop.check)
    assert time.monotonic() < began + 5


@pytest.mark.parametrize(
    "call",
    [
        lambda hypervisor, check_stop: hypervisor.domain(UUID, check_stop),
        lambda hypervisor, check_stop: hypervisor.definition(domain(), check_stop),
        lambda hypervisor, check_stop: hypervisor.secret(WITH_SECRET, check_stop),
    ],
    ids=["domain", "definition", "secret"],
)
def test_a_stop_takes_effect_while_libvirt_hangs_before_the_guest_is_touched(
    call: Callable[[Hypervisor, Callable[[], None]], object],
    connect: Callable[[float, bool], Hypervisor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("lookupByUUIDString", "secretLookupByUUIDString"):
        monkeypatch.setattr(Hangs, name, lambda self, _: self.hang(), raising=False)
    stop = StopRequest()
    threading.Timer(0.2, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        call(connect(60, True), stop.check)
    assert time.monotonic() < began + 5


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, 0, State.RUNNING),
        (libvirt.VIR_DOMAIN_BLOCKED, 0, State.RUNNING),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER, State.PAUSED),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR, State.PAUSED),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION, State.BUSY),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, State.BUSY),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, State.BUSY),
        (libvirt.VIR_DOMAIN_SHUTDOWN, 0, State.BUSY),
        (libvirt.VIR_DOMAIN_SHUTOFF, 0, State.SHUT_OFF),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED, State.ELSEWHERE),
        (libvirt.VIR_DOMAIN_CRASHED, 0, State.CRASHED),
        (libvirt.VIR_DOMAIN_PMSUSPENDED, 0, State.SUSPENDED),
        (99, 0, State.BUSY),
    ],
)
def test_a_domain_that_migrates_or_starts_is_busy(state: int, reason: int, expected: State) -> None:
    handle = SimpleNamespace(state=lambda: (state, reason), hasManagedSaveImage=lambda: False)
    assert state_of(handle) is expected


@pytest.mark.parametrize(
    ("code", "busy"),
    [
        (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, True),
        (libvirt.VIR_ERR_OPERATION_INVALID, False),
        (libvirt.VIR_ERR_NO_SUPPORT, False),
    ],
    ids=["migrates to this node", "shut off", "test driver"],
)
def test_a_domain_whose_job_libvirt_cannot_describe_is_busy_where_it_migrates_to(
    code: int, busy: bool
) -> None:
    error = libvirt.libvirtError("migration statistics are available only on the source host")
    error.err = (code, 0, "", 2, "", "", "", -1, -1)

    def refused() -> None:
        raise error

    handle = SimpleNamespace(jobInfo=refused, jobStats=refused)
    assert has_job(handle) is busy
    if busy:
        assert not migrates_away(handle)
