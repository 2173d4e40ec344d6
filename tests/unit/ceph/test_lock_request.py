"""backup/ceph/lock_request.py: what the object class "lock" answers."""

from __future__ import annotations

import pytest

from backup.ceph.lock_request import Holder, holders, lock_info_request, lock_request

# As cls_lock_get_info_reply encodes it: a map of holders (none), the type of lock (exclusive), a tag ("").
NOBODY = bytes.fromhex("0101090000000000000001" + "00000000")
HEADER = "0101%02x000000"
# One holder: the structure of its name (client.4215, which is 0x1077) and cookie ("auto 7"), and one of ten
# bytes with what else is known of it.
HELD = (
    HEADER % 19
    + "08"  # CEPH_ENTITY_TYPE_CLIENT
    + "7710000000000000"
    + "06000000"
    + b"auto 7".hex()
    + HEADER % 10
    + 10 * "ff"
)


def test_a_lock_that_nobody_holds_has_no_holder() -> None:
    assert not holders(NOBODY)


@pytest.mark.parametrize("number", [1, 2])
def test_holders_are_clients_with_their_cookies(number: int) -> None:
    answer = bytes.fromhex(HEADER % 99 + f"0{number}000000" + number * HELD + "01" + "00000000")
    assert holders(answer) == number * [Holder(4215, "auto 7")]


def test_requests_are_encoded_with_their_length() -> None:
    assert lock_info_request("name") == bytes.fromhex("0101" + "08000000" + "04000000") + b"name"
    request = lock_request("name", "me", 30)
    assert request[:6] == bytes.fromhex("0101") + (len(request) - 6).to_bytes(4, "little")


def test_an_answer_that_is_cut_short_is_an_error() -> None:
    with pytest.raises(Exception, match="requires a buffer"):
        holders(NOBODY[:8])
    with pytest.raises(Exception, match="requires a buffer"):
        holders(bytes.fromhex(HEADER % 99 + "01000000" + HELD)[:20])
