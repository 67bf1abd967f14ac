"""``layerfarm raw add-layer``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, PathType, image_option, platform_option, tag_option
from layerfarm.worker.cli.layer_flags import History, Layering, compress_options, history_options
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("add-layer", cls=GoStyleCommand)
@image_option()
@tag_option
@platform_option
@compress_options
@history_options
@click.argument("archive", metavar="NEW-LAYER.TAR", type=PathType())
def command(
    image: Image, new_tag: str | None, platform: str | None, layering: Layering, history: History, archive: Path
) -> None:
    """Add an uncompressed tar archive to an image as its newest layer, byte for byte.

    The archive must be one that can be unpacked.

    \b
    Example:
      layerfarm raw add-layer --image store:v1 --tag v2 extra.tar
    """
    from layerfarm.jobs.image import resolve
    from layerfarm.jobs.image.pack import add_layer
    from layerfarm.jobs.store import Layout

    layout = Layout.open(image.layout)
    base = resolve(layout, image.tag, platform)
    with archive.open("rb") as stream:
        added = add_layer(
            layout,
            base,
            iter(lambda: stream.read(1 << 20), b""),
            new_tag or image.tag,
            **layering._asdict(),
            threads=len(os.sched_getaffinity(0)),
            history=history.entry("layerfarm raw add-layer"),
            created=history.moment(),
            warn=output.warning,
            checked=True,
        )
    output.info(f"manifest: {added.descriptor.digest}")
