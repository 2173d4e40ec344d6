"""Errors by the one line that an admin reads, the hint aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backup.errors import BackupError


@contextmanager
def raises(
    message: str, kind: type[BackupError] = BackupError
) -> Iterator[pytest.ExceptionInfo[BackupError]]:
    """Expect an error with exactly this message."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.message == message
