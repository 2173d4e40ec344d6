"""backup/hypervisor/guest_agent.py: what the agent's answers, and libvirt's errors in their place, mean."""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import Event
from typing import Any

import libvirt
import pytest

from backup.errors import AlreadyFrozen, Interrupted
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.guest_agent import GuestAgent
from backup.hypervisor.guest_mounts import PartialFreeze
from backup.system.stop_request import StopRequest
from backup.system.time_limit import Bounded

from ..raising import raises

TOO_MANY = "Too many mountpoints in fsinfo: 300 for limit 256"


def failure(code: int, message: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(message)
    error.err = (code, 0, message, 2, None, None, None, -1, -1)
    return error


class Handle:
    """A virDomain whose calls return, or raise, what a test gives; its agent answers `status` if asked."""

    def __init__(self, status: str = "", **answers: Any) -> None:
        self.status = status
        self.answers: Mapping[str, Any] = answers
        self.asked: list[str] = []
        self.limit = libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK  # of all clients' calls

    def fsInfo(self) -> Any:  # noqa: N802
        return self._answer("fsInfo")

    def guestInfo(self, kind: int, _flags: int) -> Any:  # noqa: N802
        """Answer for disks (32) and file systems (16) in turn."""
        answer = self.answers["guestInfo"][{32: 0, 16: 1}[kind]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def getTime(self) -> Any:  # noqa: N802
        return self._answer("getTime")

    def agentSetResponseTimeout(self, timeout: int) -> None:  # noqa: N802
        self.limit = timeout

    def _answer(self, name: str) -> Any:
        self.asked.append(name)
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


@pytest.fixture(autouse=True)
def raw_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(handle: Handle, *_: object) -> str:
        handle.asked.append("status")
        return f'{{"return": "{handle.status}"}}'

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", command)


def probe(handle: Handle, limit: int = 5) -> PartialFreeze | None:
    return GuestAgent(Bounded(handle, limit), limit, 0).probe()


def test_an_agent_that_lists_its_mounts_answers() -> None:
    handle = Handle(fsInfo=[("/", "vda1", "ext4", ["vda"])])
    probe(handle)
    assert handle.asked == ["fsInfo"]


def test_an_agent_is_asked_for_what_a_device_without_disks_of_the_domain_is_made_of() -> None:
    mounts = [("/", "vda1", "ext4", ["vda"]), ("/safe", "dm-0", "ext4", [])]
    too_old = failure(libvirt.VIR_ERR_INTERNAL_ERROR, "guest-get-disks")
    on_disk = {"fs.count": 1, "fs.0.mountpoint": "/safe", "fs.0.disk.count": 1}
    handle = Handle(fsInfo=mounts, guestInfo=[too_old, on_disk])
    assert probe(handle) is None
    loop: dict[str, Any] = {"disk.count": 1, "disk.0.name": "/dev/dm-0", "disk.0.dependency.count": 1}
    loop["disk.0.dependency.0.name"] = "/dev/loop0"
    handle = Handle(fsInfo=mounts, guestInfo=[loop, {}])
    assert probe(handle) == PartialFreeze(("/",), ("/safe",))
    handle = Handle(fsInfo=mounts, guestInfo=[too_old, too_old])
    assert probe(handle) == PartialFreeze(("/",), (), ("/safe",))


def test_more_mounts_than_libvirt_passes_on_are_an_answer_and_taint_no_domain() -> None:
    handle = Handle(fsInfo=failure(libvirt.VIR_ERR_RPC, TOO_MANY), getTime={"seconds": 1})
    probe(handle)
    assert handle.asked == ["fsInfo", "getTime"]


def test_a_broken_connection_to_a_frozen_guest_is_still_found_out() -> None:
    refused = failure(libvirt.VIR_ERR_INTERNAL_ERROR, "guest-get-time has been disabled")
    handle = Handle("frozen", fsInfo=failure(libvirt.VIR_ERR_RPC, "broken pipe"), getTime=refused)
    with raises("another program has already frozen the guest", AlreadyFrozen):
        probe(handle)


def test_a_frozen_guest_is_asked_for_its_state_at_once() -> None:
    refused = failure(libvirt.VIR_ERR_INTERNAL_ERROR, "guest-get-fsinfo has been disabled")
    handle = Handle("frozen", fsInfo=refused)
    with raises("another program has already frozen the guest", AlreadyFrozen):
        probe(handle)
    assert handle.asked == ["fsInfo", "status"]


def test_a_libvirt_that_hangs_is_not_asked_for_the_time_too() -> None:
    handle = Handle("thawed", fsInfo=lambda: time.sleep(2))
    probe(handle, limit=1)
    assert handle.asked == ["fsInfo", "status"]


def test_an_agent_that_does_not_answer_is_an_error() -> None:
    handle = Handle(fsInfo=failure(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "not responding"))
    with pytest.raises(HypervisorError, match=r"^the guest agent does not answer: not responding$"):
        probe(handle)
    assert handle.asked == ["fsInfo"]


@pytest.mark.parametrize("hangs", ["fsInfo", "getTime", "status"])
def test_a_request_to_stop_ends_a_probe_at_once_and_resets_the_agent_s_limit(
    hangs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, over = StopRequest(), Event()

    def hang(*_: object) -> str:
        stop.request(Interrupted("stopped by SIGTERM", 15))
        over.wait(30)
        return '{"return": "thawed"}'

    refused = failure(libvirt.VIR_ERR_RPC if hangs == "getTime" else libvirt.VIR_ERR_INTERNAL_ERROR, TOO_MANY)
    handle = Handle(fsInfo=hang if hangs == "fsInfo" else refused, getTime=hang)
    if hangs == "status":
        monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", hang)
    began = time.monotonic()
    try:
        with raises("stopped by SIGTERM", Interrupted):
            GuestAgent(Bounded(handle, 20), 20, 0, stop.check).probe()
    finally:
        over.set()
    assert time.monotonic() - began < 5
    assert handle.limit == libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK
