"""``layerfarm repack``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli.flags import Image, PathType, image_option, mask_path_option
from layerfarm.worker.cli.layer_flags import History, Layering, compress_options, history_options
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import image_lines, show
from layerfarm.worker.cli.submission import Where, farm_options


@click.command("repack", cls=GoStyleCommand)
@image_option(help="The new image: the layout of the bundle, and a tag.")
@mask_path_option("Ignore changes at and below PATH. Repeatable.")
@click.option("--no-mask-volumes", is_flag=True, help="Also pack changes in the image's volumes.")
@click.option("--refresh-bundle", is_flag=True, help="Make the bundle one of the new image, for the next repack.")
@click.option("--no-stat-cache", is_flag=True, help="Read every file, not only changed ones.")
@compress_options
@history_options
@farm_options
@click.argument("bundle", type=PathType())
def command(
    image: Image,
    mask_path: tuple[str, ...],
    no_mask_volumes: bool,
    refresh_bundle: bool,
    no_stat_cache: bool,
    layering: Layering,
    history: History,
    where: Where,
    bundle: Path,
) -> None:
    """Turn the changes in BUNDLE into a new layer, and tag the image with that layer.

    BUNDLE was made by `layerfarm unpack` or `umoci unpack`; its id maps are used again. Prints nothing, as
    umoci; --verbose, --json and `layerfarm stat` show the digests.

    \b
    Examples:
      layerfarm repack --image store:v2 bundle
      layerfarm repack --image store:v2 --refresh-bundle --mask-path /var/cache bundle
    """
    from layerfarm.jobs.flows.requests import RepackRequest

    request = RepackRequest(
        bundle=bundle.absolute(),
        image=image.ref(),
        layer=layering.options(history),
        mask_paths=list(mask_path),
        mask_volumes=not no_mask_volumes,
        refresh_bundle=refresh_bundle,
        stat_cache=not no_stat_cache,
    )
    show(request, where, image_lines, quiet=True)
