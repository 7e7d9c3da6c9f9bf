"""System calls that some Pythons, conda's among them, are built without."""

from __future__ import annotations

import ctypes
import errno
import os

# The same on every architecture.
PIDFD_OPEN = 434
MFD_CLOEXEC = 1


def pidfd_open(process: int) -> int:
    """A file descriptor that is readable once the process has ended, as `os.pidfd_open`. Raises OSError."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(process)
    return _checked(_libc().syscall(PIDFD_OPEN, process, 0))


def memfd_create(name: str) -> int:
    """A file in memory alone, not inherited, as `os.memfd_create`. Raises OSError."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    create = getattr(_libc(), "memfd_create", None)
    if create is None:
        raise OSError(errno.ENOSYS, "memfd_create is not there")
    return _checked(create(name.encode(), MFD_CLOEXEC))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
