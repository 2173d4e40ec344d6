"""backup/ceph/connection.py: a stop is heard while the cluster does not answer, an unknown key is named."""

from __future__ import annotations

import base64
import struct
import threading
import time
from pathlib import Path

from backup.ceph.connection import Connection
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


def test_a_key_of_a_kind_that_ceph_does_not_know_is_an_error_with_a_hint(tmp_path: Path) -> None:
    # a kind that no Ceph has, as that of 20.2.4 is for 16.2: kind, time of creation, length, key
    key = base64.b64encode(struct.pack("<HIIH", 999, 1, 0, 32) + bytes(32)).decode()
    address = ClusterAddress(monitors=("127.0.0.1:6789",), user="libvirt")
    with raises("cannot connect to the cluster: invalid argument") as caught:
        Connection(address, key, str(tmp_path / "none"), 5)
    assert "the key of client.libvirt (ceph auth get client.libvirt) is damaged, or" in caught.value.hint
    assert not caught.value.transient
