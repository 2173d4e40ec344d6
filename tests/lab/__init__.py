"""A lab of real parts on one machine: Ceph, libvirtd and QEMU guests with a real agent."""

from tests.lab.domain import RbdDisk
from tests.lab.errors import LabError
from tests.lab.lab import Lab, running_lab

__all__ = ["Lab", "LabError", "RbdDisk", "running_lab"]
