"""The layout of an image's segments: the files that restic sees, each read in full if any byte changed.

A segment without data is a symbolic link to one file of zeros: it is never read, and yet `cat` of all files
in the order of their names gives the image. A subdirectory of such segments only is itself a link, to a
hidden one that has as many: restic looks at one link instead of all of them.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from backup.model import Extent

# Bytes. With 16 MiB a first backup takes 1.13 times as long as streaming and one after scattered changes of a
# tenth of the objects 0.35 times, with 4 MiB 1.02 and 0.28; a run without changes takes as long with either.
SMALLEST = 4 << 20
# Per image. restic checks each in every run, which takes 0.1 ms: 16 MiB for 1 TiB would save 6 s of that, but
# already where 0.1 % of its objects have changed here and there, reading twice as much takes longer.
FEW = 65536  # of the smallest size; twice as many of twice the size
MOST = 524288  # of any size
MOST_NAMES = 1000000  # paths of more would not sort in the order of the bytes
ZEROS = "zeros"  # the file's name, in the disk's directory
ZEROS_LINK = f"../{ZEROS}"
HOLES = ".holes"  # the hidden subdirectory, in the disk's directory; also what links to it contain
# The last files: restic reads files in the order of their names, and these sort after those of all disks.
MANIFEST_FILE = "~definition.tar"
CHECKSUM_FILE = "~definition.tar.sha256"  # as sha256sum writes it
PER_DIRECTORY = 128  # restic rewrites the whole list of a directory if one of its files has changed


@dataclass(frozen=True)
class Segments:
    """The files of one disk's image, by their numbers from 0. Sizes in bytes."""

    target: str
    size: int
    segment_size: int

    @classmethod
    def for_image(cls, target: str, size: int) -> Segments:
        """Choose the segment size: 4 MiB up to 256 GiB, then twice as much for four times the size.

        From 16 TiB on twice as much for twice the size.
        """
        segment_size = SMALLEST
        while segment_size * min(MOST, FEW * segment_size // SMALLEST) < size:
            segment_size *= 2
        return cls(target, size, segment_size)

    @property
    def usable(self) -> bool:
        """Whether the sizes are those of segments that can be shown to restic."""
        fits = self.segment_size > 0 and self.segment_size % SMALLEST == 0
        return fits and len(self) <= MOST_NAMES

    def __len__(self) -> int:
        return -(-self.size // self.segment_size)

    @property
    def directory(self) -> str:
        """The disk's directory; its subdirectories hold PER_DIRECTORY segments each."""
        return self.target.replace("/", "_")

    @property
    def subdirectories(self) -> int:
        return -(-len(self) // PER_DIRECTORY)

    def in_subdirectory(self, number: int) -> range:
        """Return the numbers of the segments in a subdirectory."""
        return range(number * PER_DIRECTORY, min(len(self), (number + 1) * PER_DIRECTORY))

    def path(self, number: int) -> str:
        """Return a segment's path. The paths sort in the order of the bytes in the image."""
        return f"{self.subdirectory(number // PER_DIRECTORY)}/{segment_name(number)}"

    def subdirectory(self, number: int) -> str:
        """Return a subdirectory's path."""
        return f"{self.directory}/{subdirectory_name(number)}"

    def extent(self, number: int) -> Extent:
        """Return a segment's extent in the image. All but the last have the same length."""
        start = number * self.segment_size
        return Extent(start, min(self.segment_size, self.size - start))

    def can_be_link(self, number: int) -> bool:
        """Return whether a segment has the length of the file of zeros."""
        return self.extent(number).length == self.segment_size

    def can_be_linked(self, subdirectory: int) -> bool:
        """Return whether a subdirectory has as many segments as the hidden one, all of their full length."""
        segments = self.in_subdirectory(subdirectory)
        return len(segments) == PER_DIRECTORY and self.can_be_link(segments[-1])

    def touched(self, extent: Extent) -> range:
        """Return the numbers of the segments that overlap an extent."""
        end = min(extent.offset + extent.length, self.size)
        return range(extent.offset // self.segment_size, -(-end // self.segment_size))


def subdirectory_name(number: int) -> str:
    return f"{number:04d}"


def hole_name(number: int) -> str:
    """Return the name of a link in the hidden subdirectory."""
    return f"{number:03d}"


def segment_name(number: int) -> str:
    return f"{number:06d}"


def pack_times(times: Iterable[int]) -> bytes:
    """Pack the segments' times, in nanoseconds since 1970, for the manifest: 8 bytes each, big-endian."""
    return _big_endian(array("q", times)).tobytes()


def unpack_times(packed: bytes) -> array[int]:
    return _big_endian(array("q", packed[: len(packed) // 8 * 8]))


def _big_endian(times: array[int]) -> array[int]:
    if sys.byteorder == "little":
        times.byteswap()
    return times
