"""The frequency of the host's time stamp counter, which a guest under TCG sees as its own.

A guest that boots on a busy host measures it wrong, by a factor of seven as seen: its clock is wrong, and the
slow one that it takes instead keeps a third of a processor of the host busy. So it is told the frequency.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from functools import cache
from typing import Callable

RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
INTERVAL = 0.1  # seconds between the two readings
EXACT = 20_000  # nanoseconds at most between the clock's readings before and after one of the counter


@cache
def kilohertz() -> int:
    """Return the frequency of the counter in kHz, within one part in a thousand."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(RDTSC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    began, first = _reading(counter)
    time.sleep(INTERVAL)
    ended, last = _reading(counter)
    return round((last - first) * 1_000_000 / (ended - began))


def _reading(counter: Callable[[], int]) -> tuple[int, int]:
    """Return the time in nanoseconds and the counter at that time."""
    while True:
        before, value, after = time.monotonic_ns(), counter(), time.monotonic_ns()
        if after - before <= EXACT:  # otherwise another process ran in between
            return (before + after) // 2, value
