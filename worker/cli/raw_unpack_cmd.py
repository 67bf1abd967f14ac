"""``layerfarm raw unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, PathType, image_option, keep_dirlinks_option, platform_option
from layerfarm.worker.cli.id_map_flags import Remap, remap_options
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("unpack", cls=GoStyleCommand)
@image_option()
@keep_dirlinks_option
@platform_option
@remap_options
@click.argument("rootfs", type=PathType())
def command(image: Image, keep_dirlinks: bool, platform: str | None, remap: Remap, rootfs: Path) -> None:
    """Unpack the layers of an image into the directory ROOTFS, without config.json and mtree manifest.

    ROOTFS may exist: the layers are applied over its content. After an error, only a new or empty directory is
    restored.

    \b
    Example:
      layerfarm raw unpack --image store:v1 rootfs
    """
    from layerfarm.jobs.image import UnpackOptions, resolve, unpack_rootfs
    from layerfarm.jobs.layer import IdMap
    from layerfarm.jobs.store import Layout

    layout = Layout.open(image.layout)
    options = UnpackOptions(
        uid_map=IdMap.of(*remap.uid),
        gid_map=IdMap.of(*remap.gid),
        rootless=remap.rootless,
        keep_dirlinks=keep_dirlinks,
        warn=output.warning,
    )
    unpack_rootfs(layout, rootfs, resolve(layout, image.tag, platform), options)
