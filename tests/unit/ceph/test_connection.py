"""backup/ceph/connection.py: a stop is heard while the cluster does not answer, an unknown key is named."""

from __future__ import annotations

import base64
import errno
import struct
import threading
import time
from pathlib import Path

import pytest

from backup.ceph.connection import Connection
from backup.ceph.errors import CONNECTING, ClusterError, failure
from backup.ceph.retry import CephRetry
from backup.errors import Interrupted
from backup.model import ClusterAddress
from backup.system.stop_request import StopRequest

from ..raising import raises
from ..silent import silent_cluster


def test_a_stop_is_heard_while_it_connects(tmp_path: Path) -> None:
    stop = StopRequest()
    with silent_cluster(tmp_path) as (conf, monitor):
        threading.Timer(0.5, stop.request, [Interrupted("interrupted", 15)]).start()
        began = time.monotonic()
        with raises("interrupted", Interrupted):
            Connection(ClusterAddress(), "", str(conf), 20, retry=CephRetry(0, stop.check))
        assert time.monotonic() - began < 5
        monitor.accept()[0].close()


def test_a_key_that_ceph_cannot_read_is_named_by_the_hint(tmp_path: Path) -> None:
    # of a kind that no Ceph has, as that of 20.2.4 is for 16.2: kind, time of creation, length, key
    key = base64.b64encode(struct.pack("<HIIH", 999, 1, 0, 32) + bytes(32)).decode()
    address = ClusterAddress(monitors=("127.0.0.1:1",), user="libvirt")
    with pytest.raises(ClusterError) as caught:
        Connection(address, key, str(tmp_path / "none"), 2)
    # Ceph 20 goes on without a key, in vain
    assert caught.value.number in (errno.EINVAL, errno.ETIMEDOUT)
    assert "the key of client.libvirt" in caught.value.hint


def test_a_key_of_a_newer_ceph_is_an_error_that_a_newer_ceph_can_settle() -> None:
    error = failure(CONNECTING, None, errno.EINVAL, "", "libvirt", 5)
    assert error.message == "cannot connect to the cluster: invalid argument"
    assert error.hint.startswith("the key of client.libvirt (ceph auth get client.libvirt) is damaged, or of")
    assert not error.transient
    assert failure("cannot set rbd_cache", None, errno.EINVAL, "", "libvirt", 5).hint == ""
