"""The ``layerfarm`` command, also ``python -m layerfarm.worker.cli``: what comes before anything else is imported."""

from __future__ import annotations

import gc
import os
import sys

from layerfarm.worker.cli.standard_streams import keep_open
from layerfarm.worker.import_path import ours_first

_GC_THRESHOLD = 50_000
"""Objects made before the garbage collector looks at them. Importing makes many, none of which is garbage: looking for
some took a tenth of the time in which a command starts."""


def program() -> int:
    """What the ``layerfarm`` script calls: the command line, and what is right only in a process that ends with it."""
    keep_open()
    ours_first()
    gc.set_threshold(_GC_THRESHOLD)
    # None is used, and what other packages of the environment bring along is none of our business: it need not be
    # looked for.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from layerfarm.worker.cli.main import main

    code = main()
    # The interpreter would look for garbage once more, among all that it is about to leave to the kernel: 20 ms.
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(program())
