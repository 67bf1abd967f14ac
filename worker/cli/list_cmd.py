"""``layerfarm list``, alias ``ls``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import layout_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("list", cls=GoStyleCommand)
@layout_option
def command(layout: Path) -> None:
    """List the tags of an OCI layout, sorted, one a line.

    \b
    Examples:
      layerfarm list --layout store
      layerfarm ls --layout store
    """
    from layerfarm.jobs.store import Layout

    for tag in sorted(Layout.open(layout).tags()):
        output.say(tag)
