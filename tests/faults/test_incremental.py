"""Faults while only what has changed is read: what the next run is to build on outlives them all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import rados
import rbd

from tests.faults.provoke import (
    HeldBackRestic,
    deletions_held_back,
    kill,
    lines_until,
    repository_taken,
    restic_script,
    stopped,
)
from tests.integration.left_behind import left_behind, require_clean
from tests.integration.node import PREFIX, SLOW, Node, parent, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, make_image

NAME = "keeping"
IMAGES = {"vda": ("vms/keeping-first", 4 * MIB), "vdb": ("vms/keeping", 112 * MIB)}
SEGMENT = 4 * MIB
COUNT = 28  # of vdb's
RESTIC = "--ignore-inode"  # the restic that reads segments
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

# A restic that removes nothing, as in an append-only repository: what it has saved in vain can be seen.
REMOVES_NOTHING = 'case "$*" in forget*) exit 1;; esac'
# The device as a container or PrivateDevices has it.
WITHOUT_FUSE = "mount --bind /dev/fuse /dev/fuse; mount -o remount,bind,nodev /dev/fuse"


@pytest.fixture(scope="module")
def node(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that keeps snapshots: each test goes on from those that the one before it has left."""
    node = Node(lab, tmp_path_factory.mktemp("node"))
    node.constants.update(OUTPUT="restic_incremental", LOCK_DURATION=3)
    with ExitStack() as stack:
        for spec, size in IMAGES.values():
            make_image(lab, spec, size, {0: size})
            stack.callback(lab.delete_image, spec)
            stack.callback(lab.rbd, "snap", "purge", "--no-progress", spec)
        lab.define_domain(NAME, [RbdDisk(target, spec) for target, (spec, _) in IMAGES.items()])
        stack.callback(lab.undefine_domain, NAME)
        try:
            assert node.run("backup", NAME).returncode == 0
            yield node
            kept = held(node).kept
        finally:
            wait_until(lambda: not node.processes(""), 60, "all have ended")
            done = node.run("cleanup", "--all")
        assert done.returncode == 0, done.stderr
        assert all(f"removed base snapshot {name.partition('@')[2]}" in done.stderr for name in kept)
        require_clean(lab, node)


@dataclass(frozen=True)
class Held:
    """What of ours there is in the cluster and as processes, and the snapshots in the repository."""

    kept: Sequence[str]
    saved: Sequence[str]


def held(node: Node) -> Held:
    saved = (path.name for path in (node.repository / "snapshots").iterdir())
    return Held(sorted(left_behind(node.lab, node)), sorted(saved))


@pytest.fixture
def before(node: Node) -> Iterator[Held]:
    """Have all of the image changed but its first segment; in the end one restore point is built on."""
    if [one for one in held(node).kept if ".kept." not in one]:  # of a test that has failed
        wait_until(lambda: not node.processes(""), 90, "all have ended")
        with suppress(rados.ObjectNotFound):
            expire_lock(node)
        clean_up(node)
    with (
        rados.Rados(conffile=str(node.lab.ceph_conf)) as cluster,
        cluster.open_ioctx("vms") as pool,
        rbd.Image(pool, "keeping") as image,
    ):
        for number in range(1, COUNT):
            image.write(os.urandom(4096), number * SEGMENT)
    yield held(node)
    in_the_end = held(node).kept
    (run,) = {name.rpartition(".")[2] for name in in_the_end}
    assert len(in_the_end) == len(IMAGES), "one of each image, and nothing else"
    assert all(".kept." in name for name in in_the_end)
    assert node.snapshots(f"run={run}", "definition"), "it is of a restore point that counts"
    assert mounts(node) == []


def mounts(node: Node) -> Sequence[int]:
    """Give the processes that see a mount in the node's directory."""
    seen = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if str(node.directory) in (path / "mounts").read_text():
                seen.append(int(path.name))
    return seen


@dataclass(frozen=True)
class Reading:
    """A run in the middle of reading segments."""

    process: subprocess.Popen[str]
    worker: int
    restic: int

    def ended(self, code: int) -> str:
        """Wait for its end; give what it said."""
        output, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == code, output
        assert "Traceback" not in output
        assert ": full read, " not in output, "it builds on the base snapshot"
        return output


