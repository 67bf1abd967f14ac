"""``layerfarm tag``."""

from __future__ import annotations

import click

from worker.cli import output
from worker.cli.flags import Image, image_option
from worker.cli.parsing import GoStyleCommand


@click.command("tag", cls=GoStyleCommand)
@image_option()
@click.argument("new_tag", metavar="NEW-TAG")
def command(image: Image, new_tag: str) -> None:
    """Gives an image another tag. A tag of that name is moved; the old one stays.

    \b
    Example:
      layerfarm tag --image store:v1 latest
    """
    from jobs.errors import AmbiguousReference, TagNotFound
    from jobs.store import Layout

    layout = Layout.open(image.layout)
    found = layout.find(image.tag)
    if not found:
        raise TagNotFound("tag not found", where=str(image))
    if len(found) > 1:
        raise AmbiguousReference(f"tag names {len(found)} images", where=str(image))
    layout.tag(new_tag, found[0])
    output.info(f'created new tag: "{new_tag}" -> "{image.tag}"')
