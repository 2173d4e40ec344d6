"""What the OSDs' object class "lock" takes, as bytes.

librados has calls for it, but none that takes a lock and does something else in one operation.
"""

from __future__ import annotations

import struct

MAY_RENEW = 1 << 0  # LIBRADOS_LOCK_FLAG_MAY_RENEW
EXCLUSIVE = 1  # ClsLockType of cls_lock_types.h
VERSION, OLDEST = 1, 1  # of the encoding, and of who can read it


def lock_request(name: str, owner: str, duration: int) -> bytes:
    """Give the request to take a lock, or to renew it, for `duration` seconds (cls_lock_ops.h)."""
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
