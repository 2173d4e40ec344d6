"""Connections to the clusters of disks, with the cephx keys from libvirt."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Callable, Union

from ..errors import BackupError
from ..model import ClusterAddress
from ..settings import Settings
from .cluster import Cluster
from .retry import CephRetry


class Clusters:
    """Connections as the domains themselves have them: opened on first use, one for each address.

    Threads may share it.
    """

    def __init__(
        self,
        secret_of: Callable[[ClusterAddress], str],
        settings: Settings,
        timeout: int,
        retry: CephRetry | None = None,
    ) -> None:
        """`secret_of` returns the cephx key for an address, "" for the keyring's; it raises BackupError.

        `timeout` limits every operation of the connections, in seconds; `retry` repeats those that time out.
        """
        self._secret_of = secret_of
        self._settings = settings
        self._timeout = timeout
        self._retry = retry
        self._known: dict[ClusterAddress, Union[Cluster, BackupError]] = {}
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Clusters:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def at(self, address: ClusterAddress) -> Cluster:
        """Return the connection. Raises BackupError, always the same for an address that failed once."""
        with self._lock:
            if address not in self._known:
                self._known[address] = self._try(address)
        known = self._known[address]
        if isinstance(known, BackupError):
            raise known
        return known

    def _try(self, address: ClusterAddress) -> Union[Cluster, BackupError]:
        settings = self._settings
        try:
            cluster = Cluster(
                address,
                self._secret_of(address),
                settings.ceph_conf,
                self._timeout,
                settings.max_read_rate,
                settings.replica_reads,
                self._retry,
            )
        except BackupError as error:
            return error
        return self._stack.enter_context(cluster)
