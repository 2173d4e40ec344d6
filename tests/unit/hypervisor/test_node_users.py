"""node_users.py: which users QEMU runs as."""

from __future__ import annotations

import pytest

from backup.hypervisor.node_users import qemu_users

CAPABILITIES = """
<capabilities><host>
  <secmodel><model>apparmor</model><doi>0</doi></secmodel>
  <secmodel>
    <model>dac</model><baselabel type='kvm'>{}</baselabel><baselabel type='qemu'>+0:+0</baselabel>
  </secmodel>
</host></capabilities>"""


@pytest.mark.parametrize(
    ("label", "users"),
    [
        ("+64055:+64055", [64055, 0]),
        ("64055:64055", [64055, 0]),
        ("root:root", [0, 0]),
        ("nobody-here:kvm", [0]),
        ("", [0]),
    ],
)
def test_the_users_of_all_guests_are_in_libvirts_capabilities(label: str, users: list[int]) -> None:
    assert list(qemu_users(CAPABILITIES.format(label))) == users
