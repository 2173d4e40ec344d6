"""outputs/segments/layout.py, snapshots.py: how an image is cut into files, and its tags."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from backup.model import Extent
from backup.stored import PointId, StoredImage
from outputs.restic_repository.snapshots import encoded, incomplete, segments_tag, stored_points
from outputs.segments.layout import MOST, PER_DIRECTORY, SMALLEST, Segments, pack_times, unpack_times

from ..samples import MIB, RUN, UUID
from .test_snapshots import listed

GIB, TIB = 1 << 30, 1 << 40
OBJECT = 4 * MIB
SIZES = (
    *(0, 1, 512, SMALLEST - 1, SMALLEST, SMALLEST + 1, 100 * MIB),
    *(256 * GIB - 1, 256 * GIB, 256 * GIB + 1, 300 * GIB, TIB, 16 * TIB - 512, 17 * TIB),
)


@pytest.mark.parametrize("size", SIZES)
def test_the_segments_cover_the_image_in_order_and_the_last_is_short(size: int) -> None:
    segments = Segments.for_image("vda", size)
    extents = [segments.extent(number) for number in range(len(segments))]
    assert sum(extent.length for extent in extents) == size
    assert [extent.offset for extent in extents] == [*range(0, size, segments.segment_size)]
    assert all(extent.length == segments.segment_size for extent in extents[:-1])
    assert all(0 < extent.length <= segments.segment_size for extent in extents[-1:])


@pytest.mark.parametrize("size", SIZES)
def test_the_number_of_files_is_limited(size: int) -> None:
    segments = Segments.for_image("vda", size)
    paths = [segments.path(number) for number in range(len(segments))]
    assert len({*paths}) == len(paths) <= MOST == 524288
    in_each = Counter(path.rpartition("/")[0] for path in paths)
    assert all(count <= PER_DIRECTORY == 128 for count in in_each.values())
    assert len(in_each) == -(-len(paths) // 128), "no directory is there that another has room for"


def test_names_sort_in_the_order_of_the_bytes() -> None:
    segments = Segments.for_image("vda", 16 * TIB)
    paths = [segments.path(number) for number in range(len(segments))]
    assert (paths[0], paths[128], paths[-1]) == ("vda/0000/000000", "vda/0001/000128", "vda/4095/524287")
    assert sorted(paths) == paths


def test_a_segment_is_twice_as_large_for_four_times_the_size() -> None:
    sizes = {size: Segments.for_image("vda", size).segment_size for size in SIZES}
    assert {size for size, segment in sizes.items() if segment == SMALLEST == 4 * MIB} == set(SIZES[:9])
    assert sizes[256 * GIB + 1] == sizes[300 * GIB] == sizes[TIB] == 8 * MIB
    later = {size: Segments.for_image("vda", size * TIB).segment_size // MIB for size in (4, 16, 32, 64)}
    assert later == {4: 16, 16: 32, 32: 64, 64: 128}, "from 16 TiB on as few as the names allow"


def bytes_read(size: int, share: float) -> float:
    """Return how many bytes are read for each byte of a share of an image's objects, changed at random."""
    segments, objects = Segments.for_image("vda", size), size // OBJECT
    changed = random.Random(1).sample(range(objects), int(objects * share))
    read = {number for one in changed for number in segments.touched(Extent(one * OBJECT, 1))}
    return len(read) * segments.segment_size / (len(changed) * OBJECT)


def test_scattered_changes_of_large_images_are_read_with_little_more() -> None:
    assert bytes_read(256 * GIB, 0.01) == 1
    assert bytes_read(TIB, 0.01) <= 2
    assert bytes_read(4 * TIB, 0.01) <= 4


def test_a_disk_s_directory_is_one_directory_whatever_the_target_is() -> None:
    assert Segments.for_image("cciss/c0d0", MIB).path(0) == "cciss_c0d0/0000/000000"


@pytest.mark.parametrize(
    ("extent", "touched"),
    [
        (Extent(0, 1), [0]),
        (Extent(SMALLEST - 1, 1), [0]),
        (Extent(SMALLEST - 1, 2), [0, 1]),
        (Extent(SMALLEST, SMALLEST), [1]),
        (Extent(SMALLEST, SMALLEST + 1), [1, 2]),
        (Extent(1, 3 * SMALLEST), [0, 1, 2, 3]),
        (Extent(3 * SMALLEST + 99, 1), [3]),
        (Extent(3 * SMALLEST, GIB), [3]),  # a whole object, beyond the image's end
        (Extent(4 * SMALLEST, 4 * MIB), []),
    ],
)
def test_a_single_byte_touches_its_segment(extent: Extent, touched: list[int]) -> None:
    assert [*Segments.for_image("vda", 3 * SMALLEST + 100).touched(extent)] == touched


def test_an_extent_across_an_edge_touches_both_segments() -> None:
    segments = Segments.for_image("vda", TIB)
    for second in range(1, len(segments), 1000):
        edge = segments.extent(second).offset
        assert [*segments.touched(Extent(edge - 1, 2))] == [second - 1, second]


@pytest.mark.parametrize("times", [(), (0,), (1, 2**62, 3), tuple(range(MOST))])
def test_times_are_unpacked_as_they_were_packed(times: tuple[int, ...]) -> None:
    packed = pack_times(times)
    assert len(packed) == 8 * len(times)
    assert tuple(unpack_times(packed)) == times


def test_times_are_packed_as_the_manifest_s_readers_expect_them() -> None:
    assert pack_times([0x0102030405060708, 1]) == bytes([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 1])


def test_the_tags_of_one_snapshot_name_all_disks() -> None:
    name = "ssd/tests/web root=1, 100%"
    tags = [segments_tag("vda", name, 4096), segments_tag("vdb.backing1", "vms/b", 0)]
    snapshots = [listed("1", UUID, RUN, *map(encoded, tags))]
    assert not any("," in tag for tag in snapshots[0]["tags"]), "restic would split it"
    (point,) = stored_points(snapshots)
    assert point.images == (StoredImage("vda", name, 4096, "1"), StoredImage("vdb.backing1", "vms/b", 0, "1"))
    assert incomplete(snapshots) == {PointId(RUN, UUID)}
    assert incomplete([*snapshots, listed("2", UUID, RUN, "definition")]) == set()


def test_segments_with_a_new_id_have_the_id_in_the_manifest_too() -> None:
    copied = {**listed("3", UUID, RUN, segments_tag("vda", "vms/a", 1)), "original": "1"}
    (point,) = stored_points([copied])
    assert point.images == (StoredImage("vda", "vms/a", 1, "3", "1"),)
