"""``layerfarm gc``."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli import output
from worker.cli.flags import DurationType, layout_option
from worker.cli.parsing import GoStyleCommand


@click.command("gc", cls=GoStyleCommand)
@layout_option
@click.option(
    "--grace",
    type=DurationType(),
    default="24h",
    show_default=True,
    metavar="DURATION",
    envvar="LAYERFARM_GC_GRACE",
    show_envvar=True,
    help="Leave blobs that were stored or used in this time: their tag may be yet to come. 0s: as umoci.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def command(layout: Path, grace: float, dry_run: bool) -> None:
    """Removes the blobs that no tag leads to, and what crashed jobs left in the layout.

    Safe while others build into the layout. umoci's gc removes everything at once and assumes that it is
    alone: --grace=0s does the same, for a layout that nobody else writes to. Nothing is removed if any
    manifest that a tag leads to cannot be read. Prints nothing, as umoci, unless --dry-run or --verbose is given.

    \b
    Examples:
      layerfarm gc --layout store
      layerfarm gc --layout store --dry-run
      layerfarm gc --layout store --grace=0s
    """
    from jobs.errors import display
    from jobs.store import Layout
    from jobs.store.gc import collect

    done = collect(Layout.open(layout), grace, dry_run=dry_run)
    say, verb = (click.echo, "would remove") if dry_run else (output.info, "removed")
    for digest, size in done.blobs:
        say(f"{verb} {digest} {size}")
    for path in (*done.trees, *done.leftovers):
        say(f"{verb} {display(path.relative_to(layout))}")
    say(f"{verb} {len(done.blobs)} blobs, {done.bytes} bytes")
    if done.young:
        output.warning(
            f"left {done.young} unreferenced blobs of {done.young_bytes} bytes that are younger than the grace;"
            " if nobody else writes to this layout, --grace=0s removes them"
        )
