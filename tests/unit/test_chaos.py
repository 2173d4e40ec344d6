"""The checker of tests/chaos finds what is broken, and nothing else."""

from __future__ import annotations

import argparse
import itertools
import json
import runpy
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from outputs.restic_repository.dying_worker import KEEPER
from tests.chaos.agreement import later, violations
from tests.chaos.contents import forget_old
from tests.chaos.evidence import kept
from tests.chaos.faults import HAPPENINGS
from tests.chaos.guards import Guards
from tests.chaos.kills import GUARDS, Kill, _Try
from tests.chaos.leftovers import left_files
from tests.chaos.nodes import SFTP_SERVER, WRAPPED, Node, Running
from tests.chaos.plan import CONNECTION_CUT, KINDS, SIGNALS, Order, drawn
from tests.chaos.processes import GUEST, Process, role_of
from tests.chaos.records import gap
from tests.chaos.repository import Point
from tests.chaos.rounds import rounds
from tests.chaos.stillness import unexcused
from tests.chaos.tally import SPARE, Tally
from tests.chaos.violation import Violation
from tests.lab import LabError

UUID = "11111111-2222-3333-4444-555555555555"
PLANS = [drawn(1, number) for number in range(400)]


def _lines(*records: str) -> list[str]:
    return [*records, ""]


def test_room_is_made_without_the_newest_restore_point_of_a_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ("vms/solo", 1, False)
    points = [
        Point("solo", "1", "uuid", "manifest1", images={"vda": ("image1", *image)}),
        Point("solo", "2", "uuid", "manifest2", images={"vda": ("image2", *image)}),
        Point("solo", "3", "uuid", images={"vda": ("image3", *image)}),
    ]
    names = ("image1", "manifest1", "image2", "manifest2", "image3")
    repository = Mock(points=lambda: points, snapshots=lambda: [{"id": name} for name in names])
    world = Mock(held_in={repository.place: {"manifest1": points[0], "manifest2": points[1]}})
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(used=6, total=10))
    forget_old(world, repository)
    repository.restic.assert_called_with("forget", "--prune", "--quiet", "image1", "manifest1", "image3")
    assert world.held_in == {repository.place: {"manifest2": points[1]}}


def test_records_without_a_gap_are_unbroken() -> None:
    assert gap(_lines("b000000", "0000001", "0000002")) == ""


def test_a_boot_may_lack_the_newest_record_before_it() -> None:
    assert gap(_lines("b000000", "0000001", "b000002", "0000003")) == ""
    assert gap(_lines("b000000", "0000001", "b000001", "0000002")) == ""


@pytest.mark.parametrize(
    "records",
    [
        ["b000000", "0000001", "0000003"],
        ["b000000", "0000001", "0000001"],
        ["b000000", "0000001", "b000003", "0000004"],
        ["b000000", "\0\0\0\0\0\0\0", "0000002"],
        ["b000000", "00001"],
    ],
)
def test_a_record_that_is_missing_or_damaged_is_found(records: list[str]) -> None:
    assert gap(_lines(*records)) != ""


def test_records_that_end_within_a_line_are_damaged() -> None:
    assert gap(["b000000", "0000001", "00000"]) != ""
    assert gap([]) != ""


def test_a_guest_may_stop_for_as_long_as_a_fault_excuses_it() -> None:
    assert unexcused(10, 40, []) == 30
    assert unexcused(10, 40, [(0, 15), (12, 38)]) == 2
    assert unexcused(10, 40, [(20, 30)]) == 10
    assert unexcused(10, 40, [(50, 60)]) == 30
    assert unexcused(10, 40, [(10, 40)]) == 0


def test_the_seed_and_the_number_give_the_same_round_again() -> None:
    assert drawn(7, 3) == drawn(7, 3)
    assert drawn(7, 3) != drawn(7, 4)


def test_every_fault_that_is_drawn_can_happen() -> None:
    assert {*KINDS} == {*HAPPENINGS}


