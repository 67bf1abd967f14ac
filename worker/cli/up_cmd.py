"""``layerfarm up``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import PathType, directories_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("up", cls=GoStyleCommand)
@directories_option(
    "root", "Jobs may use root filesystems and bundles below DIR. May be repeated; without it, every directory.", ["/"]
)
@directories_option(
    "store", "Jobs may use the layout DIR, or layouts below it. May be repeated; without it, every layout.", ["/"]
)
@click.option("--concurrency", metavar="N", type=click.IntRange(1, 1024), help="Processes (default: one per CPU).")
@click.option(
    "--state",
    type=PathType(),
    metavar="DIR",
    help="Parent of the private directory (default: the temporary directory).",
)
def command(roots: tuple[Path, ...], stores: tuple[Path, ...], concurrency: int | None, state: Path | None) -> None:
    """Run a private Redis and a worker on this machine until interrupted.

    The first line on stdout is the setting with which other shells of this user use them; the socket is in a
    directory of mode 0700.

    \b
    Example:
      $ layerfarm up
      export LAYERFARM_FARM=unix:///tmp/layerfarm-x1y2/redis.sock
    """
    import shlex

    from layerfarm.worker.embedded import EmbeddedFarm

    for path in (*roots, *stores):
        if not path.is_dir():
            output.warning(f"this directory does not exist, jobs that name it fail: {path}")
    with EmbeddedFarm(
        state_dir=state,
        concurrency=concurrency or len(os.sched_getaffinity(0)),
        roots=[root.absolute() for root in roots],
        stores=[store.absolute() for store in stores],
    ) as farm:
        try:
            # Whoever reads the address may send Ctrl-C at once.
            output.echo(f"export LAYERFARM_FARM={shlex.quote(farm.url)}")
            output.notice("redis and worker are up; Ctrl-C stops them")
            farm.wait()
        except KeyboardInterrupt:
            output.notice("stopping redis and worker")
