"""UTF-8 for names of domains and files, whatever the locale: restic, libvirt and manifests have no other."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def require_utf8(argv: Sequence[str]) -> None:
    """Execute the program anew in Python's UTF-8 mode if the locale has another encoding.

    `argv` is sys.argv: names that were typed in that encoding are passed on in UTF-8.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    arguments = [argument.encode("utf-8", "surrogateescape") for argument in argv]
    executable = os.fsencode(sys.executable)
    os.execv(executable, [executable, b"-X", b"utf8", *arguments])
