"""``layerfarm ping``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.jobs_cmd import farm_of, farm_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.session import Session


@click.command("ping", cls=GoStyleCommand)
@farm_option
@click.option("--this-host", is_flag=True, help="A worker on this host has to listen; in a container, this one.")
@click.pass_obj
def command(session: Session, this_host: bool) -> None:
    """Says whether workers of the farm take messages now: exit code 0, or 1 where none does.

    A worker counts only while its event loop consumes, not because it answers: made for health checks. Where
    Redis is away no worker takes messages, so restart a worker after minutes of it, not at the first failure.

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
        output.say(f"{worker.name}: {worker.concurrency} processes")
