"""``layerfarm recompress``."""

from __future__ import annotations

import click

from layerfarm.worker.cli.layer_flags import COMPRESSIONS, PULLED_IN_PART, prefetch_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Where
from layerfarm.worker.cli.transforming import Making, transform_lines, transform_options


@click.command("recompress", cls=GoStyleCommand)
@click.option(
    "--compress",
    type=click.Choice(COMPRESSIONS),
    required=True,
    help=f"How to compress the layers; {PULLED_IN_PART}.",
)
@click.option(
    "--compress-level",
    metavar="N",
    type=int,
    help="Level; layers with this compression at another level, or by another tool, are recompressed too.",
)
@prefetch_option
@click.option(
    "--keep",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Keep the N lowest layers, those of a public base.",
)
@transform_options
def command(
    compress: str,
    compress_level: int | None,
    prefetch: list[str],
    keep: int,
    making: Making,
    where: Where,
) -> None:
    """Recompress the layers of an image, on every platform. The tars and the config do not change.

    To eStargz and back they do: its table of contents is in the tar, and the config names the digest of the tar.
    A layer shared by many images is compressed once across a farm. Each new layer is read back, and a proof
    that nothing else changed is stored with the new image.

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
            "prefetch": prefetch,
            "keep": keep,
        }
    )
    show(request, where, transform_lines)
