"""Encodes requests to the OSDs' object class "lock", and decodes its answers.

librados' own calls cannot take a lock and do something else in one operation; those that Python has cannot
list holders.
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
    return _encoded(body)


def lock_info_request(name: str) -> bytes:
    """Return the request for a lock's holders (cls_lock_get_info_op)."""
    return _encoded(_packed(name))


def holders(answer: bytes) -> int:
    """Return how many hold a lock, from the answer to `lock_info_request`; those that expired are left out.

    It begins with a map of the holders (cls_lock_get_info_reply), of which the OSD has removed the expired.
    """
    _, _, _, number = struct.unpack_from("<BBII", answer)
    return int(number)


def _encoded(body: bytes) -> bytes:
    return struct.pack("<BBI", VERSION, OLDEST, len(body)) + body


def _packed(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()
