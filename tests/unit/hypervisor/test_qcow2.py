"""backup/hypervisor/qcow2.py: is NVRAM that QEMU has open complete? With files of the real qemu-img."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backup.hypervisor.qcow2 import HEADER_SIZE, may_lack_data, needed_file

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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ""),
        (("-o", "compat=0.10"), ""),
        (("-b", "base", "-F", "raw"), "a backing file"),
        (("-b", "base", "-F", "raw", "-o", "compat=0.10"), "a backing file"),
        (("-o", "data_file=data"), "a data file"),
        (("-o", "data_file=data,data_file_raw=on"), "a data file"),
        (("-o", "extended_l2=on,lazy_refcounts=on"), ""),
    ],
)
def test_a_header_shows_which_other_file_is_needed(
    tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "base").write_bytes(bytes(MIB))
    command = ["qemu-img", "create", "-f", "qcow2", *options, "overlay", "1M"]
    subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert needed_file((tmp_path / "overlay").read_bytes()[:HEADER_SIZE]) == expected


@pytest.mark.parametrize(
    "header", [b"", b"QFI\xfb", b"QFI\xfb" + bytes(20), bytes(HEADER_SIZE), b"LUKS" + b"\xff" * 100]
)
def test_what_is_no_qcow2_header_needs_nothing(header: bytes) -> None:
    assert needed_file(header) == ""


def test_no_header_does_harm() -> None:
    assert needed_file(b"QFI\xfb" + b"\xff" * 100) == "a data file"
    assert needed_file(b"QFI\xfb" + b"\0\0\0\2" + b"\xff" * 64) == "a backing file"
