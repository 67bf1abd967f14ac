"""stdin, stdout and stderr that are closed when the command starts (``layerfarm ... 2>&-``)."""

from __future__ import annotations

import os
import sys


def keep_open() -> None:
    """Replace each closed standard stream by one that cannot be used.

    Otherwise the next opened file, a blob for example, has the number 2, and a library's message on stderr goes into
    it; and Python's own streams are None. As in gnulib's stdopen, reading returns nothing and writing is an error,
    which ends the command with exit code 1 when it writes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, so the stream's own. A pipe needs no /dev.
            reader, writer = os.pipe()
            os.close(writer)
            os.set_inheritable(reader, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", errors="backslashreplace", closefd=False))