@pytest.mark.parametrize(("undefined", "found"), [({"ice"}, 0), ({"cold"}, 1), (set(), 1)])
def test_a_domain_that_is_named_and_unknown_was_undefined_in_this_round(
    tmp_path: Path, undefined: set[str], found: int
) -> None:
    (tmp_path / "0.stderr").write_text("there is no domain 'ice'\n")
    found_now = [one.invariant for one in violations(_backup(tmp_path, 2), [], undefined)]
    assert found_now[:1] == ["a known exit code"] * found


def test_a_command_that_names_an_undefined_domain_must_not_show_a_bug(tmp_path: Path) -> None:
    words = "there is no domain 'ice'\nTraceback (most recent call last):\n"
    (tmp_path / "0.stderr").write_text(words)
    assert [one.invariant for one in violations(_backup(tmp_path, 2), [], {"ice"})] == ["no bug shows"]


@pytest.mark.parametrize(
    ("undefined", "reason", "found"),
    [
        ({"ice"}, "the domain is no longer defined", 0),
        ({"cold"}, "the domain is no longer defined", 1),
        ({"ice"}, "another node saved it", 1),
    ],
)
def test_a_run_is_good_if_it_skipped_only_what_was_undefined(
    tmp_path: Path, undefined: set[str], reason: str, found: int
) -> None:
    (tmp_path / "0.stderr").write_text(f"ice: skipped: {reason}\n")
    domain = {"name": "ice", "uuid": UUID, "status": "skipped", "reason": reason}
    report = {"run": "1", "exit_code": 0, "errors": []}
    report["domains"] = [{**domain, "selected": True, "images": []}]
    (tmp_path / "0.report").write_text(json.dumps(report))
    assert len([*violations(_backup(tmp_path, 0), [], undefined)]) == found


def _backup(directory: Path, code: int) -> Running:
    """A backup that has ended, with its files in the directory."""
    order = Order("node-b", ("backup", "ice"), 0, {})
    return Running(order, Mock(), Mock(spec=subprocess.Popen, returncode=code), directory / "0")


def test_rounds_in_which_the_lab_broke_are_drawn_anew() -> None:
    tally = Tally(wanted=2, first=5)
    for outcome, number in (("passed", 5), ("broken", 6), ("came too late", 7), ("passed", 8)):
        assert tally.goes_on
        assert tally.number == number
        tally.count(outcome)
    assert not tally.goes_on
    assert tally.exit_code == 0
    assert str(tally).startswith("2 of 2 counted: 2 passed, 0 failed; 4 were drawn, of which 2 do not count")


def test_a_run_in_which_one_failed_fails() -> None:
    tally = Tally(wanted=2, first=1)
    tally.count("failed")
    assert tally.goes_on
    tally.count("passed")
    assert (tally.goes_on, tally.exit_code) == (False, 1)


@pytest.mark.parametrize("builds", [True, False])
def test_a_run_in_which_every_lab_broke_ends_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, builds: bool
) -> None:
    def built(*_: Any, **__: Any) -> Any:
        if not builds:
            raise LabError("no lab")
        return nullcontext(Mock())

    monkeypatch.setattr("tests.chaos.rounds.built", built)
    monkeypatch.setattr("tests.chaos.rounds._one", lambda *_: "broken")
    tally = rounds(argparse.Namespace(seed=1, first=1, rounds=20), tmp_path, tmp_path)
    assert tally.exit_code == 1
    assert str(tally).startswith("TOO FEW COUNTED: 0 of 20 counted")
    assert tally.drawn == 40 + SPARE


def test_connections_are_cut_where_there_are_any() -> None:
    remote = [plan for plan in PLANS if plan.orders[0].remote]
    assert 0.2 < len(remote) / len(PLANS) < 0.5
    cut = [plan for plan in PLANS for fault in plan.faults if fault.kind == CONNECTION_CUT]
    assert len(cut) > 20
    assert all(order.remote for plan in cut for order in (*plan.orders, *plan.further))
    lengths = {fault.seconds > 0 for plan in cut for fault in plan.faults if fault.kind == CONNECTION_CUT}
    assert lengths == {True, False}, "once, and for a while"


