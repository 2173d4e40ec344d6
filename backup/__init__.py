"""The engine: from libvirt's domains to restore points in an output."""

import sys
from pathlib import Path

__version__ = "1.0.0"

# What the admin calls it by, for hints that name a command: Debian's package has a name of its own for it.
PROGRAM = "virt-rbd-backup" if Path(sys.argv[0]).name == "virt-rbd-backup" else "main.py"
