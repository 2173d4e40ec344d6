"""backup/hypervisor/guest_agent.py: what the agent's answers, and libvirt's errors in their place, mean."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any

import libvirt
import pytest

from backup.errors import AlreadyFrozen, CannotFreeze, Interrupted
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.guest_agent import GuestAgent
from backup.hypervisor.guest_mounts import PartialFreeze
from backup.system.stop_request import StopRequest
from backup.system.time_limit import Bounded

from ..raising import raises

STATUS = "guest-fsfreeze-status"
TOO_MANY = "Too many mountpoints in fsinfo: 300 for limit 256"


def failure(code: int, message: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(message)
    error.err = (code, 0, message, 2, None, None, None, -1, -1)
    return error


class Handle:
    """A virDomain whose calls return, or raise, what a test gives; its agent has `status` and `mounts`."""

    def __init__(
        self, status: str = "", mounts: Sequence[Mapping[str, Any]] | None = None, **answers: Any
    ) -> None:
        self.status = status
        self.mounts = mounts
        self.answers: Mapping[str, Any] = answers
        self.asked: list[str] = []
        self.limit = libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK  # of all clients' calls

    def fsInfo(self) -> Any:  # noqa: N802
        return self._answer("fsInfo")

    def guestInfo(self, kind: int, _flags: int) -> Any:  # noqa: N802
        """Answer for disks (32) and file systems (16) in turn."""
        answer = self.answers["guestInfo"]
        return self._given(answer[{32: 0, 16: 1}[kind]] if isinstance(answer, list) else answer)

    def agentSetResponseTimeout(self, timeout: int) -> None:  # noqa: N802
        self.limit = timeout

    def _answer(self, name: str) -> Any:
        self.asked.append(name)
        return self._given(self.answers[name])

    def _given(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


@pytest.fixture(autouse=True)
def raw_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(handle: Handle, text: str, *_: object) -> str:
        name = json.loads(text)["execute"]
        handle.asked.append(name)
        if name == STATUS:
            return json.dumps({"return": handle.status})
        if name == "guest-fsfreeze-freeze-list":
            return json.dumps({"return": len(json.loads(text)["arguments"]["mountpoints"])})
        if name == "guest-ping" and handle.status:
            return json.dumps({"return": {}})
        if handle.mounts is None:
            raise failure(libvirt.VIR_ERR_INTERNAL_ERROR, "unable to execute QEMU agent command")
        return json.dumps({"return": handle.mounts})

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


TOO_OLD = failure(libvirt.VIR_ERR_INTERNAL_ERROR, "guest-get-disks")
BROKEN = failure(libvirt.VIR_ERR_INTERNAL_ERROR, "guest-get-fsinfo: stale file handle")
REFUSED = failure(libvirt.VIR_ERR_INTERNAL_ERROR, "guest-get-fsinfo has been disabled")
MANY = failure(libvirt.VIR_ERR_RPC, TOO_MANY)
ON_DISKS = {"disk.count": 1, "disk.0.name": "/dev/vda"}
WITH_LOOP = {"disk.count": 2, "disk.0.name": "/dev/vda", "disk.1.name": "/dev/loop0"}


@pytest.mark.parametrize("error", [MANY, BROKEN], ids=["too many", "cannot be listed"])
def test_mounts_that_are_not_listed_need_no_list_where_nothing_is_in_a_file_and_taint_no_domain(
    error: Exception,
) -> None:
    handle = Handle(fsInfo=error, guestInfo=[ON_DISKS, TOO_OLD])
    assert probe(handle) is None
    assert handle.asked == ["fsInfo"]


WITH_NBD = {"disk.count": 2, "disk.0.name": "/dev/vda", "disk.1.name": "/dev/nbd0"}


@pytest.mark.parametrize("disks", [WITH_LOOP, TOO_OLD], ids=["a loop device", "an old agent"])
def test_more_mounts_than_libvirt_passes_on_are_listed_by_the_agent(disks: object) -> None:
    mounts = [{"mountpoint": f"/many/{n}", "name": "vda1", "type": "ext4", "disk": [{}]} for n in range(299)]
    mounts.insert(9, {"mountpoint": "/tmp", "name": "loop0", "type": "ext4", "disk": []})
    handle = Handle("thawed", mounts, fsInfo=MANY, guestInfo=[disks, TOO_OLD])
    found = probe(handle)
    assert found
    assert (len(found.freeze), found.leave) == (299, ("/tmp",))
    assert handle.asked == ["fsInfo", STATUS, "guest-get-fsinfo"]
    assert GuestAgent(Bounded(handle, 5), 5, 0).freeze(found.freeze) == 299


def test_a_list_that_the_agent_cannot_make_costs_the_freeze_where_something_may_be_in_a_file() -> None:
    handle = Handle("thawed", fsInfo=BROKEN, guestInfo=[WITH_LOOP, TOO_OLD])
    with raises("its file systems cannot be listed, and loop0 may hold one in a file", CannotFreeze):
        probe(handle)


def test_a_device_of_any_kind_that_may_be_in_a_file_costs_it_too() -> None:
    handle = Handle("thawed", fsInfo=BROKEN, guestInfo=[WITH_NBD, TOO_OLD])
    with raises("its file systems cannot be listed, and nbd0 may hold one in a file", CannotFreeze):
        probe(handle)


MOUNT = {"mountpoint": "/", "name": "vda1", "type": "ext4", "disk": [{"dev": "/dev/vda1"}]}
ODD_ANSWERS: Mapping[str, Any] = {
    **{f"no {key}": [{name: value for name, value in MOUNT.items() if name != key}] for key in MOUNT},
    "no object": [["/", "vda1"]],
    "no list": {"mountpoint": "/"},
    "nothing": None,
    "a number": 7,
    "a mountpoint that is a number": [{**MOUNT, "mountpoint": 7}],
    "a device that is nothing": [{**MOUNT, "name": None}],
    "disks that are nothing": [{**MOUNT, "disk": None}],
    "disks that are texts": [{**MOUNT, "disk": ["vda"]}],
    "a disk that is a list": [{**MOUNT, "disk": [{"dev": ["vda"]}]}],
    "half a character": [{**MOUNT, "mountpoint": "/\ud800"}],
}


@pytest.mark.parametrize("case", ODD_ANSWERS)
def test_an_answer_that_no_agent_gives_is_as_good_as_none(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its list of devices nothing is known to be in a file; with one, the guest is not frozen."""
    answers = {STATUS: "thawed", "guest-get-fsinfo": ODD_ANSWERS[case], "guest-ping": {}}

    def command(_: Handle, text: str, *rest: object) -> str:
        return json.dumps({"return": answers[json.loads(text)["execute"]]})

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", command)
    assert probe(Handle(fsInfo=MANY, guestInfo=TOO_OLD)) is None
    with raises("its file systems cannot be listed, and loop0 may hold one in a file", CannotFreeze):
        probe(Handle(fsInfo=MANY, guestInfo=[WITH_LOOP, TOO_OLD]))


