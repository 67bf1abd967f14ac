"""``layerfarm unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli.flags import (
    Image,
    PathType,
    Remap,
    image_option,
    keep_dirlinks_option,
    platform_option,
    remap_options,
    volumes_option,
)
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import json_option, report
from layerfarm.worker.cli.submission import Where, carry_out, farm_options


@click.command("unpack", cls=GoStyleCommand)
@image_option()
@keep_dirlinks_option
@volumes_option
@platform_option
@remap_options
@farm_options
@json_option
@click.argument("bundle", type=PathType())
def command(
    image: Image,
    keep_dirlinks: bool,
    volumes: str,
    platform: str | None,
    remap: Remap,
    where: Where,
    as_json: bool,
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
    outcome = carry_out(request, where)
    lines = []
    if outcome is not None:
        lines = [f"job: {outcome.job_id} succeeded", f"manifest: {outcome.result.manifest}", f"bundle: {bundle}"]
    report(outcome, lines=lines, as_json=as_json, quiet=True)
