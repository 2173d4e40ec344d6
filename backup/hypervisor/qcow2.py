"""Checks whether a qcow2 file that QEMU has open is complete, and whether one needs another file.

QEMU writes data at once, but the tables that refer to new clusters only at a flush, such as that of a pause.
(https://www.qemu.org/docs/master/interop/qcow2.html)
"""

from __future__ import annotations

import struct
from itertools import chain

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # up to the offset of the internal snapshots
KNOWN_FEATURES = 0b11  # dirty refcounts, corrupt: no other changes what the tables are like
DATA_FILE = 0b100  # feature: the data is in a file of its own
HEADER_SIZE = 104  # bytes of the header that are read, at most
OFFSET = 0x00FFFFFFFFFFFE00  # of a cluster, in an entry of a table
COMPRESSED = 1 << 62
SECTOR = 512


def needed_file(header: bytes) -> str:
    """Return what other file the qcow2 image with this header needs, "" if none, or if it is no qcow2."""
    if header[:4] != MAGIC or len(header) < HEADER.size:
        return ""
    _, version, backing, *_ = HEADER.unpack_from(header)
    features = header[HEADER.size : HEADER.size + 8] if version > 2 else b""
    if int.from_bytes(features, "big") & DATA_FILE:
        return "a data file"
    return "a backing file" if backing else ""


def may_lack_data(content: bytes) -> bool:
    """Return whether this is a qcow2 file with clusters that none of its tables refers to."""
    if content[:4] != MAGIC:
        return False
    try:
        referenced, cluster = _referenced(content)
    except (struct.error, ValueError):  # cut off, or of a kind that is not understood
        return True
    return not set(range(-(-len(content) // cluster))) <= referenced


def _referenced(content: bytes) -> tuple[set[int], int]:
    """Return the clusters in use, and their size. Raises struct.error, ValueError."""
    header = HEADER.unpack_from(content)
    _, version, _, _, bits, _, _, l1_size, l1_offset, counts, count_clusters, snapshots, _ = header
    (features,) = struct.unpack_from(">Q", content, HEADER.size) if version > 2 else (0,)
    if snapshots or features & ~KNOWN_FEATURES or not 9 <= bits <= 21:
        raise ValueError("internal snapshots, or features that are not understood")
    cluster = 1 << bits
    tables = _entries(content, l1_offset, l1_size)
    blocks = _entries(content, counts, count_clusters * cluster // 8)
    data = (entry for table in tables for entry in _entries(content, table & OFFSET, cluster // 8))
    spans = chain(
        [(0, cluster), (l1_offset, l1_size * 8), (counts, count_clusters * cluster)],
        ((entry & OFFSET, cluster) for entry in (*tables, *blocks)),
        (_span(entry, bits) for entry in data),
    )
    used = (range(start >> bits, -(-(start + length) // cluster)) for start, length in spans)
    return set(chain.from_iterable(used)), cluster


def _entries(content: bytes, offset: int, count: int) -> list[int]:
    return [entry for entry in struct.unpack_from(f">{count}Q", content, offset) if entry & ~1]


def _span(entry: int, bits: int) -> tuple[int, int]:
    """Return where the data of an entry of a level 2 table is, and its length."""
    if not entry & COMPRESSED:
        return entry & OFFSET, 1 << bits
    shift = 62 - (bits - 8)
    start = entry & ((1 << shift) - 1)
    sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1
    return start, sectors * SECTOR - start % SECTOR