@pytest.mark.parametrize(
    "answer",
    ["", "nonsense", "[]", "{}", "7", "null", '{"error": 1}', "[" * 100000],
    ids=lambda text: text[:9],
)
def test_no_answer_of_an_agent_ends_in_a_traceback(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", lambda *_: answer)
    message = r"^the guest agent answers, but its answer to guest-ping cannot be understood "
    with pytest.raises(HypervisorError, match=message):
        probe(Handle(fsInfo=BROKEN, guestInfo=TOO_OLD))
    agent = GuestAgent(Bounded(Handle(), 5), 5, 0)
    with pytest.raises(HypervisorError, match="cannot be understood"):
        agent.freeze(["/many"] * 300)


@pytest.mark.parametrize("answer", ['{"frozen": "all"}', "1e999", "NaN"])
def test_a_number_of_frozen_file_systems_that_is_none_is_a_failed_freeze(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", lambda *_: f'{{"return": {answer}}}')
    with pytest.raises(HypervisorError, match="the number of frozen file systems cannot be understood"):
        GuestAgent(Bounded(Handle(), 5), 5, 0).freeze(["/many"] * 300)


NOT_TEXT = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    "listed",
    [NOT_TEXT, [("/", None, "ext4", [])], [("/", "vda1")], None],
    ids=["bytes", "none", "few", "null"],
)
def test_mounts_that_libvirt_cannot_convert_are_as_good_as_none(listed: Any) -> None:
    assert probe(Handle("thawed", fsInfo=listed, guestInfo=NOT_TEXT)) is None
    with raises("its file systems cannot be listed, and loop0 may hold one in a file", CannotFreeze):
        probe(Handle("thawed", fsInfo=listed, guestInfo=[WITH_LOOP, NOT_TEXT]))


def test_devices_without_a_name_make_no_mount_certain() -> None:
    mounts = [("/", "vda1", "ext4", ["vda"]), ("/safe", "dm-0", "ext4", [])]
    nameless = {"disk.count": 2, "disk.1.name": "/dev/dm-1", "disk.1.dependency.count": 1, "fs.count": 1}
    handle = Handle(fsInfo=mounts, guestInfo=[nameless, {"fs.count": 1, "fs.0.disk.count": 1}])
    assert probe(handle) == PartialFreeze(("/",), (), ("/safe",))


def test_an_agent_that_knows_neither_mounts_nor_devices_freezes_all() -> None:
    assert probe(Handle("thawed", fsInfo=BROKEN, guestInfo=TOO_OLD)) is None


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_INTERNAL_ERROR])
def test_a_connection_that_was_lost_is_no_agent_that_knows_nothing(code: int) -> None:
    closed = failure(code, "client socket is closed")
    handle = Handle(fsInfo=closed, guestInfo=closed)
    with pytest.raises(HypervisorError, match=r"^the guest agent does not answer to guest-ping: "):
        probe(handle)


