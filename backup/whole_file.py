"""Files that are there as a whole or not at all: whoever reads them never sees half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """Put a file in the place of what is there. Raises OSError, and has then changed nothing.

    `durable`: it is there after a power cut too.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
            os.replace(file.name, path)
        except BaseException:  # of any kind, Ctrl-C included: no draft stays
            os.unlink(file.name)
            raise
