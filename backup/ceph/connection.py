"""A connection to one Ceph cluster as one cephx user: pools, open images, retries, mapped errors."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Callable, TypeVar

import rados
import rbd

from ..model import ClusterAddress, Image, Level
from ..system.time_limit import abandon, awaited, begun
from .errors import CONNECTING, ClusterError, PoolFull, failure, full_hint
from .image_limits import EXCLUDE_OPTION, EXCLUDED, NO_LIMITS, limits_in_effect
from .image_lock import give_up_own_lock
from .retry import CephRetry

LISTED_AT_A_TIME = 32
ANSWER_LIMIT = 4.0  # seconds for the cluster to answer a simple question when the command has to stop

Result = TypeVar("Result")
Self = TypeVar("Self", bound="Connection")


class Connection:
    """A connection to one Ceph cluster. Close it; or use it as a context manager."""

    read_rate = 0  # of each image that is read, in bytes per second; 0 for no limit

    def __init__(
        self,
        address: ClusterAddress,
        key: str,
        conf_file: str,
        timeout: int,
        read_rate: int = 0,
        replica_reads: str = "",
        retry: CephRetry | None = None,
    ) -> None:
        """Connect.

        `conf_file` supplies what the address does not. `timeout` limits every operation, in seconds (Ceph's
        default is to wait forever). `read_rate` limits each image, in bytes per second, 0 for no limit.
        `replica_reads` is rbd_read_from_replica_policy, "" for the file's value. `retry` repeats reads,
        listings, and operations on existing snapshots. Raises ClusterError.
        """
        self.user = address.user or "admin"
        self.timeout = timeout
        self.retry = (retry or CephRetry()).of_connection(timeout)
        self._connecting: Future[None] | None = None
        self._pools: dict[tuple[str, str], Any] = {}
        self._abandoned: list[Future[Any]] = []
        self._given_up = False  # a stopping job has asked in vain whether the cluster answers again
        self._open_images: dict[Image, Any] = {}  # the rbd.Image of each; see Cluster.image_open
        self._lock_owners: dict[Image, str] = {}  # of those
        self.read_rate = read_rate
        options = _options(address, key, timeout, replica_reads)
        path = address.conf_file or conf_file
        if not os.path.exists(path) and (address.conf_file or not address.monitors):
            raise ClusterError(f"there is no {path}", "set CEPH_CONF to the cluster's configuration file")
        with self.errors(CONNECTING):
            self._rados = rados.Rados(
                conffile=path if os.path.exists(path) else None, rados_id=self.user, conf=options
            )
            with suppress(rados.Error):  # Ceph 16 does not have it
                self._rados.conf_set(EXCLUDE_OPTION, EXCLUDED)
            try:
                self._connect()
                self.fsid = str(self._rados.get_fsid())
                self.client = f"client.{self._rados.get_instance_id()}"  # as locks and watches name it
                if address.fsid not in ("", self.fsid):
                    message = (
                        f"the image is in cluster {address.fsid}, but {path} belongs to cluster {self.fsid}"
                    )
                    raise ClusterError(message, "see CEPH_CONF")
            except BaseException:  # whatever it was, no connection stays open
                self._when_connected(self._rados.shutdown)
                raise

    def _connect(self) -> None:
        """Connect. Raises the reason to stop; then the call goes on."""
        self._connecting = begun(partial(self._rados.connect, timeout=self.timeout))
        awaited(self._connecting, math.inf, self.retry.check_stop)

    def _when_connected(self, call: Callable[[], None]) -> None:
        """Make the call now, or, if connecting was abandoned, when that has ended."""
        if self._connecting:
            self._connecting.add_done_callback(lambda _: call())
        else:
            call()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        # a call that ends after that kills the process (seen with librados 16.2)
        if not all(work.done() for work in self._abandoned):
            return
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._rados.shutdown()

    def set_option(self, name: str, value: str) -> None:
        """Set one of Ceph's options for what this connection does from now on. Raises ClusterError."""
        with self.errors(f"cannot set {name}"):
            self._rados.conf_set(name, value)

    def pool_of(self, image: Image) -> Any:
        """Return the rados.Ioctx of the image's pool and namespace."""
        key = (image.pool, image.namespace)
        if key not in self._pools:
            pool = self._rados.open_ioctx(image.pool)
            pool.set_namespace(image.namespace)
            # A full pool refuses what needs room, instead of blocking it, and lets snapshots be removed.
            pool.set_osdmap_full_try()
            self._pools[key] = pool
        return self._pools[key]

    def opened(self, image: Image, snapshot: str | None = None, read_only: bool = True) -> Any:
        """Return the rbd.Image."""
        name = None if image.id else image.name
        pool = self.pool_of(image)
        return rbd.Image(pool, name, snapshot=snapshot, read_only=read_only, image_id=image.id or None)

    def retried(
        self, action: str, image: Image, call: Callable[[], Result], until: float = math.inf
    ) -> Result:
        """Make a call of rbd, and retry it if it times out, `until` as in CephRetry. Raises ClusterError."""
        self._require_answers(action, image)

        def mapped() -> Result:
            with self.errors(action, image):
                return call()

        return self.retry.call(mapped, until=until)

    def _require_answers(self, action: str, image: Image) -> None:
        """Raise ClusterError if the job has to stop and the cluster does not answer.

        A cluster that did not answer before is asked once more: snapshots and locks are not left behind
        because of a stall that is over.
        """
        if self.retry.gives_up and not self._answers_again(image):
            message = (
                f"{action} image {image}: not tried, as the cluster does not answer and the job has to stop"
            )
            raise ClusterError(message, "the next run removes the leftovers", errno.ETIMEDOUT)

    def _answers_again(self, image: Image) -> bool:
        """Return whether the cluster answers a question; asked in vain, it is not asked again.

        The answer is awaited for as long as that of any operation: one that was abandoned would end after
        the connection was closed, which kills the process (seen with librados 16.2).
        """
        header = f"rbd_header.{image.id}" if image.id else f"{image.name}.rbd"
        if not self._given_up:
            try:
                self.retry.call(partial(self.object_exists, image, header))
            except ClusterError:
                self._given_up = True
        return not self._given_up

    def answers(self, image: Image) -> bool:
        """Return whether the cluster answers a question about the image's pool within ANSWER_LIMIT."""
        question = begun(partial(self.object_exists, image, "rbd_directory"))
        try:
            awaited(question, ANSWER_LIMIT)
        except TimeoutError:
            self.abandon(question)
            return False
        except ClusterError as error:
            return error.number != errno.ETIMEDOUT
        return True

    def abandon(self, work: Future[Any]) -> None:
        """Leave the work with this connection to itself; until it has ended the connection is not closed."""
        self._abandoned.append(work)
        abandon(work)

    def object_exists(self, image: Image, name: str) -> bool:
        """Return whether there is an object of this name beside the image."""
        with self.errors(f"cannot check for the object {name} beside", image):
            try:
                self.pool_of(image).stat(name)
            except rados.ObjectNotFound:
                return False
            return True

    @contextmanager
    def errors(self, action: str, image: Image | None = None) -> Iterator[None]:
        """Map errors of rados and rbd in the block to ClusterError."""
        began = time.monotonic()
        try:
            yield
        except (rados.Error, rbd.Error) as error:
            number = abs(getattr(error, "errno", 0) or 0)
            if number == errno.EBADMSG and time.monotonic() - began >= self.timeout:
                # librbd decodes an answer that did not come in time (seen with 16.2, its OSD stopped)
                number = errno.ETIMEDOUT
            raise self.failure(action, image, number, str(error)) from error

    def failure(self, action: str, image: Image | None, number: int, message: str = "") -> ClusterError:
        """Return the error for an errno, or for Ceph's own message if the errno is 0."""
        return failure(action, image, number, message, self.user, self.timeout)

    def ask(self, command: str, **arguments: str) -> Any:
        """Return the monitors' answer to a command, such as "df"."""
        with self.errors(f"cannot ask the monitors for {command}"):
            number, answer, message = self._rados.mon_command(
                json.dumps({"prefix": command, "format": "json", **arguments}), b"", timeout=self.timeout
            )
        if number:
            raise self.failure(f"cannot ask the monitors for {command}", None, -number, message)
        return json.loads(answer)

    def require_not_full(self, pool: str) -> None:
        """Raise ClusterError if the monitors report the pool as full, so that guests' writes wait."""
        pools = {one["pool_name"]: one for one in self.ask("osd pool ls", detail="detail")}
        flags = pools.get(pool, {}).get("flags_names", "").split(",")
        if "full_quota" in flags:
            message = f"pool {pool} is full: its quota is reached"
            raise PoolFull(message, f"ceph osd pool get-quota {pool}; ceph osd pool set-quota {pool} ...")
        if "full" in flags:
            raise PoolFull(f"pool {pool} is full", full_hint(pool))

    def monitors(self) -> list[tuple[str, str]]:
        """Return (address, port) of each monitor, reachable by all client versions if it listens there.

        One that speaks msgr2 alone has no other port. IPv6 addresses are without brackets, as in libvirt's
        XML.
        """
        hosts = [_address_of(one).split("/")[0].rpartition(":") for one in self.ask("mon dump")["mons"]]
        return [(address.strip("[]"), port) for address, _, port in hosts]

    def has_pool(self, name: str) -> bool:
        with self.errors(f"cannot check whether pool {name} exists"):
            return bool(self._rados.pool_exists(name))

    def require_namespace(self, image: Image) -> None:
        """Raise ClusterError if the image's namespace does not exist."""
        if not image.namespace:
            return
        with self.errors("cannot check the namespace of", image):
            try:
                there = rbd.RBD().namespace_exists(self.pool_of(image), image.namespace)
            except rbd.PermissionError:  # this user can only access its own namespace
                return
        if not there:
            raise ClusterError(f"there is no namespace {image.place}", f"rbd namespace create {image.place}")

    def give_up_own_lock(self, image: Image, opened: Any) -> None:
        """Remove a lock of ours that librbd does not know of, as in image_lock. Raises ClusterError."""
        with self.errors("cannot give up our own lock of", image):
            give_up_own_lock(self.pool_of(image), opened, self.client)

    def report_limits(self, image: Image, opened: Any, direction: str) -> None:
        """Report the limits of an open image that slow down its "read" or "write", if they can be read."""
        with suppress(ClusterError), self.errors("cannot read the limits of", image):
            if text := limits_in_effect(opened, direction):
                self.retry.report(Level.WARNING, f"{direction}s of image {image} are limited by {text}")

    def has_valid_object_map(self, opened: Any) -> bool:
        """Return whether an open image or snapshot has an object map that is valid for fast-diff."""
        invalid = rbd.RBD_FLAG_OBJECT_MAP_INVALID | rbd.RBD_FLAG_FAST_DIFF_INVALID
        return bool(opened.features() & rbd.RBD_FEATURE_FAST_DIFF) and not opened.flags() & invalid