def test_signals_go_to_what_is_there() -> None:
    hit = {"keeper": False, "wrapper": False, "sftp-server": False}
    for plan in PLANS:
        targets = {role for fault in plan.faults if fault.kind in SIGNALS for role in fault.target}
        there = {
            "keeper": any(order.constants["OUTPUT"] == "restic_incremental" for order in plan.orders),
            "wrapper": any(order.wrapper for order in plan.orders),
            "sftp-server": plan.orders[0].remote,
        }
        for role in hit:
            assert role not in targets or there[role]
            hit[role] |= role in targets
    assert all(hit.values())


@pytest.mark.parametrize("kind", ["osd stopped", "monitor stopped", "libvirtd stopped"])
def test_daemons_are_stopped_for_up_to_a_minute_but_not_often(kind: str) -> None:
    faults = [drawn(2, number).faults for number in range(3000)]
    lengths = [one.seconds for one in itertools.chain(*faults) if one.kind == kind]
    assert 55 < max(lengths) <= 60
    assert sum(lengths) / len(lengths) < 18


@pytest.mark.parametrize(
    ("line", "role"),
    [
        (f"sh -c {KEEPER} sh 71 mnt:[4026531841]", "keeper"),
        ("sh -c hostname", "sh"),
        ("timeout 3600 restic backup", "wrapper"),
        ("/bin/sh /lab/nodes/node-a/restic-in-sh backup --json", "wrapper"),
        ("restic backup --stdin", "restic"),
        (SFTP_SERVER, "sftp-server"),
        ("virt-rbd-backup: cleanup", "main"),
        ("virt-rbd-backup: watchdog", "watchdog"),
        ("virt-rbd-backup: twin: stream vda", "worker"),
        ("/usr/bin/qemu-system-x86_64 -name guest=twin-back1,debug-threads=on", GUEST),
    ],
)
def test_processes_are_told_apart(line: str, role: str) -> None:
    assert role_of(line) == role


@pytest.mark.parametrize("wrapper", ["", *WRAPPED])
@pytest.mark.parametrize("remote", [False, True])
def test_a_command_has_the_settings_of_its_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, remote: bool, wrapper: str
) -> None:
    monkeypatch.setattr("subprocess.Popen", Mock())
    node = Node(Mock(ceph_conf="ceph.conf"), "node-a", tmp_path / "node", {"restic": Path("/store")})
    order = Order("node-a", ("backup",), 0, {"OUTPUT": "restic"}, remote, wrapper)
    node.start(order, tmp_path / "own")
    node.cleanup(tmp_path / "after", order)
    own, after = (runpy.run_path(str(tmp_path / f"{name}.py")) for name in ("own", "after"))
    assert own["RESTIC_REPOSITORY"] == ("sftp:another-host:/store" if remote else "/store")
    assert (own.get("RESTIC_OPTIONS") == [f"--option=sftp.command={SFTP_SERVER}"]) is remote
    for name in ("RESTIC_REPOSITORY", "RESTIC_OPTIONS", "RESTIC_BINARY"):
        assert after.get(name) == own.get(name)
    if wrapper:
        assert WRAPPED[wrapper] in Path(own["RESTIC_BINARY"]).read_text()


