"""``layerfarm raw runtime-config``, alias ``raw config``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, PathType, image_option, platform_option, volumes_option
from layerfarm.worker.cli.id_map_flags import Remap, remap_options
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("runtime-config", cls=GoStyleCommand)
@image_option()
@volumes_option
@platform_option
@click.option(
    "--rootfs", type=PathType(), metavar="DIR", help="Look up the image's user in etc/passwd of this root filesystem."
)
@remap_options
@click.argument("file", type=PathType())
def command(
    image: Image, volumes: Literal["tmpfs", "none"], platform: str | None, rootfs: Path | None, remap: Remap, file: Path
) -> None:
    """Write the runtime configuration of an image to FILE, as `layerfarm unpack` does to config.json.

    \b
    Examples:
      layerfarm raw runtime-config --image store:v1 config.json
      layerfarm raw config --image store:v1 --rootfs bundle/rootfs config.json
    """
    from layerfarm.jobs.errors import ImageConfigError
    from layerfarm.jobs.image import resolve
    from layerfarm.jobs.image.bundle import MapOptions
    from layerfarm.jobs.image.runtime_config import encode_runtime_config, runtime_config
    from layerfarm.jobs.image.users import User, lookup_user
    from layerfarm.jobs.layer import IdMap
    from layerfarm.jobs.store import Layout

    config = resolve(Layout.open(image.layout), image.tag, platform).config
    wanted = (config.config.user if config.config else None) or ""
    try:
        user = lookup_user(rootfs, wanted)
    except ImageConfigError:
        if rootfs is not None:
            raise
        output.warning(f"user {wanted!r} cannot be looked up without --rootfs, using root")
        user = User()
    maps = MapOptions.of(IdMap.of(*remap.uid), IdMap.of(*remap.gid), remap.rootless)
    # umoci's root.path: the last part of --rootfs, beside which the user puts the file.
    root = "." if rootfs is None else rootfs.name or str(rootfs)
    file.write_bytes(encode_runtime_config(runtime_config(config, user, maps, volumes, root)))
