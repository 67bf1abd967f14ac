"""``layerfarm doctor``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import directories_option
from layerfarm.worker.cli.jobs_cmd import farm_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.session import Session

if TYPE_CHECKING:
    from layerfarm.worker.doctor import Finding


@click.command("doctor", cls=GoStyleCommand)
@farm_option
@directories_option(
    "store", "A store to check. May be repeated; default: stores of the workers that are on this machine."
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@click.pass_obj
def command(session: Session, stores: tuple[Path, ...], as_json: bool) -> None:
    """Report problems with a farm and how to fix them.

    Checks Redis (version, memory, persistence, latency), the workers (versions, roots, stores, clocks), and
    the stores (locks, durability, room, whether a rename is one step, and whether all hosts see the same disk).
    Each line is ok, warn or fail. Without a farm it checks only the stores.

    The exit code is 0 if nothing failed, else 1.

    \b
    Examples:
      layerfarm --farm redis://queue/0 doctor
      layerfarm doctor --store /srv/oci --json
    """
    import json

    from layerfarm.worker.client import Farm
    from layerfarm.worker.doctor import Level, examine, worst

    if session.farm is None and not stores:
        raise click.UsageError("nothing to check: give --farm or --store")
    found: list[Finding] = []
    with ExitStack() as stack:
        farm = stack.enter_context(Farm(session.farm)) if session.farm else None
        for finding in examine(farm, [store.absolute() for store in stores]):
            found.append(finding)
            if not as_json:
                _show(finding)
    if as_json:
        output.echo(json.dumps([finding.model_dump(mode="json") for finding in found], indent=2))
    if worst(found) is Level.FAIL:
        raise click.exceptions.Exit(1)


def _show(finding: Finding) -> None:
    output.say(f"{finding.level:<5} {finding.topic}: {finding.what}")
    if finding.advice is not None:
        output.say(f"      {finding.advice}")
