"""Progress of a real run: on a terminal, in `systemctl status`, in lines, and for whoever looks at `ps`."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.node import SLOW, Node, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, MIB, WEB, large_domain


@pytest.fixture(scope="module")
def large(lab: Lab) -> Iterator[str]:
    """Give a domain with an image that takes a while."""
    with large_domain(lab) as name:
        yield name


def test_a_terminal_shows_each_job_through_resizes_and_is_left_as_it_was(node: Node, large: str) -> None:
    with node.on_terminal("backup", large, ARCHIVE, MAX_READ_RATE=4 * MIB) as terminal:
        modes = terminal.modes()
        # not all of them: what takes less than the view's half second may never be seen
        terminal.wait_for(rf"{large} +(preparing|making snapshots|streaming)")
        terminal.wait_for(rf"{large} +streaming vdb .*\d+ %  .*MiB of .*MiB  .*MiB/s")
        terminal.wait_for(r"of 2 domains done, \d+ %, .* of .*, running for")
        terminal.resize(60)
        terminal.wait_for(rf"{large} +streaming vdb +\d+ %  +\d+", after=len(terminal.written))
        narrow = len(terminal.written)
        terminal.wait_for(rf"{large} +streaming vdb +\d+ %  +\d+.*\n.* domains done", after=narrow)
        rows = [row for row in re.split("[\r\n]+", terminal.text(narrow)) if "saved" not in row]
        assert max(map(len, rows)) <= 60
        terminal.resize(120)
        terminal.wait_for(rf"{large} +streaming vdb .*MiB of .*MiB", after=len(terminal.written))
        terminal.wait_for(rf"{large}: vda .* saved: ")
        terminal.process.terminate()  # a session in a shell's background would ignore Ctrl-C
        assert terminal.read_to_end() == 143
        assert terminal.modes() == modes
    assert "\x1b[?25l" not in terminal.written, "the cursor was never hidden"
    assert re.search(rf"{large}: vda .* saved: ", terminal.text()), "what is said stands above"
    assert f"error: {large}: failed: interrupted" in terminal.text()
    assert terminal.text().splitlines()[-1].startswith("run "), "the view is gone"


def test_systemd_shows_the_progress_and_process_titles_show_the_task(
    node: Node, large: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        node.environment["NOTIFY_SOCKET"] = manager.getsockname()
        with node.started("backup", large, ARCHIVE, MAX_READ_RATE=4 * MIB) as process:
            status = r"STATUS=\d of 2 domains done, \d+ %, .* MiB of .* MiB, .*"
            while not re.match(rf"{status}; {large} streaming vdb", manager.recv(4096).decode()):
                pass
            worker = f"virt-rbd-backup: {large}: streaming vdb"
            wait_until(lambda: node.processes(worker), 30, "the worker's title")
            assert process.pid in node.processes("virt-rbd-backup: backup")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=300)


def test_lines_report_phases_and_progress_of_a_job(node: Node, large: str) -> None:
    words = ("backup", large, "--verify", "--progress", "always")
    done = node.run(*words, MAX_READ_RATE=SLOW, PROGRESS_INTERVAL=1)
    assert done.returncode == 0
    for phase in ("preparing", "making snapshots", "tidying up"):
        assert done.stderr.count(f"{large}: {phase}\n") == 1
    assert done.stderr.count(f"{large}: verifying\n") == 2, "each image as soon as it is saved"
    far = re.findall(rf"{large}: streaming vdb, (\d+) % \(.* of .*\), .*MiB/s\n", done.stderr)
    assert len(far) > 1
    assert all(int(part) <= 60 for part in far), "what is verified too is half done when it is saved"


def test_a_restore_and_a_verification_report_their_phases_too(node: Node, tmp_path: Path) -> None:
    assert node.run("backup", WEB).returncode == 0
    told = ("--progress", "always")
    restored = node.run("restore", WEB, "--disk", "vda", "--to-file", str(tmp_path / "vda"), *told)
    assert f"{WEB}: restoring\n" in restored.stderr
    assert f"{WEB}: verifying\n" in node.run("verify", WEB, *told).stderr