@pytest.mark.parametrize("error", [REFUSED, MANY], ids=["refused", "frozen meanwhile"])
def test_a_frozen_guest_is_found_out(error: Exception) -> None:
    handle = Handle("frozen", fsInfo=error, guestInfo=REFUSED)
    with raises("another program has already frozen the guest", AlreadyFrozen):
        probe(handle)
    assert handle.asked == ["fsInfo", STATUS]


def test_a_libvirt_that_hangs_is_asked_for_nothing_else() -> None:
    handle = Handle("thawed", fsInfo=lambda: time.sleep(2))
    with pytest.raises(HypervisorError, match=r"^the guest agent does not answer"):
        probe(handle, limit=1)
    assert handle.asked == ["fsInfo"]


def test_an_agent_that_does_not_answer_is_an_error() -> None:
    handle = Handle(fsInfo=failure(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "not responding"))
    with pytest.raises(HypervisorError, match=r"^the guest agent does not answer: not responding$"):
        probe(handle)
    assert handle.asked == ["fsInfo"]


@pytest.mark.parametrize("hangs", ["fsInfo", "guestInfo", "status"])
def test_a_request_to_stop_ends_a_probe_at_once_and_resets_the_agent_s_limit(
    hangs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, over = StopRequest(), Event()

    def hang(*_: object) -> str:
        stop.request(Interrupted("stopped by SIGTERM", 15))
        over.wait(30)
        return '{"return": "thawed"}'

    handle = Handle(
        fsInfo=hang if hangs == "fsInfo" else REFUSED, guestInfo=hang if hangs == "guestInfo" else REFUSED
    )
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


def test_the_agent_s_limit_is_reset_even_where_libvirt_s_object_hears_the_request_to_stop() -> None:
    stop = StopRequest()

    class SlowHandle(Handle):
        def agentSetResponseTimeout(self, timeout: int) -> None:  # noqa: N802
            if stop.requested:
                time.sleep(0.5)
            super().agentSetResponseTimeout(timeout)

    def request() -> None:
        stop.request(Interrupted("stopped by SIGTERM", 15))
        time.sleep(1)

    handle = SlowHandle(fsInfo=request)
    with raises("stopped by SIGTERM", Interrupted):
        GuestAgent(Bounded(handle, 20, stop.check), 20, 0, stop.check).probe()
    assert handle.limit == libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK


LISTED = [("/", "vda1", "ext4", ["vda"])]


def test_the_mounts_are_those_that_libvirt_lists() -> None:
    assert GuestAgent(Bounded(Handle(fsInfo=LISTED), 5), 5, 5).mounts() == LISTED


@pytest.mark.parametrize("answer", [failure(1, TOO_MANY), [("/", "vda1", 7, ["vda"])]])
def test_an_agent_that_does_not_list_its_mounts_still_answers(answer: Any) -> None:
    handle = Handle("thawed", fsInfo=answer)
    assert GuestAgent(Bounded(handle, 5), 5, 5).mounts() is None
    assert handle.asked == ["fsInfo", "guest-ping"]


@pytest.mark.parametrize("status", ["", "thawed"])
def test_an_agent_that_is_silent_lists_nothing(status: str) -> None:
    silent = failure(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "not connected")
    with pytest.raises(HypervisorError):
        GuestAgent(Bounded(Handle(status, fsInfo=silent), 5), 5, 5).mounts()
    with pytest.raises(HypervisorError):
        GuestAgent(Bounded(Handle("", fsInfo=failure(1, TOO_MANY)), 5), 5, 5).mounts()
