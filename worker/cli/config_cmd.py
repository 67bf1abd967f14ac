"""``layerfarm config``."""

from __future__ import annotations

from typing import Any

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import (
    History,
    Image,
    epoch_time,
    history_options,
    image_option,
    platform_option,
    tag_option,
    timestamp,
    words,
)
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
@click.option(
    "--config.exposedports",
    "exposed_ports",
    multiple=True,
    callback=words,
    metavar="PORT[/PROTOCOL]",
    help="Add a port.",
)
@click.option("--config.env", "env", multiple=True, callback=words, metavar="NAME=VALUE", help="Set a variable.")
@click.option(
    "--config.entrypoint",
    "entrypoint",
    multiple=True,
    callback=words,
    metavar="WORD",
    help="The entrypoint, word by word.",
)
@click.option("--config.cmd", "cmd", multiple=True, callback=words, metavar="WORD", help="The command, word by word.")
@click.option("--config.volume", "volumes", multiple=True, callback=words, metavar="PATH", help="Add a volume.")
@click.option("--config.label", "labels", multiple=True, callback=words, metavar="NAME=VALUE", help="Set a label.")
@click.option("--config.workingdir", "working_dir", metavar="PATH", help="Working directory of the process.")
@click.option("--config.stopsignal", "stop_signal", metavar="SIGNAL", help="The signal that stops the container.")
@click.option(
    "--created", metavar="TIME", callback=timestamp, help="Creation time of the image (2006-01-02T15:04:05Z)."
)
@click.option("--author", metavar="NAME", help="Author of the image.")
@click.option("--platform.os", "--os", "os_name", metavar="OS", help="The operating system of the image.")
@click.option("--platform.arch", "--architecture", "architecture", metavar="ARCH", help="Its processor architecture.")
@click.option("--platform.variant", "variant", metavar="VARIANT", help="The variant of that architecture.")
@click.option(
    "--manifest.annotation", "annotations", multiple=True, callback=words, metavar="NAME=VALUE", help="Annotate."
)
@click.option(
    "--clear", multiple=True, type=click.Choice(CLEARABLE), metavar="WHAT", help=f"First empty: {', '.join(CLEARABLE)}."
)
@history_options
def command(
    image: Image,
    new_tag: str | None,
    platform: str | None,
    user: str | None,
    exposed_ports: tuple[str, ...],
    env: tuple[str, ...],
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    volumes: tuple[str, ...],
    labels: tuple[str, ...],
    working_dir: str | None,
    stop_signal: str | None,
    created: str | None,
    author: str | None,
    os_name: str | None,
    architecture: str | None,
    variant: str | None,
    annotations: tuple[str, ...],
    clear: tuple[str, ...],
    history: History,
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
    changes = ConfigChanges(
        user=user,
        exposed_ports=exposed_ports,
        env=env,
        entrypoint=entrypoint or None,
        cmd=cmd or None,
        volumes=volumes,
        labels=labels,
        working_dir=working_dir,
        stop_signal=stop_signal,
        created=created or epoch_time(),
        author=author,
        os=os_name,
        architecture=architecture,
        variant=variant,
        annotations=annotations,
        clear=clear,
    )
    changed = configure(layout, resolve(layout, image.tag, platform), changes, history.entry("layerfarm config"))
    layout.tag(tag, changed.path[0], needs=changed.blobs)
    output.info(f"manifest: {changed.descriptor.digest}")
