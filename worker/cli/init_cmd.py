"""``layerfarm init``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import layout_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("init", cls=GoStyleCommand)
@layout_option
def command(layout: Path) -> None:
    """Creates an OCI layout, empty: `layerfarm new` and `layerfarm build` put images into it.

    Nothing may be at the path yet.

    \b
    Example:
      layerfarm init --layout store
    """
    from layerfarm.jobs.store import Layout

    Layout.create(layout)
    output.info(f"created layout: {layout}")
