"""``layerfarm gc``."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli import output
from worker.cli.flags import layout_option
from worker.cli.parsing import GoStyleCommand


@click.command("gc", cls=GoStyleCommand)
@layout_option
def command(layout: Path) -> None:
    """Removes the blobs of a layout that no tag reaches.

    A blob that another process has just written and not tagged yet stays.

    \b
    Example:
      layerfarm gc --layout store
    """
    from jobs.store import Layout

    for digest in Layout.open(layout).gc():
        output.info(f"removed blob: {digest}")
