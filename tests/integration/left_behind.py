"""What must not be there after a run: snapshots, locks, notes and processes of ours."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import rados
import rbd

from tests.integration.node import PREFIX, Node
from tests.lab import Lab, LabError
from tests.lab.sample import DATABASE, WEB


def require_clean(lab: Lab, node: Node) -> None:
    """Have nothing of ours left, guests that write, and a sound repository."""
    left = left_behind(lab, node)
    assert not left, left
    for name in (WEB, DATABASE):
        lab.wait_for_ticks(name, beyond=lab.ticks(name))
    node.restic("check")


def left_behind(lab: Lab, node: Node) -> Sequence[str]:
    """Name everything of ours that is still there; restic's locks aside, over which `restic check` fails."""
    found = [f"process {pid}" for pid in node.processes("")]
    found += [f"note {note}" for note in node.runtime_dir.glob("**/h[eo]*/*")]
    for pool in _pools(lab):
        name = pool.get_pool_name()
        found += [f"{name}/{key}" for _, key in _locks(pool)]
        found += [f"{name}/{image}@{snapshot}" for image, snapshot in _snapshots(pool)]
    return found


def remove_left_behind(lab: Lab, node: Node) -> None:
    """Remove what a failed test has left, or all tests after it would fail, too."""
    for pid in node.processes(""):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for note in node.runtime_dir.glob("**/held/*.json"):  # nobody is left to thaw or resume these guests
        for command in ("resume", "domfsthaw"):
            with suppress(LabError):
                lab.virsh(command, note.stem)
    for pool in _pools(lab):
        for namespace, key in list(_locks(pool)):
            pool.set_namespace(namespace)
            pool.remove_object(key)
        for name, snapshot in _snapshots(pool):
            with rbd.Image(pool, name) as image:
                if image.is_protected_snap(snapshot):
                    image.unprotect_snap(snapshot)
                image.remove_snap(snapshot)


def _pools(lab: Lab) -> Iterator[Any]:
    """Open one pool after the other."""
    patience = {"rados_osd_op_timeout": "30", "rados_mon_op_timeout": "30"}
    with rados.Rados(conffile=str(lab.ceph_conf), conf=patience) as cluster:
        for name in cluster.list_pools():
            with cluster.open_ioctx(name) as pool:
                yield pool


def _locks(pool: Any) -> Iterator[tuple[str, str]]:
    """Give each one's namespace and object."""
    pool.set_namespace(rados.LIBRADOS_ALL_NSPACES)
    yield from ((entry.nspace, entry.key) for entry in pool.list_objects() if entry.key.startswith(PREFIX))


def _snapshots(pool: Any) -> Iterator[tuple[str, str]]:
    """Give each one's image and name; the pool is in their namespace meanwhile."""
    client = rbd.RBD()
    pool.set_namespace("")
    for namespace in ("", *client.namespace_list(pool)):
        pool.set_namespace(namespace)
        for name in client.list(pool):
            with rbd.Image(pool, name, read_only=True) as image:
                ours = [snap["name"] for snap in image.list_snaps() if snap["name"].startswith(PREFIX)]
            yield from ((name, snapshot) for snapshot in ours)
