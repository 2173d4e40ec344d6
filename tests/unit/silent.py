"""What is connected to and never says a word: a libvirt, or the monitor of a cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def silent(family: socket.AddressFamily, address: Any) -> Iterator[socket.socket]:
    """Listen for whoever connects, and never say a word."""
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind(address)
        listening.listen(64)
        listening.settimeout(120)
        yield listening


@contextmanager
def silent_cluster(directory: Path) -> Iterator[tuple[Path, socket.socket]]:
    """Give the configuration of a cluster whose only monitor never answers, and that monitor's socket."""
    keyring, conf = directory / "keyring", directory / "ceph.conf"
    keyring.write_text("[client.admin]\n\tkey = AQBPUi5nAAAAABAAd0X8p5gIrZcbHlOaTXMrSg==\n")
    with silent(socket.AF_INET, ("127.0.0.1", 0)) as monitor:
        port = monitor.getsockname()[1]
        conf.write_text(f"[global]\nmon_host = v2:127.0.0.1:{port}\nkeyring = {keyring}\n")
        yield conf, monitor