LEFT = [
    "runtime/held/1.json",
    "runtime/hooked/1.json",
    "runtime/restic/71-17000.5.json",
    "runtime/segments/file",
    "runtime/watchdog",
    "runtime/.watchdog.4026531836-71-1.abcdefgh",
    "state/failed-points/20260101T000000Z-abcd.11111111-2222-3333-4444-555555555555.1",
    "state/written/1.json",
    "state/reports/.20260101T000000Z-abcd.json.gz.abcdefgh",
    "state/anything",
    "tmp/file",
    "drill/file",
]
STAYS = [
    "runtime/run.lock",
    "runtime/deletion.0.lock",
    "runtime/restic/",
    "state/proofs.json",
    "state/restic-key-0123456789abcdef",
    "state/reports/20260101T000000Z-abcd.json.gz",
    "state/manifests/11111111-2222-3333-4444-555555555555.0123abcd",
    "state/failed-points/20260101T000000Z-efgh.11111111-2222-3333-4444-555555555555.1",
]


@pytest.mark.parametrize(("path", "left"), [*((one, True) for one in LEFT), *((one, False) for one in STAYS)])
def test_each_record_that_is_left_behind_is_found(tmp_path: Path, path: str, left: bool) -> None:
    node = SimpleNamespace(
        runtime_dir=tmp_path / "runtime",
        state_dir=tmp_path / "state",
        temporary=tmp_path / "tmp",
        drill_dir=tmp_path / "drill",
    )
    node.temporary.mkdir()
    node.drill_dir.mkdir()
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).mkdir() if path.endswith("/") else (tmp_path / path).touch()
    found = [str(one.relative_to(tmp_path)) for one in left_files(node, "20260101T000000Z-efgh")]  # type: ignore[arg-type]
    assert found == ([path] if left else [])


def _reported(directory: Path, status: str, reason: str = "", images: bool = False) -> Running:
    """A backup with one domain, which ended in this way."""
    (directory / "0.stderr").write_text("")
    saved = [{"target": "vda", "restore_id": "0123abcd"}] if images else []
    domain = {"name": "ice", "uuid": UUID, "status": status, "reason": reason, "selected": True}
    domain.update(images=saved, consistency="offline")
    code = 3 if status == "failed" else 0
    report = {"run": "1", "exit_code": code, "errors": [], "domains": [domain]}
    (directory / "0.report").write_text(json.dumps(report))
    return _backup(directory, code)


def _point(attempt: int = 1, manifest: str = "0123abcdef") -> Point:
    images = {"vda": ("0123abcdef", "vms/ice", 1, True)}
    return Point("ice", "1", UUID, manifest, "offline", attempt=attempt, images=images)


OWN_POINTS: list[tuple[str, str, list[Point], set[str], int]] = [
    ("failed", "restic failed", [], set(), 0),
    ("failed", "restic failed", [_point(manifest="")], set(), 0),
    ("failed", "restic failed", [_point()], set(), 1),
    ("failed", "restic failed", [_point()], {f"1.{UUID}.1"}, 0),
    ("failed", "restic failed", [_point(2)], {f"1.{UUID}.1"}, 1),
    ("failed", "saved, but a hook failed", [_point()], set(), 0),
    ("saved", "", [_point()], set(), 0),
    ("saved", "", [_point(2)], set(), 0),
    ("saved", "", [], set(), 1),
    ("saved", "", [_point(), _point(2)], set(), 1),
    ("saved", "", [_point(), _point(2)], {f"1.{UUID}.1"}, 0),
]


@pytest.mark.parametrize(("status", "reason", "points", "noted", "found"), OWN_POINTS)
def test_what_the_report_does_not_call_saved_is_not_complete(
    tmp_path: Path, status: str, reason: str, points: list[Point], noted: set[str], found: int
) -> None:
    saved = status == "saved" or reason.startswith("saved")
    running = _reported(tmp_path, status, reason, saved)
    assert len([*violations(running, points, set(), noted)]) == found
    if noted and len(points) > saved:
        assert len([*later(running, points)]) == 1, "the next run has to remove it"


def test_a_domain_that_was_skipped_has_no_restore_point_of_that_run(tmp_path: Path) -> None:
    running = _reported(tmp_path, "skipped", "the domain is no longer defined")
    assert [*violations(running, [], {"ice"})] == []
    (found,) = violations(running, [_point()], {"ice"})
    assert "ice is skipped (the domain is no longer defined), but the repository has ice of run 1" in str(
        found
    )


