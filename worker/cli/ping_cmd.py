"""``layerfarm ping``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.jobs_cmd import farm_of, farm_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.session import Session
from layerfarm.worker.plural import counted


@click.command("ping", cls=GoStyleCommand)
@farm_option
@click.option("--this-host", is_flag=True, help="Check for a worker on this host; in a container, in this container.")
@click.pass_obj
def command(session: Session, this_host: bool) -> None:
    """Check that workers of the farm take messages. Exit code 0 if one does, otherwise 1.

    For health checks: a worker counts only while its event loop consumes messages. While Redis is unavailable no
    worker does, so restart a worker only after minutes of failures. A killed worker counts for up to 10 seconds.

    \b
    Examples:
      layerfarm ping --farm redis://queue/0
      layerfarm ping --this-host
    """
    import socket

    from layerfarm.jobs.errors import FarmError

    farm = farm_of(session)
    host = socket.gethostname()
    found = [worker for worker in farm.workers() if not this_host or worker.host == host]
    if not found:
        where = f"on {host}" if this_host else f"at {farm.address}"
        raise FarmError(f"no worker is listening {where}")
    for worker in found:
        output.say(f"{worker.name}: {counted(worker.concurrency, 'process', 'processes')}")
