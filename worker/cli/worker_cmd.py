"""``layerfarm worker``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli.flags import directories_option
from layerfarm.worker.cli.jobs_cmd import farm_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.session import Session

_PYTHON_LEVELS = {"warn": "warning", "fatal": "critical"}


@click.command("worker", cls=GoStyleCommand)
@farm_option
@directories_option(
    "root", "Jobs may use root filesystems and bundles below DIR. May be repeated; without it, $LAYERFARM_ROOTS."
)
@directories_option(
    "store", "Jobs may use the layout DIR, or layouts below it. May be repeated; without it, $LAYERFARM_STORES."
)
@click.option("--concurrency", metavar="N", type=click.IntRange(1, 1024), help="Processes (default: one per CPU).")
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics here, for example 127.0.0.1:9464.")
@click.pass_context
def command(
    ctx: click.Context,
    roots: tuple[Path, ...],
    stores: tuple[Path, ...],
    concurrency: int | None,
    metrics: str | None,
) -> None:
    """Run a worker of the farm on this machine until SIGTERM or Ctrl-C.

    It accesses only the directories in --root and --store. After the first signal, running units have at most
    $LAYERFARM_DRAIN seconds (60) to end, and are then returned to the farm; a second signal stops the worker
    at once, and another worker runs them again.

    \b
    Example:
      layerfarm worker --farm redis://queue/0 --root /srv/rootfs --store /srv/oci
    """
    from layerfarm.worker.settings import load_settings
    from layerfarm.worker.worker_main import run_worker

    session: Session = ctx.obj
    settings = load_settings(
        farm=session.farm,
        roots=_absolute(roots),
        stores=_absolute(stores),
        concurrency=concurrency,
        metrics=metrics,
        log_level=_PYTHON_LEVELS.get(session.level or "", session.level),
    )
    ctx.exit(run_worker(settings))


def _absolute(paths: tuple[Path, ...]) -> list[str] | None:
    return [str(path.absolute()) for path in paths] or None
