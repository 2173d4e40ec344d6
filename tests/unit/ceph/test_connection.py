"""backup/ceph/connection.py: a stop is heard while the cluster does not answer."""

from __future__ import annotations

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
