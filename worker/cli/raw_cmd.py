"""``layerfarm raw``: the single steps of unpack and repack."""

from __future__ import annotations

import importlib

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.parsing import GoStyleGroup

COMMANDS = {
    "unpack": ("raw_unpack_cmd", "unpacks an image's layers into a directory"),
    "runtime-config": ("raw_runtime_config_cmd", "writes the config.json of an image (alias: config)"),
    "add-layer": ("raw_add_layer_cmd", "adds a tar archive to an image as it is"),
    "mtree-validate": ("raw_mtree_validate_cmd", "compares a directory with an mtree manifest"),
    "help": ("help_cmd", "shows the help of one of these"),
}
ALIASES = {"config": "runtime-config", "h": "help"}


class Raw(GoStyleGroup):
    """The group; like the top level, it imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        listed = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if listed is None:
            return None
        command: click.Command = importlib.import_module(f"layerfarm.worker.cli.{listed[0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group("raw", cls=Raw, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Single steps of unpack and repack, for other tools. They always run on this machine.

    \b
    Example:
      layerfarm raw unpack --image store:v1 rootfs
    """
    if ctx.invoked_subcommand is None:
        output.echo(ctx.get_help())
