"""A directory with restore points, seen with qemu-img alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outputs.directory import Directory

from ..samples import UUID
from .saved_samples import Disks

CHAIN = 14


def directory(tmp_path: Path, kind: str = "qcow2", chain: int = CHAIN) -> Directory:
    """Give an output with an empty directory."""
    root = tmp_path / "backups"
    root.mkdir(parents=True, exist_ok=True)
    return Directory(root, kind, chain, str(tmp_path / "run"), streams=2, limit=60, lock_wait=5)


def qemu_img(*words: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def content_of(output: Directory, run: str, scratch: Path) -> Disks:
    """Give the disks of a restore point as qemu-img alone reads them; it checks them, too."""
    found = {}
    for path in sorted((output.root / UUID / run).glob(f"*.{output.kind}")):
        if output.kind == "qcow2":
            qemu_img("check", "-q", path)
            qemu_img("convert", "-f", "qcow2", "-O", "raw", path, scratch)
        found[path.stem] = (scratch if output.kind == "qcow2" else path).read_bytes()
    return found


def rounded_up(disks: Disks) -> Disks:
    """Give disks as qcow2 has them: of whole clusters."""
    return {target: data.ljust(-(-len(data) // 65536) * 65536, b"\0") for target, data in disks.items()}


def chain_of(path: Path) -> Sequence[str]:
    """Give the runs of the files that it takes to read one, as qemu-img finds them."""
    listed: list[dict[str, Any]] = json.loads(qemu_img("info", "--backing-chain", "--output=json", path))
    return [Path(one["filename"]).parent.name for one in listed]


def files(output: Directory) -> Sequence[str]:
    """List all files and directories below the directory."""
    return sorted(str(path.relative_to(output.root)) for path in output.root.rglob("*"))
