"""``layerfarm catalog serve``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from layerfarm.jobs.extras import require
from layerfarm.worker.cli.flags import DurationType, PathType
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.session import Session
from layerfarm.worker.cli.submission import at_once_option, processes_option

LISTEN = "127.0.0.1:8470"


@click.command("serve", cls=GoStyleCommand)
@click.argument("files", metavar="FILE...", type=PathType(), nargs=-1, required=True)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=LISTEN,
    show_default=True,
    help="Listen here; other machines are allowed only behind a proxy with TLS.",
)
@click.option(
    "--secrets",
    type=PathType(),
    metavar="DIR",
    help="Directory with the secrets of notifications, in files named distribution, harbor, quay, github and zot."
    " Registries without a file are not served.",
)
@click.option(
    "--settle",
    type=DurationType(),
    metavar="DURATION",
    default="5s",
    show_default=True,
    help="Run when nothing was pushed for this time, or after ten times that.",
)
@click.option("--farm", "farm_url", metavar="URL", help="Run the jobs on the farm at this Redis; empty: here.")
@at_once_option
@processes_option
@click.pass_obj
def command(
    session: Session,
    files: tuple[Path, ...],
    listen: str,
    secrets: Path | None,
    settle: float,
    farm_url: str | None,
    at_once: int,
    processes: int | None,
) -> None:
    """Keep catalogs up to date: receive push notifications of registries, and run what changed.

    POST /notifications/KIND takes the notifications of distribution, harbor, quay, github (GHCR) and zot. Each is
    recorded in the catalog's store before it is acknowledged. A schedule in the catalog file runs the whole catalog
    at regular times. /healthz and /metrics are served too. SIGTERM ends it after the present image.

    \b
    Example:
      layerfarm catalog serve web.yaml --secrets /etc/layerfarm/notifications
    """
    require("catalog", "layerfarm catalog serve")
    require("serve", "layerfarm catalog serve")
    from layerfarm.worker.catalog.serve.authentication import read_secrets
    from layerfarm.worker.catalog.serve.runner import Child
    from layerfarm.worker.catalog.serve.server import serve
    from layerfarm.worker.catalog.serve.times import Times
    from layerfarm.worker.listening import host_and_port
    from layerfarm.worker.monitoring.logs import configure_logs

    configure_logs(session.level or "info")
    # -P: a directory "worker" or "jobs" in the working directory is not imported.
    child = Child(
        (sys.executable, "-P", "-m", "layerfarm.worker.cli.catalog_part"),
        {"farm": session.farm_at(farm_url), "at_once": at_once, "processes": processes},
    )
    address = host_and_port(listen, "notifications")
    serve(files, address, {} if secrets is None else read_secrets(secrets), child, Times(settle))
