"""Privileges that a process of the pool drops before it works: root's other powers, or root itself."""

from __future__ import annotations

import ctypes
import os
import pwd
from contextlib import suppress
from typing import Final

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.security import kernel

_PR_CAPBSET_DROP: Final = 24
_VERSION_3: Final = 0x20080522
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_LAST: Final = 40
"""CAP_CHECKPOINT_RESTORE, the last capability of Linux 6."""
_KEPT: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
    "CAP_SETFCAP": 31,
}
"""Needed to write layers: owners, modes, devices, capabilities of files; trusted.* xattrs need SYS_ADMIN.
Not CAP_DAC_READ_SEARCH: it opens files by handle, bypassing all directories."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def user_of(name: str) -> pwd.struct_passwd:
    """Return the passwd entry of a user that this process can become.

    Raises:
        RequestError: the user does not exist, or this process may not become that user.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise RequestError("user does not exist", where=name, hint="see LAYERFARM_USER") from None
    if os.geteuid() not in (0, user.pw_uid):
        raise RequestError("only root can become another user", where=name, hint="see LAYERFARM_USER")
    return user


def give_up(user: pwd.struct_passwd | None) -> None:
    """Become ``user``; without one, root keeps only the powers needed for layers. No program can regain the rest.

    Raises:
        OSError: the kernel's error.
    """
    kernel.forbid_new_privileges()
    if os.geteuid() != 0:
        return
    kept = frozenset(_KEPT.values()) if user is None else frozenset()
    for number in range(_LAST + 1):
        if number not in kept:
            with suppress(OSError):  # a number that an older kernel does not know
                kernel.prctl("capbset", _PR_CAPBSET_DROP, number)
    if user is not None:
        # All capabilities are lost with the last uid of 0 (capabilities(7)).
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    else:
        _keep(kept)


def _keep(kept: frozenset[int]) -> None:
    machine = os.uname().machine
    if machine not in _CAPSET:
        return  # the bounding set still applies to executed programs
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    mine = _effective()
    if mine <= kept:
        return  # a container or systemd did it, and may forbid the call
    for number in kept & mine:
        data[number // 32].effective |= 1 << number % 32
        data[number // 32].permitted |= 1 << number % 32
    kernel.syscall("capset", _CAPSET[machine], ctypes.byref(header), ctypes.byref(data))


def _effective() -> frozenset[int]:
    """Return the capabilities of this process: a container may have removed some."""
    with open("/proc/self/status", encoding="ascii") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return frozenset(number for number in range(64) if mask >> number & 1)