@contextmanager
def reading(node: Node, beyond: int = 4 * MIB, **constants: object) -> Iterator[Reading]:
    """Have a run read segments, slowly, with a restic that removes nothing; so many bytes are read."""
    script = restic_script(node, REMOVES_NOTHING)
    with node.started("backup", NAME, MAX_READ_RATE=SLOW // 4, RESTIC_BINARY=script, **constants) as process:
        wait_until(lambda: read_bytes(node) > beyond, 120, "restic has got a part of the segments")
        (restic,) = node.processes(RESTIC)
        yield Reading(process, parent(restic), restic)


def read_bytes(node: Node) -> int:
    """Tell how many bytes the restic that reads segments has read of anything."""
    for pid in node.processes(RESTIC):
        with suppress(OSError):  # it has just ended
            found = re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())
            return int(found[1]) if found else 0
    return 0


def goes_on(node: Node, expected: int = COUNT - 1) -> None:
    """Have the next run build on what is kept: it reads what has changed since, and no more."""
    done = node.run("backup", NAME)
    assert done.returncode == 0, done.stderr
    assert f"saved: 112.0 MiB, {expected} of {COUNT} segments read" in done.stderr


def expire_lock(node: Node) -> None:
    """Take the lock of a run that was killed away, as time will."""
    uuid = node.lab.virsh("domuuid", NAME).strip()
    with rados.Rados(conffile=str(node.lab.ceph_conf)) as cluster, cluster.open_ioctx("vms") as pool:
        pool.remove_object(f"{PREFIX}lock.{uuid}")


def clean_up(node: Node) -> None:
    """Do what the unit does after each run."""
    done = node.run("cleanup")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("victims", ["restic", "main", "worker", "worker and main"])
def test_whoever_is_killed_while_segments_are_read_costs_that_run_alone(
    node: Node, before: Held, victims: str
) -> None:
    with reading(node) as run:
        pids = {"worker": run.worker, "main": run.process.pid, "restic": run.restic}
        kill(*(pids[name] for name in victims.split(" and ")))
        if victims == "restic":
            run.process.terminate()  # or it would be tried once more
        wait_until(lambda: not node.processes(""), 90, "all have ended")
    after = held(node)
    assert set(before.kept) <= set(after.kept)
    assert after.saved == before.saved, "not even a part of it"
    if "worker" in victims:
        expire_lock(node)
        clean_up(node)
    assert held(node) == before


def test_ctrl_c_in_a_terminal_leaves_the_base_snapshots_and_nothing_else(node: Node, before: Held) -> None:
    with reading(node) as run:
        os.killpg(run.process.pid, signal.SIGINT)
        run.ended(130)
    assert held(node) == before


def test_nobody_else_sees_the_segments_and_sigterm_leaves_the_base_snapshots(
    node: Node, before: Held
) -> None:
    with reading(node) as run:
        segments = node.runtime_dir / "segments"
        assert set(mounts(node)) == {run.restic}, "not even the worker's hooks"
        assert list(segments.iterdir()) == []
        enter = ("nsenter", f"--mount=/proc/{run.restic}/ns/mnt", "sh", "-c")
        look = subprocess.run([*enter, f"ls {segments}"], capture_output=True, text=True, check=True)
        assert look.stdout.split() == [*IMAGES, "~definition.tar", "~definition.tar.sha256"]
        # as from within, past the directories before it, which are closed to others too
        line = f"cd {segments} && exec {' '.join(NOBODY)} ls ."
        looks = [[*enter, line], [*NOBODY, "ls", f"/proc/{run.restic}/root{segments}"]]
        for command in looks:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (2, "")
            assert "Permission denied" in done.stderr
        run.process.terminate()
        run.ended(143)
    assert held(node) == before


def test_a_read_that_fails_interrupts_restic_before_it_saves_the_rest(
    node: Node, lab: Lab, before: Held
) -> None:
    last = 68 * MIB  # restic reads two segments at a time: after the last two it would have done
    # a lock that has not to be renewed meanwhile: it is the read that fails
    with reading(node, last, CEPH_TIMEOUT=8, CEPH_STALL_TIMEOUT=0, LOCK_DURATION=600) as run:
        with stopped(lab.osd_pid):
            wait_until(lambda: not node.processes(RESTIC), 60, "the read times out and restic is gone")
        run.process.terminate()  # or it would be tried once more
        output = run.ended(143)
    assert re.search("failed: cannot (read|list) .* image vms/keeping", output)
    assert held(node) == before


def test_what_restic_saved_with_exit_code_3_is_removed(node: Node, before: Held) -> None:
    script = restic_script(node, f'case "$*" in *{RESTIC}*) restic "$@"; exit 3;; esac')
    done = node.run("backup", NAME, RESTIC_BINARY=script)
    assert done.returncode == 3
    assert "restic backup failed with exit code 3" in node.report()["domains"][NAME]["reason"]
    assert held(node) == before
    goes_on(node)


