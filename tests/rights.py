"""Tests that failed only because they need root: they could not run.

Owners, devices, mounts and namespaces are most of what a root filesystem is about, so an ordinary user cannot run
every test. What is refused counts only if the test itself asked for it, or if layerfarm says that it takes root:
whatever else layerfarm is refused is a failure.
"""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Final

_TESTS: Final = Path(__file__).parent
_PROGRAMS: Final = frozenset(("chroot", "debootstrap", "hostname", "ip", "mount", "nsenter", "umount", "unshare"))
_SAID: Final = (
    "only root can restore owners",
    "cannot be set without privileges",
    "maybe --rootless will help",
)
"""By layerfarm, and by umoci."""


def takes_root(error: BaseException) -> str | None:
    """Return the operation of a test that needs root, if ``error`` says so."""
    if isinstance(error, subprocess.CalledProcessError) and not isinstance(error.cmd, str):
        program = Path(str(error.cmd[0])).name
        if program in _PROGRAMS:
            return program
    if isinstance(error, PermissionError) and error.errno == errno.EPERM:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_TESTS):
            return trace.tb_frame.f_code.co_name
    if any(said in str(error) for said in _SAID):
        return "unpacking with owners"
    return None
