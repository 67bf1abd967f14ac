"""``layerfarm new``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, image_option
from layerfarm.worker.cli.layer_flags import epoch_time
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("new", cls=GoStyleCommand)
@image_option(help="The layout, and the tag of the new image.")
def command(image: Image) -> None:
    """Create an image without layers, for this machine's platform, under a tag.

    Its creation time is $SOURCE_DATE_EPOCH, or none, so that the same command makes the same image.

    \b
    Example:
      layerfarm new --image store:empty
    """
    from layerfarm.jobs.image.mutate import new_image
    from layerfarm.jobs.store import Layout, check_refname

    created = epoch_time()
    check_refname(image.tag)
    layout = Layout.open(image.layout)
    made = new_image(layout, created)
    layout.tag(image.tag, made.path[0], needs=made.blobs)
    output.info(f"created new image: {image}")
