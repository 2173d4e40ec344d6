"""Encodes requests to the OSDs' object class "lock", and decodes its answers.

librados' own calls cannot take a lock and do something else in one operation; those that Python has cannot
list holders.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAY_RENEW = 1 << 0  # LIBRADOS_LOCK_FLAG_MAY_RENEW
EXCLUSIVE = 1  # ClsLockType of cls_lock_types.h
VERSION, OLDEST = 1, 1  # of the encoding, and the oldest that can decode it
HEADER = struct.Struct("<BBI")  # of each structure: those two, and the length of what follows
ENTITY = struct.Struct("<Bq")  # entity_name_t: its type, and its number


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a client's number, as rados.Rados.get_instance_id() gives it, and its cookie."""

    client: int
    cookie: str


def lock_request(name: str, owner: str, duration: int, tag: str = "", flags: int = MAY_RENEW) -> bytes:
    """Return the request to take or renew a lock for `duration` seconds, 0 for no limit (cls_lock_ops.h)."""
    cookie, description = owner, owner
    body = b"".join(
        (
            _packed(name) + struct.pack("<B", EXCLUSIVE),
            *map(_packed, (cookie, tag, description)),
            struct.pack("<IIB", duration, 0, flags),
        )
    )
    return _encoded(body)


def lock_info_request(name: str) -> bytes:
    """Return the request for a lock's holders (cls_lock_get_info_op)."""
    return _encoded(_packed(name))


def holders(answer: bytes) -> Sequence[Holder]:
    """Return who holds a lock, from the answer to `lock_info_request`; those that expired are left out.

    It begins with a map of the holders (cls_lock_get_info_reply), of which the OSD has removed the expired:
    of each its name and cookie (locker_id_t), then what else is known of it (locker_info_t).
    """
    offset = HEADER.size
    (number,) = struct.unpack_from("<I", answer, offset)
    offset += 4
    found = []
    for _ in range(number):
        inside, offset = _structure(answer, offset)
        _, client = ENTITY.unpack_from(answer, inside)
        (length,) = struct.unpack_from("<I", answer, inside + ENTITY.size)
        begin = inside + ENTITY.size + 4
        found.append(Holder(client, answer[begin : begin + length].decode()))
        _, offset = _structure(answer, offset)
    return found


def _structure(answer: bytes, offset: int) -> tuple[int, int]:
    """Return where the content of the structure at an offset begins, and where the structure ends."""
    _, _, length = HEADER.unpack_from(answer, offset)
    return offset + HEADER.size, offset + HEADER.size + length


def _encoded(body: bytes) -> bytes:
    return HEADER.pack(VERSION, OLDEST, len(body)) + body


def _packed(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()
