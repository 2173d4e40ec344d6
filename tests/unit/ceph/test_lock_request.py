"""backup/ceph/lock_request.py: what the object class "lock" answers."""

from __future__ import annotations

import pytest

from backup.ceph.lock_request import holders, lock_info_request, lock_request

# As cls_lock_get_info_reply encodes it: a map of holders (none), the type of lock (exclusive), a tag ("").
NOBODY = bytes.fromhex("0101090000000000000001" + "00000000")


def test_a_lock_that_nobody_holds_has_no_holder() -> None:
    assert holders(NOBODY) == 0


def test_requests_are_encoded_with_their_length() -> None:
    assert lock_info_request("name") == bytes.fromhex("0101" + "08000000" + "04000000") + b"name"
    request = lock_request("name", "me", 30)
    assert request[:6] == bytes.fromhex("0101") + (len(request) - 6).to_bytes(4, "little")


def test_an_answer_that_is_cut_short_is_an_error() -> None:
    with pytest.raises(Exception, match="requires a buffer"):
        holders(NOBODY[:8])
