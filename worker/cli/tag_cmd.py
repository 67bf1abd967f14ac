"""``layerfarm tag``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, image_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("tag", cls=GoStyleCommand)
@image_option()
@click.argument("new_tag", metavar="NEW-TAG")
def command(image: Image, new_tag: str) -> None:
    """Add a tag to an image. An existing tag of that name is moved; the old tag of the image is kept.

    \b
    Example:
      layerfarm tag --image store:v1 latest
    """
    from layerfarm.jobs.store import Layout

    Layout.open(image.layout).copy_tag(image.tag, new_tag)
    output.info(f'created new tag: "{new_tag}" -> "{image.tag}"')
