"""Landlock (landlock(7)): drop, for ever, a process's access to all unnamed files and TCP ports.

The kernel checks the opened file, not its name, so replacing a directory by a symbolic link between a check and its use
does not lead out.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from struct import Struct
from typing import Final

from layerfarm.worker.security import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION: Final = 1
_PATH_BENEATH, _NET_PORT = 1, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""The rights that a rule about one file can give; all others are those of directories."""
_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of rights over files in each version; later versions add none."""
_TCP: Final = 0b11
"""Rights to bind and to connect."""
_CONNECT_TCP: Final = 0b10
_ABSTRACT_SOCKETS: Final = 0b1

_PATH_BENEATH_ATTR: Final = Struct("=Qi")
"""Allowed rights and parent directory. Packed in the kernel's header, unlike the other structures."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def version() -> int:
    """Return the version of this kernel's Landlock; 0: it has none, or may not be used."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    except OSError:
        return 0


def restrict(read: Iterable[Path], write: Iterable[Path], ports: Iterable[int]) -> None:
    """Restrict this thread, and the threads and processes that it starts from now on.

    Parameters:
        read: files, and directories with all below, that may be read and executed.
        write: those that may be used without restriction.
        ports: TCP ports that may be connected to, from version 4 on; nothing may be bound.

    Missing paths stay inaccessible, even if they appear later.

    Raises:
        OSError: the kernel's error.
    """
    known = version()
    rights = (1 << _BITS[min(known, 5)]) - 1
    attributes = _Ruleset(rights, _TCP if known >= 4 else 0, _ABSTRACT_SOCKETS if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    try:
        for path in read:
            _allow(ruleset, path, rights & (_EXECUTE | _READ_FILE | _READ_DIR))
        for path in write:
            _allow(ruleset, path, rights)
        for port in ports if known >= 4 else ():
            _call(_ADD_RULE, ruleset, _NET_PORT, ctypes.byref(_NetPort(_CONNECT_TCP, port)), 0)
        kernel.forbid_new_privileges()
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, _PATH_BENEATH_ATTR.pack(rights, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    return kernel.syscall("Landlock", number, *arguments)
