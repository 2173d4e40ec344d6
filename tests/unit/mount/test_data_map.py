"""backup/mount/data_map.py: what is a hole is known from all checksums, or not at all."""

from __future__ import annotations

import pytest

from backup.mount.data_map import DataMap
from backup.restore_point.checksums import Checksums
from backup.system.spool import Spool

from ..samples import MIB


@pytest.fixture
def checksums() -> Checksums:
    checksums = Checksums()
    checksums.add(8 * MIB, bytes(MIB))
    return checksums


def test_what_has_no_checksum_is_a_hole(checksums: Checksums) -> None:
    data = DataMap.from_manifest(checksums.packed, MIB)
    assert (data.has_data(8 * MIB, MIB), data.has_data(0, MIB), data.has_data(9 * MIB, MIB)) == (
        True,
        False,
        False,
    )


@pytest.mark.parametrize("data_bytes", [0, MIB - 1, 2 * MIB])
def test_a_manifest_without_all_of_its_checksums_knows_no_holes(
    checksums: Checksums, data_bytes: int
) -> None:
    data = DataMap.from_manifest(checksums.packed, data_bytes)
    assert data.has_data(0, MIB)


def test_an_old_manifest_without_checksums_knows_no_holes_unless_the_image_is_empty() -> None:
    assert DataMap.from_manifest(Spool(), MIB).has_data(0, MIB)
    assert not DataMap.from_manifest(Spool(), 0).has_data(0, MIB)
