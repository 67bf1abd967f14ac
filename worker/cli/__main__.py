"""The ``layerfarm`` command, also ``python -m layerfarm.worker.cli``: the steps before any other import."""

from __future__ import annotations

import gc
import os
import sys

from layerfarm.worker.cli.standard_streams import keep_open
from layerfarm.worker.import_path import ours_first

_GC_THRESHOLD = 50_000
"""Objects created before the garbage collector runs. Importing creates many, none of which is garbage: collecting took
a tenth of the start time of a command."""


def program() -> int:
    """Run the command line as the ``layerfarm`` script: with settings only for a process that ends with it."""
    keep_open()
    ours_first()
    gc.set_threshold(_GC_THRESHOLD)
    # None is used; plugins of other packages in the environment need not be looked up.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from layerfarm.worker.cli.main import main

    code = main()
    # The interpreter would collect garbage once more, in memory that the kernel frees anyway: 20 ms.
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(program())
