"""``layerfarm raw``: the single steps of unpack and repack."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.parsing import LateGroup, Listed


class Raw(LateGroup):
    """The group."""

    listed = {
        "unpack": Listed("", "unpacks an image's layers into a directory", "raw_unpack_cmd"),
        "runtime-config": Listed("", "writes the config.json of an image (alias: config)", "raw_runtime_config_cmd"),
        "add-layer": Listed("", "adds a tar archive to an image as it is", "raw_add_layer_cmd"),
        "mtree-validate": Listed("", "compares a directory with an mtree manifest", "raw_mtree_validate_cmd"),
        "help": Listed("", "shows the help of one of these", "help_cmd"),
    }
    aliases = {"config": "runtime-config", "h": "help"}


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
