"""backup/hypervisor/connections.py: several libvirts, some of which may not answer."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import libvirt
import pytest

from backup.errors import BackupError, Interrupted
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.connections import Hypervisors, located
from backup.hypervisor.errors import HypervisorError
from backup.model import Domain
from backup.system.stop_request import StopRequest

from ..driver_node import domain_element, node_uri
from ..raising import raises
from ..samples import OTHER_UUID, UUID
from ..waiting import wait_until


@pytest.fixture
def uris(tmp_path: Path) -> tuple[str, str]:
    """Two libvirts: the first defines web and zoo, the second web."""
    web = domain_element("web", UUID)
    return (
        node_uri(tmp_path / "first.xml", domain_element("zoo", OTHER_UUID), web),
        node_uri(tmp_path / "second.xml", web),
    )


def nowhere(directory: Path, name: str = "nowhere") -> str:
    return f"test://{directory}/{name}.xml"


def known(domains: list[Domain]) -> list[tuple[str, str]]:
    return [(one.name, Path(one.uri).stem) for one in domains]


def test_the_domains_of_all_are_listed_in_the_order_of_the_libvirts(uris: tuple[str, str]) -> None:
    with Hypervisors(uris) as hypervisors:
        assert [one.uri for one in hypervisors] == [*uris]
        assert known([*hypervisors.domains()]) == [("web", "first"), ("zoo", "first"), ("web", "second")]
        assert hypervisors.unreachable == []
    with Hypervisors(uris[::-1]) as hypervisors:
        assert known([*hypervisors.domains()])[0] == ("web", "second")


def test_all_connections_are_closed_at_the_end(uris: tuple[str, str]) -> None:
    with Hypervisors(uris) as hypervisors:
        handles = [one._open for one in hypervisors]
        assert all(handle.isAlive() for handle in handles)
    for handle in handles:
        with pytest.raises(Exception, match="connection"):
            handle.getHostname()


def test_an_unreachable_libvirt_is_recorded_and_the_others_are_used(
    uris: tuple[str, str], tmp_path: Path
) -> None:
    with Hypervisors([nowhere(tmp_path), *uris]) as hypervisors:
        (error,) = hypervisors.unreachable
        assert error.message.startswith(f"cannot connect to libvirt at {nowhere(tmp_path)}: ")
        assert len(hypervisors.domains()) == 3
        assert hypervisors.unreachable == [error]


def test_if_no_libvirt_can_be_reached_the_error_of_the_first_is_raised(tmp_path: Path) -> None:
    with pytest.raises(BackupError) as caught:
        Hypervisors([nowhere(tmp_path), nowhere(tmp_path, "neither")])
    assert caught.value.message.startswith(f"cannot connect to libvirt at {nowhere(tmp_path)}: ")


def refuse_to_list(monkeypatch: pytest.MonkeyPatch, *uris: str) -> None:
    """Make these libvirts fail when they list their domains."""
    domains = Hypervisor.domains

    def refused(self: Hypervisor, check_stop: object) -> object:
        if self.uri in uris:
            raise HypervisorError(f"cannot list the domains: connection to {self.uri} lost")
        return domains(self, check_stop)  # type: ignore[arg-type]

    monkeypatch.setattr(Hypervisor, "domains", refused)


def test_a_libvirt_that_fails_while_listing_is_recorded_and_not_used_again(
    uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_list(monkeypatch, uris[0])
    with Hypervisors(uris) as hypervisors:
        assert known([*hypervisors.domains()]) == [("web", "second")]
        assert [one.uri for one in hypervisors] == [uris[1]]
        assert [error.message for error in hypervisors.unreachable] == [
            f"cannot list the domains: connection to {uris[0]} lost"
        ]


def test_if_all_libvirts_fail_while_listing_an_error_is_raised(
    uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_list(monkeypatch, *uris)
    with Hypervisors(uris) as hypervisors, pytest.raises(BackupError, match=f"connection to {uris[0]} lost"):
        hypervisors.domains()


def test_a_stop_ends_connecting(uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, stop = threading.Event(), StopRequest()
    opened = libvirt.open
    monkeypatch.setattr(libvirt, "open", lambda uri: go_on.wait(20) and opened(uri))
    threading.Timer(0.2, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        Hypervisors(uris, 60, stop.check)
    assert time.monotonic() < began + 5
    go_on.set()


def test_a_stop_while_domains_are_listed_is_not_an_error_of_a_libvirt(
    uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    with Hypervisors(uris, 60, stop.check) as hypervisors:
        stop.request(Interrupted("interrupted", 15))
        with raises("interrupted", Interrupted):
            hypervisors.domains()
        assert (len(list(hypervisors)), hypervisors.unreachable) == (2, [])


def test_a_connection_is_not_closed_under_a_call_that_was_abandoned(
    uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call would use freed memory. The last one to refer to the connection closes it."""
    go_on, stop = threading.Event(), StopRequest()
    listed = libvirt.virConnect.listAllDomains
    monkeypatch.setattr(
        libvirt.virConnect, "listAllDomains", lambda *arguments: go_on.wait(20) and listed(*arguments)
    )
    with Hypervisors(uris, 60, stop.check) as hypervisors:
        used, unused = [one._open for one in hypervisors]
        stop.request(Interrupted("interrupted", 15))
        with raises("interrupted", Interrupted):
            hypervisors.domains()
    assert used.isAlive()
    with pytest.raises(Exception, match="connection"):
        unused.isAlive()
    connection = weakref.ref(used.bare)
    del used, unused, hypervisors, stop  # its error refers to where it was raised
    gc.collect()
    assert connection(), "the call refers to it"
    go_on.set()
    wait_until(lambda: connection() is None, 10, "the end of the call closes it")


def test_a_stop_ends_the_search_for_a_domain(uris: tuple[str, str]) -> None:
    stop = StopRequest()
    stop.request(Interrupted("interrupted", 15))
    with raises("interrupted", Interrupted), located(UUID, uris, 60, stop.check):
        raise AssertionError("the block must not begin")
