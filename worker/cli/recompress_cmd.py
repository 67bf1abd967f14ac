"""``layerfarm recompress``."""

from __future__ import annotations

import click

from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.submission import Where
from layerfarm.worker.cli.transforming import Making, transform, transform_options


@click.command("recompress", cls=GoStyleCommand)
@click.option(
    "--compress",
    type=click.Choice(["gzip", "zstd", "none"]),
    required=True,
    help="How to compress the layers.",
)
@click.option(
    "--compress-level",
    metavar="N",
    type=int,
    help="Level; with it layers that are so compressed already, at another level or by another tool, are done anew.",
)
@click.option(
    "--keep",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Leave the N lowest layers as they are, so that they stay those of a public base.",
)
@transform_options
def command(compress: str, compress_level: int | None, keep: int, making: Making, where: Where, as_json: bool) -> None:
    """Compresses the layers of an image anew, of every platform. The tars and the config stay the same.

    A layer that many images of a farm share is done once. Each new layer is read back, and the proof that
    nothing else changed is kept beside the new image.

    \b
    Examples:
      layerfarm recompress --image store:v1 --target store:v1-zstd --compress zstd
      layerfarm recompress --image store:v1 --compress zstd --compress-level 19 --keep 1
    """
    from layerfarm.jobs.flows.transforms import RecompressRequest

    request = RecompressRequest.model_validate(
        making
        | {
            "compress": compress,
            "level": compress_level,
            "keep": keep,
        }
    )
    transform(request, where, as_json)
