"""stdin, stdout and stderr that are closed when the command starts (``layerfarm ... 2>&-``)."""

from __future__ import annotations

import os
import sys


def keep_open() -> None:
    """Put something that cannot be written in the place of each of the three that is closed.

    Otherwise the next file to be opened, a blob for example, has the number 2, and what a library says on stderr goes
    into it; and Python's own streams are None. As in gnulib's stdopen, reading gives nothing and writing is an error,
    which ends the command with exit code 1 when it has something to say.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, so that of the stream. A pipe needs no /dev.
            reader, writer = os.pipe()
            os.close(writer)
            os.set_inheritable(reader, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", errors="backslashreplace", closefd=False))
