"""``layerfarm help``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("help", cls=GoStyleCommand)
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command or of layerfarm itself; `layerfarm raw help` shows that of the group.

    \b
    Examples:
      layerfarm help unpack
      layerfarm help raw add-layer
    """
    parent = ctx.parent or ctx
    for word in words:
        # Groups have this method, and `config`, which is a command with a subcommand.
        find = getattr(parent.command, "get_command", None)
        found = find(parent, word) if find is not None else None
        if found is None:
            raise click.UsageError(f"No such command '{' '.join(words)}'")
        parent = click.Context(found, info_name=word, parent=parent)
    output.echo(parent.get_help())
