"""outputs/segments/numbers.py, read_segments.py: sets of segments, and what was read of them."""

from __future__ import annotations

import random

import pytest

from backup.restore_point.checksums import Checksums
from outputs.segments.layout import Segments
from outputs.segments.numbers import Numbers
from outputs.segments.read_segments import ReadSegments

from ..samples import MIB

LIMIT = 40


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_set_of_numbers(seed: int) -> None:
    drawn = random.Random(seed)
    numbers, expected = Numbers(LIMIT), set()
    for _ in range(30):
        one = drawn.randrange(LIMIT)
        if drawn.random() < 0.3:
            numbers.discard(one)
            expected.discard(one)
        elif drawn.random() < 0.5:
            numbers.add(one)
            expected.add(one)
        else:
            some = range(one, one + drawn.randrange(6))
            numbers.update(some)
            expected.update(number for number in some if number < LIMIT)
        assert [*numbers] == sorted(expected)
        assert len(numbers) == len(expected)
        assert [*numbers.others()] == sorted({*range(LIMIT)} - expected)
        assert {number for number in range(-2, LIMIT + 2) if number in numbers} == expected
        runs = [number for first, last in numbers.runs() for number in range(first, last + 1)]
        assert runs == sorted(expected)
        ends = [last + 1 for _, last in numbers.runs()]
        assert not [end for end in ends if end in numbers], "adjacent runs are one"


def test_all_numbers_and_none() -> None:
    assert [*Numbers(3, every=True)] == [0, 1, 2]
    assert [*Numbers(3, every=True).runs()] == [(0, 2)]
    assert [*Numbers(0, every=True).runs()] == []
    numbers = Numbers(3, every=True)
    numbers.clear()
    assert [*numbers] == []


def checksums(*offsets: int) -> Checksums:
    found = Checksums()
    for offset in offsets:
        found.add(offset, b"data of %d" % offset)
    return found


def test_checksums_are_kept_in_the_order_of_the_image_whatever_was_read_first() -> None:
    read = ReadSegments(Segments("vda", 32 * MIB, 8 * MIB))
    second, third, fourth = checksums(8 * MIB, 12 * MIB), checksums(20 * MIB), checksums(24 * MIB)
    read.keep(3, fourth)
    read.keep(1, second)
    read.keep(2, third)
    read.keep(0, Checksums())
    assert [*read] == [0, 1, 2, 3]
    assert [*read.records()] == [*second, *third, *fourth]


def test_a_segment_that_is_read_again_has_its_last_checksums_only() -> None:
    read = ReadSegments(Segments("vda", 32 * MIB, 8 * MIB))
    read.keep(1, checksums(8 * MIB, 12 * MIB))
    read.keep(1, checksums(12 * MIB))
    assert [*read.records()] == [*checksums(12 * MIB)]
    read.clear()
    assert ([*read.records()], len(read), 1 in read) == ([], 0, False)
