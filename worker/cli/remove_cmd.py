"""``layerfarm remove``, alias ``rm``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, image_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("remove", cls=GoStyleCommand)
@image_option()
def command(image: Image) -> None:
    """Remove a tag. Its blobs are kept until `layerfarm gc`, as with umoci; a missing tag is no error.

    \b
    Examples:
      layerfarm remove --image store:v1
      layerfarm rm --image store:v1
    """
    from layerfarm.jobs.store import Layout, check_refname

    check_refname(image.tag)
    removed = Layout.open(image.layout).untag(image.tag)
    output.info(f"removed tag: {image.tag}" if removed else f"no such tag: {image.tag}")
