"""``layerfarm config``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import CommandT, Image, image_option, platform_option, tag_option
from layerfarm.worker.cli.layer_flags import History, epoch_time, history_options, timestamp
from layerfarm.worker.cli.parsing import GoStyleCommand

CLEARABLE = (
    "config.labels",
    "manifest.annotations",
    "config.exposedports",
    "config.env",
    "config.entrypoint",
    "config.cmd",
    "config.volume",
)


def _list(flag: str, field: str, metavar: str, help: str) -> Callable[[CommandT], CommandT]:
    """Add a repeated option, passed as ``field`` of ``ConfigChanges``."""
    return click.option(flag, field, multiple=True, callback=_words, metavar=metavar, help=help)


def _words(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the first empty value beside others.

    umoci does so too, through its flag parser (urfave/cli's lookupStringSlice): scripts pass ``--config.cmd "$ARG"``
    where ARG may be empty.
    """
    if len(values) > 1 and "" in values:
        at = values.index("")
        return values[:at] + values[at + 1 :]
    return values


class _ConfigCommand(GoStyleCommand):
    """umoci's ``config``, which takes no arguments, with the subcommand ``config show``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        show = self.get_command(parent, args[0]) if args else None
        if show is not None:
            return show.make_context("config show", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def get_command(self, ctx: click.Context | None, name: str) -> click.Command | None:
        """Return the subcommand ``show``; None for any other name."""
        if name != "show":
            return None
        from layerfarm.worker.cli.config_show_cmd import command as show

        return show


@click.command("config", cls=_ConfigCommand)
@image_option(help="The image; its tag is replaced unless --tag names another.")
@tag_option
@platform_option
@click.option("--config.user", "user", metavar="USER[:GROUP]", help="User and group of the process.")
@_list("--config.exposedports", "exposed_ports", "PORT[/PROTOCOL]", "Add a port.")
@_list("--config.env", "env", "NAME=VALUE", "Set a variable.")
@_list("--config.entrypoint", "entrypoint", "WORD", "The entrypoint, word by word.")
@_list("--config.cmd", "cmd", "WORD", "The command, word by word.")
@_list("--config.volume", "volumes", "PATH", "Add a volume.")
@_list("--config.label", "labels", "NAME=VALUE", "Set a label.")
@click.option("--config.workingdir", "working_dir", metavar="PATH", help="Working directory of the process.")
@click.option("--config.stopsignal", "stop_signal", metavar="SIGNAL", help="The signal that stops the container.")
@click.option(
    "--created", metavar="TIME", callback=timestamp, help="Creation time of the image (2006-01-02T15:04:05Z)."
)
@click.option("--author", metavar="NAME", help="Author of the image.")
@click.option("--platform.os", "--os", "os", metavar="OS", help="The operating system of the image.")
@click.option("--platform.arch", "--architecture", "architecture", metavar="ARCH", help="Its processor architecture.")
@click.option("--platform.variant", "variant", metavar="VARIANT", help="The variant of that architecture.")
@_list("--manifest.annotation", "annotations", "NAME=VALUE", "Annotate.")
@click.option(
    "--clear", multiple=True, type=click.Choice(CLEARABLE), metavar="WHAT", help=f"First empty: {', '.join(CLEARABLE)}."
)
@history_options
def command(
    image: Image, new_tag: str | None, platform: str | None, created: str | None, history: History, **changes: Any
) -> None:
    """Change the configuration of an image. All other fields are kept, including unknown ones.

    Options of lists may be repeated. `layerfarm config show` is another command: it lists the settings of
    layerfarm itself.

    \b
    Examples:
      layerfarm config --image store:v1 --config.user=www-data --config.env LANG=C.UTF-8
      layerfarm config --image store:v1 --tag v2 --clear=config.cmd --config.entrypoint=/bin/app
    """
    from layerfarm.jobs.image import resolve
    from layerfarm.jobs.image.mutate import ConfigChanges, configure
    from layerfarm.jobs.store import Layout, check_refname

    tag = new_tag or image.tag
    check_refname(tag)
    layout = Layout.open(image.layout)
    changes |= {name: changes[name] or None for name in ("entrypoint", "cmd")}  # empty would clear them
    wanted = ConfigChanges(created=created or epoch_time(), **changes)
    changed = configure(layout, resolve(layout, image.tag, platform), wanted, history.entry("layerfarm config"))
    layout.tag(tag, changed.path[0], needs=changed.blobs)
    output.info(f"manifest: {changed.descriptor.digest}")
