"""``layerfarm flatten``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli.flags import Image, PathType, image_option, platform_option
from layerfarm.worker.cli.layer_flags import source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Where, farm_options


@click.command("flatten", cls=GoStyleCommand)
@image_option()
@platform_option
@click.option("--tar", "as_tar", is_flag=True, help="Write one plain tar; without it, a directory.")
@click.option("--rootless", is_flag=True, help="Without root: owners go into user.rootlesscontainers.")
@farm_options
@click.argument("output", type=PathType())
def command(image: Image, platform: str | None, as_tar: bool, rootless: bool, where: Where, output: Path) -> None:
    """Write the tree of an image to OUTPUT, which must not exist, as a directory or as one tar.

    A tar is made from the layers without unpacking them, then read back and compared with them. For an index
    of several platforms OUTPUT is a directory with one tree for each, unless --platform selects one.

    \b
    Examples:
      layerfarm flatten --image store:v1 rootfs
      layerfarm flatten --image store:v1 --platform linux/arm64 --tar v1-arm64.tar
    """
    from layerfarm.jobs.flows.transforms import FlattenRequest

    request = FlattenRequest(
        image=image.ref(),
        output=output.absolute(),
        form="tar" if as_tar else "directory",
        platform=platform,
        rootless=rootless,
        source_date_epoch=source_date_epoch(),
    )
    show(request, where, lambda done: [f"{tree.platform}: {tree.output} {tree.mtree}" for tree in done.result.trees])
