"""backup/hypervisor/qcow2.py: is NVRAM that QEMU has open complete? With files of the real qemu-img."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backup.hypervisor.qcow2 import may_lack_data

MIB = 1 << 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.write_bytes(b"variables" * 9000 + bytes(2 * MIB) + b"\1" * 70000)
    return path


def converted(raw: Path, *options: str) -> bytes:
    new = raw.with_name("new")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, new], check=True)
    return new.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-c",),
        ("-o", "cluster_size=4096", "-S", "4096"),
        ("-o", "cluster_size=512"),
        ("-o", "compat=0.10"),
        ("-o", "preallocation=metadata"),
        ("-o", "lazy_refcounts=on"),
    ],
)
def test_a_file_that_was_closed_is_complete(raw: Path, options: tuple[str, ...]) -> None:
    content = converted(raw, *options)
    assert not may_lack_data(content)
    assert may_lack_data(content + b"\1" * (2 << 20)), "a cluster that no table refers to yet"


def test_what_cannot_be_understood_counts_as_incomplete(raw: Path) -> None:
    assert may_lack_data(converted(raw, "-o", "extended_l2=on"))
    assert may_lack_data(converted(raw)[:100])
    assert not may_lack_data(raw.read_bytes()), "a raw file is what QEMU has written"
