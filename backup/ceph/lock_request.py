"""Encodes requests to the OSDs' object class "lock".

librados' own calls cannot take a lock and do something else in one operation.
"""

from __future__ import annotations

import struct

MAY_RENEW = 1 << 0  # LIBRADOS_LOCK_FLAG_MAY_RENEW
EXCLUSIVE = 1  # ClsLockType of cls_lock_types.h
VERSION, OLDEST = 1, 1  # of the encoding, and the oldest that can decode it


def lock_request(name: str, owner: str, duration: int) -> bytes:
    """Return the request to take or renew a lock for `duration` seconds (cls_lock_ops.h)."""
    cookie, tag, description = owner, "", owner
    body = b"".join(
        (
            _packed(name) + struct.pack("<B", EXCLUSIVE),
            *map(_packed, (cookie, tag, description)),
            struct.pack("<IIB", duration, 0, MAY_RENEW),
        )
    )
    return struct.pack("<BBI", VERSION, OLDEST, len(body)) + body


def _packed(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()
