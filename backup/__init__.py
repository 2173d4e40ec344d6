"""The engine: backs up libvirt domains to restore points in an output, and restores them."""

import sys
from pathlib import Path

__version__ = "1.0.0"

# The command's name in hints: Debian's package installs it as virt-rbd-backup.
PROGRAM = "virt-rbd-backup" if Path(sys.argv[0]).name == "virt-rbd-backup" else "main.py"
