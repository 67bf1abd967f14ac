"""``layerfarm unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli.flags import (
    Image,
    PathType,
    image_option,
    keep_dirlinks_option,
    platform_option,
    volumes_option,
)
from layerfarm.worker.cli.id_map_flags import Remap, remap_options
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Where, farm_options


@click.command("unpack", cls=GoStyleCommand)
@image_option()
@keep_dirlinks_option
@volumes_option
@platform_option
@remap_options
@farm_options
@click.argument("bundle", type=PathType())
def command(
    image: Image,
    keep_dirlinks: bool,
    volumes: str,
    platform: str | None,
    remap: Remap,
    where: Where,
    bundle: Path,
) -> None:
    """Unpack an image into the runtime bundle BUNDLE: rootfs/, config.json, and metadata for `repack`.

    After an error, BUNDLE is restored. Prints nothing, as umoci.

    \b
    Examples:
      layerfarm unpack --image store:v1 bundle
      layerfarm unpack --rootless --image store:v1 bundle
    """
    from layerfarm.jobs.flows.requests import UnpackRequest

    request = UnpackRequest.model_validate(
        {
            "image": image.ref(),
            "bundle": bundle.absolute(),
            "keep_dirlinks": keep_dirlinks,
            "volumes": volumes,
            "platform": platform,
            **remap.fields(),
        }
    )
    show(
        request,
        where,
        lambda done: [f"job: {done.job_id} succeeded", f"manifest: {done.result.manifest}", f"bundle: {bundle}"],
        quiet=True,
    )