def test_what_cannot_be_removed_after_exit_code_3_is_whole_and_named(node: Node, before: Held) -> None:
    script = restic_script(node, f'{REMOVES_NOTHING}\ncase "$*" in *{RESTIC}*) restic "$@"; exit 3;; esac')
    done = node.run("backup", NAME, RESTIC_BINARY=script)
    assert done.returncode == 3
    assert "are still in the repository, and look complete: restic forget failed" in done.stderr
    after = held(node)
    assert after.kept == before.kept
    in_vain = {*after.saved} - {*before.saved}
    assert in_vain, "by each attempt"
    for snapshot in in_vain:
        assert node.dump(snapshot, "/~definition.tar")
    goes_on(node)
    node.restic("forget", *in_vain)


def test_a_changed_segment_that_restic_did_not_read_fails_the_domain(node: Node, before: Held) -> None:
    size = sum(size for _, size in IMAGES.values())
    claims = f's/"total_bytes_processed":[0-9]*/"total_bytes_processed":{size}/'
    short = f"restic \"$@\" --exclude=000002 | sed '{claims}'; exit"
    script = restic_script(node, f'case "$*" in *{RESTIC}*) {short};; esac')
    done = node.run("backup", NAME, RESTIC_BINARY=script)
    assert done.returncode == 3, done.stderr
    assert "did not read 1 of the changed segments" in node.report()["domains"][NAME]["reason"]
    assert held(node) == before


def test_a_repository_that_another_host_has_to_itself_is_waited_for(node: Node, before: Held) -> None:
    waiting = "waiting up to 60 s (LOCK_WAIT)"
    with repository_taken(node) as let_go, node.started("backup", NAME, LOCK_WAIT=60) as process:
        lines = lines_until(process, waiting)
        assert waiting in lines[-1], lines
        let_go()
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, [*lines, output]
    assert f"{COUNT - 1} of {COUNT} segments read" in output
    assert not set(before.kept) & set(held(node).kept)


def _names(node: Node) -> int:
    """Count the snapshots whose names tell that they are to be kept."""
    return sum(".kept." in name for name in held(node).kept)


def _killed_with_its_manifest_saved(node: Node) -> None:
    """Have the worker killed before it tells by their names that its snapshots are to be kept."""
    restic = HeldBackRestic(node, RESTIC, afterwards=True)
    with node.started("backup", NAME, RESTIC_BINARY=restic.path):
        restic.reached()
        kill(*node.workers())
        wait_until(lambda: not node.processes(""), 90, "all have ended")


def test_a_run_that_was_killed_when_its_manifest_was_saved_is_built_on(node: Node, before: Held) -> None:
    _killed_with_its_manifest_saved(node)
    expire_lock(node)
    after = held(node)
    assert len(after.kept) == 2 * len(before.kept), "the old ones, and those of the run that was killed"
    assert len(after.saved) == len(before.saved) + 1, "it is complete"
    with deletions_held_back(node), node.started("backup", NAME, SNAPSHOT_DELETES=1) as process:
        wait_until(lambda: _names(node) == 2 * len(IMAGES), 120, "the new ones have their names")
        kill(*node.workers())
        output, _ = process.communicate(timeout=240)
    assert f"saved: 112.0 MiB, 0 of {COUNT} segments read" in output
    expire_lock(node)
    goes_on(node, expected=0)


def test_cleanup_after_such_a_run_leaves_the_base_snapshots(node: Node, before: Held) -> None:
    _killed_with_its_manifest_saved(node)
    expire_lock(node)
    clean_up(node)
    assert held(node).kept == before.kept


@pytest.mark.parametrize(
    ("surroundings", "words"),
    [
        (("unshare", "--mount", "sh", "-c", f'{WITHOUT_FUSE}; exec "$@"', "sh"), "cannot open /dev/fuse"),
        (("setpriv", "--bounding-set=-sys_admin"), "cannot create a private mount namespace"),
    ],
)
def test_where_no_file_system_can_be_had_no_domain_is_touched(
    node: Node, before: Held, surroundings: Sequence[str], words: str
) -> None:
    checked = node.run_within(surroundings, "check")
    assert checked.returncode == 1
    assert f"PROBLEM  output restic_incremental: {words}: " in checked.stdout
    assert checked.stdout.count("hint: ") == 1
    done = node.run_within(surroundings, "backup", NAME)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {words}: ")
    assert hint.startswith("hint: ")
    assert held(node) == before