def _process(role: str, stopped: bool = False) -> Process:
    return Process(71, 1, 71, stopped, "", role)


@pytest.mark.parametrize(
    ("processes", "watchdog_hit", "excused"),
    [
        ([_process("main", stopped=True), _process("watchdog", stopped=True)], True, True),
        ([_process("main", stopped=True), _process("watchdog", stopped=True)], False, False),
        ([_process("main", stopped=True), _process("restic")], True, True),
        ([], True, True),
        ([], False, False),
        ([_process("main", stopped=True), _process("worker")], True, False),
        ([_process("watchdog")], True, False),
    ],
)
def test_a_guest_is_excused_while_none_of_its_node_s_guards_runs(
    monkeypatch: pytest.MonkeyPatch, processes: list[Process], watchdog_hit: bool, excused: bool
) -> None:
    there = {"a": processes, "b": []}
    monkeypatch.setattr("tests.chaos.guards.ours", there.__getitem__)
    clock = itertools.count(100)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    record = Path(f"held/{UUID}.json")
    nodes = {
        "a": Mock(directory="a", records=lambda: [record]),
        "b": Mock(directory="b", records=list),
    }
    for name, node in nodes.items():
        node.name = name
    hit = {("a", 71), ("b", 71)} if watchdog_hit else {("a", 70), ("b", 71)}
    there["a"] = [_process("worker"), _process("watchdog")]  # of which the last one was seen
    guards = Guards(Mock(nodes=nodes, uuids={"twin": UUID, "solo": "other"}, watchdogs_hit=hit))
    guards._look(nodes["a"])
    there["a"] = processes
    for _ in range(3):
        for node in nodes.values():
            guards._look(node)
    there["a"] = [_process("main")]  # as of `cleanup`
    for _ in range(2):
        guards._look(nodes["a"])
    assert [(round(began), ended) for began, ended in guards.excuses("twin")] == [(100, 103)] * excused
    assert guards.excuses("solo") == []
    assert (guards.missed(nodes["a"]), guards.missed(nodes["b"])) == (excused, False)


def test_where_all_guards_are_killed_cleanup_is_started_and_has_to_thaw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kills = [Kill.drawn(1, number) for number in range(200)]
    everybody = [one for one in kills if len(one.roles) == len(GUARDS)]
    assert 10 < len(everybody) < 60
    monkeypatch.setattr("tests.chaos.kills.of_roles", lambda _: {})
    monkeypatch.setattr("tests.chaos.kills.ours", lambda _: [])
    monkeypatch.setattr("time.sleep", lambda _: None)
    for kill in (everybody[0], next(one for one in kills if len(one.roles) == 2)):
        node = Mock(runtime_dir=tmp_path, records=list)
        pulse = Mock(writes=Mock(return_value=False))
        found = [*_Try(Mock(pulse=pulse), kill, tmp_path / "0")._killed(node)]
        assert [one.invariant for one in found] == ["no guest is left frozen"]
        assert node.cleanup.called is (kill is everybody[0])
        pulse.writes.assert_called_with("solo", kill.bound)


def test_a_round_that_failed_is_told_even_if_the_lab_no_longer_answers(tmp_path: Path) -> None:
    lab = Mock(virsh=Mock(side_effect=LabError("no libvirt")), rbd=Mock(side_effect=LabError("no cluster")))
    rados = Mock(side_effect=LabError("no cluster"))
    world = Mock(lab=lab, rados=rados, spans=[], places=[], nodes={}, definitions=["ice"])
    (tmp_path / "round-1").mkdir()
    place = kept(world, tmp_path / "round-1", 0, [Violation("it holds", "it does not")], tmp_path / "logs")
    assert (place / "violations").read_text() == "it holds: it does not\n"
    assert "no libvirt" in (place / "state").read_text()
