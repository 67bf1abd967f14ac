"""Types and flags that several commands share: images, layouts, paths, durations.

The flags of a new layer are in ``layer_flags``, those of id maps in ``id_map_flags``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from layerfarm.worker.durations import seconds

if TYPE_CHECKING:
    from layerfarm.jobs.flows.requests import ImageRef

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
ValueT = TypeVar("ValueT")


class Image(NamedTuple):
    """The value of ``--image``. A plain tuple, not the request's model: pydantic would double the time of ``tag``."""

    layout: Path
    tag: str

    def __str__(self) -> str:
        return f"{self.layout}:{self.tag}"

    def ref(self) -> ImageRef:
        """Return the reference for a request, with an absolute path: workers have another current directory."""
        from layerfarm.jobs.flows.requests import ImageRef

        return ImageRef(store=self.layout.absolute(), tag=self.tag)


class _Completed(click.ParamType[ValueT]):
    """A type whose values begin with a path, which shells complete."""

    completes = "dir"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=self.completes)]


class ImageType(_Completed[Image]):
    """``PATH[:TAG]``; the path ends at the first ``:``."""

    name = "PATH[:TAG]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Image:
        if isinstance(value, Image):
            return value
        path, colon, tag = value.partition(":")
        if not path:
            self.fail("path is empty", param, ctx)
        if colon and not tag:
            self.fail("tag is empty", param, ctx)
        return Image(Path(path), tag or "latest")


class PathType(_Completed[Path]):
    """A path of the operator. An empty one is an error of the calling script, never the current directory."""

    name = "PATH"
    completes = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if value == "":
            self.fail("path is empty", param, ctx)
        return Path(value)


class LayoutType(PathType):
    """The directory of a layout; no ``:``, so that an image is not mistaken for one."""

    completes = "dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if ":" in str(value):
            self.fail(f"path contains ':': {value!r}", param, ctx)
        return super().convert(value, param, ctx)


def directories_option(name: str, help: str, default: Sequence[str] | None = None) -> Callable[[CommandT], CommandT]:
    """Add an option for directories, repeatable, passed by its name in the plural."""
    return click.option(
        f"--{name}", f"{name}s", multiple=True, type=PathType(), default=default, metavar="DIR", help=help
    )


def image_option(
    name: str = "--image", *, required: bool = True, help: str = "The image: a layout and a tag."
) -> Callable[[CommandT], CommandT]:
    """Add ``--image PATH[:TAG]``, passed as ``image``."""
    return click.option(name, type=ImageType(), required=required, metavar="PATH[:TAG]", help=help)


layout_option = click.option(
    "--layout", type=LayoutType(), required=True, metavar="PATH", help="The directory of the OCI layout."
)


def _tag(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "":
        # An empty variable of a script, which did not intend to replace the source's own tag.
        raise click.BadParameter("tag is empty")
    return value


tag_option = click.option(
    "--tag",
    "new_tag",
    metavar="TAG",
    callback=_tag,
    help="The new image; default: replace the tag of --image.",
)


def mask_path_option(help: str) -> Callable[[CommandT], CommandT]:
    """Add ``--mask-path PATH``, repeatable, passed as ``mask_path``."""
    return click.option("--mask-path", multiple=True, metavar="PATH", callback=_below_root, help=help)


def _below_root(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    from layerfarm.jobs.image.documents import names_root

    for value in values:
        if names_root(value):
            # Probably an empty variable of a script; all changes would be lost silently.
            raise click.BadParameter(f"{value!r} is the root, nothing would be packed")
    return values


platform_option = click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="The image to use, if the tag is an index of several."
)
volumes_option = click.option(
    "--volumes",
    type=click.Choice(("tmpfs", "none")),
    default="tmpfs",
    show_default=True,
    help="What config.json mounts over the image's volumes: an empty tmpfs each, as umoci does, so that what the"
    " image holds there is hidden and what is written there is lost; or nothing.",
)
keep_dirlinks_option = click.option(
    "--keep-dirlinks", is_flag=True, help="Write through symlinks to directories instead of replacing them."
)


class DurationType(click.ParamType[float]):
    """A duration in Go's notation, in seconds: ``90s``, ``1h30m``, ``0``."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
