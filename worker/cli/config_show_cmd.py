"""``layerfarm config show``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.session import Session


@click.command("show", cls=GoStyleCommand)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the settings and limits of layerfarm on this machine, and the origin of each value.

    A setting NAME is read from an option, then from $LAYERFARM_NAME, then from the settings file:
    $LAYERFARM_CONFIG, ~/.config/layerfarm/layerfarm.toml or /etc/layerfarm/layerfarm.toml, the first that exists.

    \b
    Examples:
      layerfarm config show
      LAYERFARM_CONFIG=farm.toml layerfarm config show --json
    """
    import json

    from layerfarm.worker.settings import limit_origins, origins

    session: Session = ctx.obj
    rows = origins() + limit_origins(session.limits_of_file)
    if as_json:
        output.echo(json.dumps(rows, indent=2, default=vars))
        return
    for line in output.columns([(row.name, row.value, row.source) for row in rows]):
        output.say(line)
