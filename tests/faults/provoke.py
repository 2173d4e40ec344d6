"""Faults as they happen, and the moments at which they do."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.node import Node
from tests.lab import Lab


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process of the lab stand still during the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def stop_agent(lab: Lab, name: str, seconds: int) -> None:
    """Have the guest agent stand still for a while; its channel stays open."""
    line = f"kill -STOP $(pidof qemu-ga); sleep {seconds}; kill -CONT $(pidof qemu-ga)"
    call = {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", line]}}
    lab.virsh("qemu-agent-command", name, json.dumps(call))


def streaming(node: Node) -> bool:
    """Tell whether restic is being fed the image that takes a while."""
    return bool(node.processes("--stdin-filename=vdb.img"))


def received_bytes(node: Node) -> int:
    """Tell how many bytes restic has read, while it is fed the image that takes a while."""
    for pid in node.processes("--stdin-filename=vdb.img"):
        return int(re.findall(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[0])
    return 0


def held(node: Node) -> bool:
    """Tell whether a guest is noted as held still."""
    return bool(list(node.runtime_dir.glob("held/*.json")))


def restic_script(node: Node, lines: str) -> Path:
    """Make a restic that does something else in some cases."""
    path = node.directory / "restic"
    path.write_text(f'#!/bin/sh\n{lines}\nexec restic "$@"\n')
    path.chmod(0o755)
    return path
