"""``layerfarm insert``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, image_option, platform_option, tag_option
from layerfarm.worker.cli.id_map_flags import Remap, remap_options
from layerfarm.worker.cli.layer_flags import History, Layering, compress_options, history_options, source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("insert", cls=GoStyleCommand)
@image_option(help="The image; its tag is replaced unless --tag names another.")
@tag_option
@click.option("--opaque", is_flag=True, help="Hide the content of the directory TARGET in the layers below.")
@click.option("--whiteout", is_flag=True, help="Delete TARGET, without SOURCE.")
@platform_option
@remap_options
@compress_options
@history_options
@click.argument("paths", metavar="[SOURCE] TARGET", nargs=-1, required=True)
def command(
    image: Image,
    new_tag: str | None,
    opaque: bool,
    whiteout: bool,
    platform: str | None,
    remap: Remap,
    layering: Layering,
    history: History,
    paths: tuple[str, ...],
) -> None:
    """Insert SOURCE, a file or a directory, into an image as TARGET, or remove TARGET from it.

    A directory is merged with an existing one of the image, unless --opaque is given. Removed files remain in
    the layers below: to remove secrets, use `layerfarm strip`.

    \b
    Examples:
      layerfarm insert --image store:v1 mybinary /usr/bin/mybinary
      layerfarm insert --image store:v1 --tag v2 --opaque myetc /etc
      layerfarm insert --image store:v1 --whiteout /usr/share/doc
    """
    if whiteout and opaque:
        raise click.UsageError("--whiteout and --opaque exclude each other")
    if len(paths) != (1 if whiteout else 2):
        raise click.UsageError("expected TARGET alone with --whiteout, else SOURCE TARGET")
    if not all(paths):
        raise click.UsageError("path is empty")
    from layerfarm.jobs.image import resolve
    from layerfarm.jobs.image.pack import add_layer
    from layerfarm.jobs.layer import GenerateOptions, IdMap, insert_layer, whiteout_layer
    from layerfarm.jobs.store import Layout

    layout = Layout.open(image.layout)
    base = resolve(layout, image.tag, platform)
    target = os.fsencode(paths[-1])
    if whiteout:
        tar = whiteout_layer(target)
    else:
        options = GenerateOptions(
            uid_map=IdMap.of(*remap.uid),
            gid_map=IdMap.of(*remap.gid),
            rootless=remap.rootless,
            source_date_epoch=source_date_epoch(),
            warn=output.warning,
        )
        tar = insert_layer(Path(paths[0]), target, opaque=opaque, options=options)
    added = add_layer(
        layout,
        base,
        tar,
        new_tag or image.tag,
        **layering._asdict(),
        threads=len(os.sched_getaffinity(0)),
        history=history.entry("layerfarm insert"),
        created=history.moment(),
        warn=output.warning,
    )
    output.info(f"manifest: {added.descriptor.digest}")
