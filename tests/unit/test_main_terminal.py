"""main.py on a terminal, which may be stopped (Ctrl-S), and in a service."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.terminal import Terminal, on_terminal

from .program_node import MAIN, PYTHON, Node
from .silent import silent_cluster
from .waiting import wait_until

STOP, GO_ON = b"\x13", b"\x11"  # Ctrl-S and Ctrl-Q
COMMAND = (PYTHON, str(MAIN), "backup")
FAILED = "error: web: failed: "


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """One whose domain fails after seconds: the view is on the terminal until then."""
    node = Node(tmp_path)
    with silent_cluster(tmp_path) as (conf, _):
        node.constants |= {"CEPH_CONF": str(conf), "CEPH_TIMEOUT": 2, "CEPH_STALL_TIMEOUT": 0, "RETRY_FOR": 0}
        node.configure()
        yield node


def environment(node: Node) -> Mapping[str, str]:
    return {**os.environ, "VIRT_RBD_BACKUP_CONFIG": str(node.settings)}


def test_a_failure_is_shown_above_the_view_which_is_gone_at_the_end(node: Node) -> None:
    with on_terminal(COMMAND, environment(node)) as terminal:
        modes = terminal.modes()
        terminal.wait_for("running for 0:0")
        assert terminal.read_to_end() == 3
        assert terminal.modes() == modes
    assert FAILED in terminal.text()
    left = terminal.written.rpartition("\x1b[2K")[2]  # what came after the view was erased
    assert [line.split()[0] for line in left.splitlines()] == ["domain", "web", "run"]
    assert "\x1b[?25l" not in terminal.written, "the cursor was never hidden"


def test_a_stopped_terminal_blocks_neither_the_run_nor_its_report(node: Node) -> None:
    node.configure(CEPH_TIMEOUT=6)  # time to stop the terminal
    with on_terminal(COMMAND, environment(node)) as terminal:
        terminal.wait_for("running for ")
        terminal.type(STOP)
        wait_until(node.report_file.exists, 30, "the report")
        assert terminal.process.poll() is None, "it still has output to write"
        terminal.type(GO_ON)
        assert terminal.read_to_end() == 3
    assert FAILED in terminal.text()


def test_a_signal_ends_it_while_the_terminal_is_stopped(node: Node) -> None:
    node.configure(CEPH_TIMEOUT=6)  # time to stop the terminal
    with on_terminal(COMMAND, environment(node)) as terminal:
        terminal.wait_for("running for ")
        terminal.type(STOP)
        wait_until(node.report_file.exists, 30, "the report")
        terminal.process.terminate()
        assert terminal.process.wait(30) == 3, "the result of the run"


def test_an_error_ends_it_while_the_terminal_is_stopped(node: Node) -> None:
    node.configure(RESTIC_BINARY="/nowhere/restic")
    with on_terminal(COMMAND, environment(node)) as terminal:
        terminal.type(STOP)
        wait_until(node.report_file.exists, 30, "the report")
        wait_until(lambda: _signal_is_sent_and_it_has_ended(terminal), 15, "it ends")


def _signal_is_sent_and_it_has_ended(terminal: Terminal) -> bool:
    if terminal.process.poll() is None:
        terminal.process.terminate()
        time.sleep(0.5)
    return terminal.process.poll() is not None


def test_the_status_of_a_service_shows_the_end(node: Node) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(node.directory / "notify"))
        done = node.start((), ("env", f"NOTIFY_SOCKET={manager.getsockname()}", *COMMAND))
        assert done.returncode == 3
        manager.setblocking(False)
        statuses = []
        with suppress(BlockingIOError):
            while True:
                statuses.append(manager.recv(4096))
    assert statuses[-1] == b"STATUS=ended: 1 failed"
