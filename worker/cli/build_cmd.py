"""``layerfarm build``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli.flags import Image, PathType, image_option, mask_path_option
from layerfarm.worker.cli.layer_flags import History, Layering, compress_options, history_options
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import image_lines, show
from layerfarm.worker.cli.submission import Where, farm_options


@click.command("build", cls=GoStyleCommand)
@click.option("--rootfs", type=PathType(), required=True, metavar="DIR", help="The directory to build the image from.")
@image_option(help="The new image: a layout and a tag.")
@image_option("--base", required=False, help="The base image: the layer has only the differences from it.")
@click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="The image of --base to use, if it is an index of several."
)
@mask_path_option("Leave out changes at and below PATH in the rootfs. Repeatable.")
@compress_options
@history_options
@farm_options
def command(
    rootfs: Path,
    image: Image,
    base: Image | None,
    platform: str | None,
    mask_path: tuple[str, ...],
    layering: Layering,
    history: History,
    where: Where,
) -> None:
    """Build an image from a directory, on top of a base image if one is given.

    Prints the digests of the layer, of the layer's tar (diff_id) and of the manifest. Equal inputs give
    equal digests.

    \b
    Examples:
      layerfarm build --rootfs /srv/rootfs --image store:v1
      layerfarm build --rootfs /srv/rootfs --image store:v2 --base store:v1 --compress=zstd
      layerfarm build --rootfs /srv/arm --image store:arm --base store:debian --platform linux/arm64
      layerfarm build --rootfs /srv/rootfs --image store:v1 --farm redis://queue/0 --detach
    """
    from layerfarm.jobs.flows.requests import BuildRequest

    if platform is not None and base is None:
        raise click.UsageError("--platform selects an image of --base, which is missing")
    request = BuildRequest(
        rootfs=rootfs.absolute(),
        image=image.ref(),
        base=None if base is None else base.ref(),
        platform=platform,
        layer=layering.options(history),
        mask_paths=list(mask_path),
    )
    show(request, where, image_lines)
