"""main.py interrupted while libvirt or Ceph hang: it ends cleanly, within seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .driver_node import domain_element, node_uri
from .program_node import MAIN, PYTHON, Node
from .samples import UUID
from .silent import silent, silent_cluster

LIMIT = 25.0  # seconds, of which a busy machine needs some itself; CEPH_TIMEOUT is 60
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@contextmanager
def started(node: Node, arguments: str, constants: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    node.configure(**constants)
    with subprocess.Popen(
        [PYTHON, str(MAIN), *arguments.split()],
        cwd=node.directory,
        env={**os.environ, "VIRT_RBD_BACKUP_CONFIG": str(node.settings)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_ends(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() < began + LIMIT
    assert process.returncode == SIGNALS[number], output
    assert output.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ("backup", signal.SIGTERM),
        ("backup --dry-run", signal.SIGINT),
        ("list", signal.SIGHUP),
        ("cleanup", signal.SIGTERM),
        ("check", signal.SIGINT),
    ],
)
def test_it_ends_while_libvirt_hangs(arguments: str, number: signal.Signals, node: Node) -> None:
    path = str(node.directory / "libvirt")
    with silent(socket.AF_UNIX, path) as libvirt:
        constants = {"LIBVIRT_URI": f"qemu+unix:///system?socket={path}"}
        with started(node, arguments, constants) as process:
            connection, _ = libvirt.accept()
            with connection:
                assert_ends(process, number)


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ("backup", signal.SIGTERM),
        ("cleanup", signal.SIGTERM),
        ("cleanup", signal.SIGINT),
        ("check", signal.SIGTERM),
    ],
)
def test_it_ends_while_ceph_hangs(arguments: str, number: signal.Signals, node: Node) -> None:
    with (
        silent_cluster(node.directory) as (conf, monitor),
        started(node, arguments, {"CEPH_CONF": str(conf)}) as process,
        monitor.accept()[0],
    ):
        assert_ends(process, number)


def test_cleanup_ends_at_once_if_nothing_hangs(node: Node) -> None:
    uri = node_uri(node.directory / "node.xml", domain_element("plain", UUID))
    done = node.run("cleanup", LIBVIRT_URI=uri)
    assert (done.returncode, done.stderr) == (0, "")
