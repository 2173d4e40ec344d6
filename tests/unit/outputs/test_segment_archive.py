"""outputs/segments/archive.py: an image is read from the archive of its segments, or an error raised."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from backup.errors import BackupError
from backup.system.pipe_reader import PipeReader
from backup.transfer.compare import pieces_from_output
from backup.transfer.restore_stream import next_piece, require_end
from outputs.segments.archive import SegmentSource
from outputs.segments.layout import PER_DIRECTORY, Segments
from tests.integration.scratch_image import source_of

from ..raising import raises
from ..samples import MIB

SEGMENT = 70_000  # no multiple of what an archive is padded to
SIZE = 3 * SEGMENT + 1000
SEGMENTS = Segments("cciss/c0d0", SIZE, SEGMENT)
CONTENT = random.Random(9).randbytes(SIZE)
PARTS = [CONTENT[at : at + SEGMENT] for at in range(0, SIZE, SEGMENT)]
PATHS = [SEGMENTS.path(number) for number in range(len(SEGMENTS))]

Entries = Sequence[tuple[str, bytes]]
GOOD: Entries = [*zip(PATHS, PARTS)]


def archive(entries: Entries, form: int = tarfile.PAX_FORMAT, slashes: str = "/") -> bytes:
    """Pack files as `restic dump` of a directory does: directories first, times in nanoseconds."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for name in dict.fromkeys(parent for path, _ in entries for parent in parents(path)):
            entry = tarfile.TarInfo(f"{slashes}{name}/")
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        for name, content in entries:
            entry = tarfile.TarInfo(f"{slashes}{name}")
            entry.size, entry.mtime = len(content), 1_700_000_000.123456
            if form == tarfile.PAX_FORMAT:
                entry.pax_headers = {"comment": "x" * 600}
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def parents(path: str) -> Sequence[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


@contextmanager
def opened(packed: bytes, segments: Segments = SEGMENTS) -> Iterator[SegmentSource]:
    with source_of(packed) as source:
        yield SegmentSource(source, segments)


def image_from(packed: bytes, segments: Segments = SEGMENTS) -> bytes:
    """Read an image as a restore and a verification do."""
    with opened(packed, segments) as source:
        content = b"".join(map(bytes, pieces_from_output(source, segments.size)))
        assert source.received == segments.size
        return content


@pytest.mark.parametrize("slashes", ["", "/"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_bytes_are_the_segments_in_order(form: int, slashes: str) -> None:
    assert image_from(archive(GOOD, form, slashes)) == CONTENT


@pytest.mark.parametrize("at_once", [1, 511, SEGMENT, SEGMENT + 1, 10 * SIZE])
def test_reads_may_have_any_size(at_once: int) -> None:
    segments = Segments("vda", 2000, 600)
    content = CONTENT[:2000]
    parts = [(segments.path(number), content[number * 600 :][:600]) for number in range(4)]
    got = bytearray()
    with opened(archive(parts), segments) as source:
        buffer = bytearray(at_once)
        while count := source.fill(memoryview(buffer)):
            got += buffer[:count]
            assert source.received == len(got)
            assert count == at_once or len(got) == 2000
    assert got == content


def test_segments_in_several_directories_are_one_image() -> None:
    segments = Segments("vda", 300 * 512, 512)
    assert len(segments) > 2 * PER_DIRECTORY
    parts = [(segments.path(number), CONTENT[number * 512 :][:512]) for number in range(300)]
    assert image_from(archive(parts), segments) == CONTENT[: segments.size]


def test_an_empty_image_has_no_segments() -> None:
    segments = Segments("vda", 0, SEGMENT)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        directory = tarfile.TarInfo("vda")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
    assert image_from(packed.getvalue(), segments) == b""


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (GOOD[1:], f"the repository has /{PATHS[1]} (70000 bytes) instead of {PATHS[0]} (70000 bytes)"),
        (
            [*GOOD[:1], *GOOD[2:]],
            f"the repository has /{PATHS[2]} (70000 bytes) instead of {PATHS[1]} (70000 bytes)",
        ),
        (
            [*GOOD[:2], GOOD[1]],
            f"the repository has /{PATHS[1]} (70000 bytes) instead of {PATHS[2]} (70000 bytes)",
        ),
        (GOOD[:3], f"the output ended after {3 * SEGMENT} of {SIZE} bytes"),
        ([], f"the output ended after 0 of {SIZE} bytes"),
        ([*GOOD, (f"{PATHS[3]}0", b"")], f"unexpected file in the repository: /{PATHS[3]}0"),
        ([*GOOD, GOOD[3]], f"unexpected file in the repository: /{PATHS[3]}"),
        (
            [GOOD[0], (PATHS[1], PARTS[1][:-1]), *GOOD[2:]],
            f"the repository has /{PATHS[1]} (69999 bytes) instead of {PATHS[1]} (70000 bytes)",
        ),
        (
            [GOOD[0], (PATHS[1], PARTS[1] + b"x"), *GOOD[2:]],
            f"the repository has /{PATHS[1]} (70001 bytes) instead of {PATHS[1]} (70000 bytes)",
        ),
        (
            [("vda/0000/000000", PARTS[0])],
            f"the repository has /vda/0000/000000 (70000 bytes) instead of {PATHS[0]} (70000 bytes)",
        ),
        (
            [GOOD[1], GOOD[0]],
            f"the repository has /{PATHS[1]} (70000 bytes) instead of {PATHS[0]} (70000 bytes)",
        ),
    ],
)
def test_other_files_than_the_segments_in_order_are_an_error(entries: Entries, message: str) -> None:
    with raises(message):
        image_from(archive(entries))


@pytest.mark.parametrize("length", [0, 1, 511, 512, 1024, 5000, SEGMENT + 5000, 2 * SEGMENT, 3 * SEGMENT])
def test_an_archive_that_ends_early_is_an_image_that_ends_early(length: int) -> None:
    packed = archive(GOOD)
    with pytest.raises(BackupError, match=rf"^the output ended after \d+ of {SIZE} bytes$"):
        image_from(packed[:length])


def test_the_end_of_an_archive_ends_the_image() -> None:
    packed = archive(GOOD[:2])
    with raises(f"the output ended after {2 * SEGMENT} of {SIZE} bytes"):
        image_from(packed + archive(GOOD[2:]))


@pytest.mark.parametrize("garbage", [CONTENT, b"<html>" * 1000])
def test_what_is_no_archive_is_an_error(garbage: bytes) -> None:
    with pytest.raises(BackupError, match="the archive from the repository is damaged: "):
        image_from(garbage)


def test_a_damaged_header_is_an_error() -> None:
    packed = bytearray(archive(GOOD, tarfile.USTAR_FORMAT))
    packed[packed.index(PARTS[1]) - 500] ^= 1
    with opened(bytes(packed)) as source:
        assert next_piece(source, bytearray(4 * MIB), 0, SEGMENT) == PARTS[0]
        with pytest.raises(BackupError, match="archive from the repository is damaged"):
            source.fill(memoryview(bytearray(1)))


def test_after_the_last_segment_the_archive_is_read_to_its_end_so_that_restic_can_end() -> None:
    packed = archive(GOOD) + bytes(3 * MIB)  # more than a pipe holds
    with source_of(packed) as through:
        source = SegmentSource(through, SEGMENTS)
        next_piece(source, bytearray(4 * MIB), 0, SIZE)
        require_end(source, SIZE)
        assert through.received == len(packed)
        require_end(source, SIZE)


def test_a_stall_is_reported_as_one() -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb"), os.fdopen(into, "wb", buffering=0) as writer:
        writer.write(archive(GOOD)[:2000])
        source = SegmentSource(PipeReader(out, lambda: None, timeout=0), SEGMENTS)
        with raises("the output gave no byte for 0 s"):
            source.fill(memoryview(bytearray(SIZE)))


def with_links(numbers: Sequence[int], target: str = "../zeros") -> bytes:
    """Pack the segments, of which some are links, and the file of zeros after them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (path, part) in enumerate(GOOD):
            entry = tarfile.TarInfo(f"/{path}")
            if number in numbers:
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
            else:
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))
        zeros = tarfile.TarInfo(f"/{SEGMENTS.directory}/zeros")
        zeros.size = SEGMENT
        tar.addfile(zeros, io.BytesIO(bytes(SEGMENT)))
    return packed.getvalue()


@pytest.mark.parametrize("numbers", [[0], [1, 2], [0, 1, 2]])
def test_a_link_to_the_zeros_is_a_hole(numbers: Sequence[int]) -> None:
    parts = [bytes(SEGMENT) if number in numbers else part for number, part in enumerate(PARTS)]
    assert image_from(with_links(numbers)) == b"".join(parts)


@pytest.mark.parametrize(("number", "target"), [(1, "/etc/passwd"), (3, "../zeros")])
def test_a_link_to_anything_else_or_of_a_shorter_segment_is_an_error(number: int, target: str) -> None:
    with pytest.raises(
        BackupError, match=rf"the repository has /{PATHS[number]} \(0 bytes\) instead of {PATHS[number]}"
    ):
        image_from(with_links([number], target))


WIDE = Segments("vda", (2 * PER_DIRECTORY + 1) * 600, 600)


def with_linked_subdirectory(number: int, target: str = ".holes", name: str = "") -> bytes:
    """Pack segments, of which those of a subdirectory are one link, as restic dumps them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def link(path: str, to: str) -> None:
            entry = tarfile.TarInfo(f"/{path}")
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            tar.addfile(entry)

        for one in range(PER_DIRECTORY):  # sorts before all others
            link(f"vda/.holes/{one:03d}", "../zeros")
        for one in range(len(WIDE)):
            if one // PER_DIRECTORY != number:
                entry = tarfile.TarInfo(f"/{WIDE.path(one)}")
                entry.size = 600
                tar.addfile(entry, io.BytesIO(content_of(one)))
            elif not one % PER_DIRECTORY:
                link(name or WIDE.subdirectory(number), target)
        zeros = tarfile.TarInfo("/vda/zeros")
        zeros.size = 600
        tar.addfile(zeros, io.BytesIO(bytes(600)))
    return packed.getvalue()


def content_of(number: int) -> bytes:
    return (b"%d " % number * 600)[:600]


@pytest.mark.parametrize("number", [0, 1])
def test_a_link_in_place_of_a_subdirectory_is_as_many_holes(number: int) -> None:
    holes = {*WIDE.in_subdirectory(number)}
    parts = [bytes(600) if one in holes else content_of(one) for one in range(len(WIDE))]
    assert image_from(with_linked_subdirectory(number), WIDE) == b"".join(parts)


@pytest.mark.parametrize(
    ("number", "target", "name"),
    [(1, "/etc", ""), (1, "../vda/.holes", ""), (1, ".holes", "vda/0000"), (2, ".holes", "")],
)
def test_another_link_in_place_of_a_subdirectory_is_an_error(number: int, target: str, name: str) -> None:
    with pytest.raises(BackupError, match=r"the repository has /vda/000. "):
        image_from(with_linked_subdirectory(number, target, name), WIDE)