def _address_of(monitor: Mapping[str, Any]) -> str:
    """Return a monitor's address from "mon dump": of the old protocol, of msgr2 if it speaks that alone.

    Its "public_addr" is empty then (":/0").
    """
    known = {one["type"]: one["addr"] for one in monitor.get("public_addrs", {}).get("addrvec", ())}
    return str(known.get("v1") or known.get("v2") or known.get("any") or monitor["public_addr"])


def _options(address: ClusterAddress, key: str, timeout: int, replica_reads: str) -> Mapping[str, str]:
    """Return the Ceph options for this connection, by name."""
    options: dict[str, object] = {
        "rados_osd_op_timeout": timeout,
        "rados_mon_op_timeout": timeout,
        "client_mount_timeout": timeout,
        "rbd_cache": "false",
        **NO_LIMITS,
        # objects that a listing requests at a time (default 10): costs a quarter less processor time, here
        # and in the OSDs, and waits less for the network
        "rbd_concurrent_management_ops": LISTED_AT_A_TIME,
        # else librados logs to standard error, and creates sockets in /run
        "log_to_stderr": "false",
        "log_file": "",
        "admin_socket": "",
    }
    if replica_reads:
        options["rbd_read_from_replica_policy"] = replica_reads
    if address.monitors:
        options["mon_host"] = ",".join(address.monitors)
    if key:
        options["key"] = key
    return {name: str(value) for name, value in options.items()}
