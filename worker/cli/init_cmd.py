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
    """Create an empty OCI layout, to which `layerfarm new` and `layerfarm build` add images.

    The path must not exist, or be an empty directory.

    \b
    Example:
      layerfarm init --layout store
    """
    from layerfarm.jobs.store import Layout

    Layout.create(layout)
    output.info(f"created layout: {layout}")
