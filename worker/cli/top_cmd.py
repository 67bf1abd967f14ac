"""``layerfarm top``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from layerfarm.jobs.errors import FarmUnreachable, display
from layerfarm.worker.cli import output
from layerfarm.worker.cli.jobs_cmd import done_text, farm_of, farm_option, stage_text, state_text
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.progress_view import megabytes
from layerfarm.worker.cli.session import Session
from layerfarm.worker.plural import counted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from layerfarm.worker.broker.address import Address
    from layerfarm.worker.client import Farm
    from layerfarm.worker.model import JobRecord
    from layerfarm.worker.monitoring.census import Census

_UNLIMITED = 10_000
"""Columns of output that no terminal shows."""
_ENDED = 600.0
"""Seconds for which an ended job is still shown."""


@click.command("top", cls=GoStyleCommand)
@farm_option
@click.option("--every", metavar="SECONDS", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True)
@click.option("--once", is_flag=True, help="Print the state once and exit; the default if stdout is not a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print the state once as JSON, for programs.")
@click.option("--jobs", "most", metavar="N", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.pass_obj
def command(session: Session, every: float, once: bool, as_json: bool, most: int) -> None:
    """Show the queues, the workers and the newest jobs of a farm, updated until Ctrl-C.

    \b
    Examples:
      layerfarm top --farm redis://queue/0
      layerfarm top --json | jq .oldest
    """
    farm = farm_of(session)
    if as_json:
        from layerfarm.worker.monitoring.snapshot import Snapshot

        output.echo(Snapshot.of(farm.census(), farm.jobs(most)).model_dump_json(by_alias=True))
        return
    from rich.console import Console

    if once or not sys.stdout.isatty():
        # As wide as needed: columns cut to the width of a terminal would lose the ends of ids.
        Console(width=_UNLIMITED).print(_view(farm, most))
        return
    console = Console()
    from rich.live import Live

    with Live(_view(farm, most), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(_look(farm, most), refresh=True)


def _look(farm: Farm, most: int) -> RenderableType:
    """Return the state of the farm, or that Redis is away: it may come back while the user watches."""
    try:
        return _view(farm, most)
    except FarmUnreachable as error:
        from rich.text import Text

        return Text(str(error), "bold red")


def _view(farm: Farm, most: int) -> RenderableType:
    return view(farm.address, farm.census(), farm.jobs(1000), most, time.time())


def view(address: Address, found: Census, records: list[JobRecord], most: int, now: float) -> RenderableType:
    """Return the state of a farm as ``top`` shows it; ``now``: seconds since the epoch."""
    from rich.console import Group

    shown = [record for record in records if record.ended is None or now - record.ended < _ENDED]
    shown.sort(key=lambda record: (record.state.final, -record.submitted))
    return Group(_headline(address, found), _queues(found), _workers(found), _jobs(shown[:most], now))


def _headline(address: Address, found: Census) -> RenderableType:
    from rich.text import Text

    parts = [f"farm {address}"]
    if found.redis_bytes is not None:
        parts.append(f"Redis {megabytes(found.redis_bytes)}")
    if found.kept:
        parts.append(f"{found.kept} kept for a retry")
    if found.refused:
        parts.append(f"{counted(found.refused, 'message')} refused")
    return Text(", ".join(parts), "bold")


def _queues(found: Census) -> RenderableType:
    table = _table("QUEUE", "MESSAGES")
    for name, messages in found.queues.items():
        _add(table, name, str(messages))
    for traffic, seconds in found.oldest.items():
        _add(table, f"oldest {traffic} job waits", f"{seconds:.0f} s")
    return table


def _workers(found: Census) -> RenderableType:
    from rich.text import Text

    if not found.workers:
        return Text("no worker is listening", "bold red")
    table = _table("WORKER", "PROCESSES", "ROOTS", "STORES")
    for worker in found.workers:
        paths = (":".join(display(path) for path in paths) for paths in (worker.roots, worker.stores))
        _add(table, worker.name, str(worker.concurrency), *paths)
    return table


def _jobs(records: list[JobRecord], now: float) -> RenderableType:
    from rich.text import Text

    table = _table("JOB", "KIND", "CLASS", "STATE", "STAGE", "DONE", "TIME", "BY")
    for record in records:
        _add(
            table,
            record.id,
            display(record.kind),
            record.traffic,
            Text(state_text(record), _STYLES.get(record.ending or record.state, "")),
            display(stage_text(record)),
            done_text(record),
            f"{(record.ended or now) - record.submitted:.0f} s",
            display(record.submitter) or "-",
        )
    return table


_STYLES = {"running": "green", "failed": "red", "cancelled": "yellow"}


def _table(*headings: str) -> Table:
    from rich import box, table

    # The first column names the rows: it keeps its width on a narrow terminal.
    first, *others = headings
    return table.Table(table.Column(first, no_wrap=True), *others, box=box.SIMPLE, pad_edge=False)


def _add(table: Table, *cells: str | Text) -> None:
    """Add a row of plain text: foreign names may look like rich's markup."""
    from rich.text import Text

    table.add_row(*(Text(display(cell)) if isinstance(cell, str) else cell for cell in cells))
