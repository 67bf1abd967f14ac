"""Flags shared by several commands, in the groups of umoci.md A, each parsed into one value."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from layerfarm.worker.durations import seconds

if TYPE_CHECKING:
    from layerfarm.jobs.flows.requests import HistoryOptions, IdMapping, ImageRef, LayerOptions
    from layerfarm.jobs.image import HistoryEntry

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


# --- --image, --layout, --tag ----------------------------------------------------------------------


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


class ImageType(click.ParamType[Image]):
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

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="dir")]


class LayoutType(click.ParamType[Path]):
    """The directory of a layout; no ``:``, so that an image is not mistaken for one."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path):
            return value
        if not value:
            self.fail("path is empty", param, ctx)
        if ":" in value:
            self.fail(f"path contains ':': {value!r}", param, ctx)
        return Path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="dir")]


class PathType(click.ParamType[Path]):
    """A path of the operator. An empty one is an error of the calling script, never the current directory."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path):
            return value
        if not value:
            self.fail("path is empty", param, ctx)
        return Path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


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


# --- --history.* -----------------------------------------------------------------------------------


class History(NamedTuple):
    """The values of the history flags."""

    omit: bool
    author: str | None
    comment: str | None
    created: str | None
    created_by: str | None

    def options(self) -> HistoryOptions:
        from layerfarm.jobs.flows.requests import HistoryOptions

        return HistoryOptions(**self._asdict())

    def moment(self) -> str | None:
        """Return the time to be recorded: as given, else ``$SOURCE_DATE_EPOCH``, else none; never the clock."""
        return epoch_time() if self.created is None else self.created

    def entry(self, created_by: str) -> HistoryEntry | None:
        """Return the history entry of a command that is not a flow, or None for ``--no-history``."""
        from layerfarm.jobs.image import HistoryEntry

        if self.omit:
            return None
        return HistoryEntry(
            created=self.moment(),
            created_by=self.created_by if self.created_by is not None else created_by,
            author=self.author,
            comment=self.comment,
        )


def history_options(command: CommandT) -> CommandT:
    """Add ``--no-history`` and the ``--history.*`` flags, passed as ``history``."""

    @click.option("--no-history", is_flag=True, help="Write no history entry.")
    @click.option("--history.author", "history_author", metavar="NAME", help="Author of the history entry.")
    @click.option("--history.comment", "history_comment", metavar="TEXT", help="Comment of the history entry.")
    @click.option(
        "--history.created",
        "history_created",
        metavar="TIME",
        callback=timestamp,
        help="Time of the history entry (2006-01-02T15:04:05Z); without it, $SOURCE_DATE_EPOCH.",
    )
    @click.option("--history.created_by", "history_created_by", metavar="TEXT", help="What made the layer.")
    @functools.wraps(command)
    def with_history(
        *args: Any,
        no_history: bool,
        history_author: str | None,
        history_comment: str | None,
        history_created: str | None,
        history_created_by: str | None,
        **others: Any,
    ) -> Any:
        fields = (history_author, history_comment, history_created, history_created_by)
        if no_history and any(field is not None for field in fields):
            raise click.UsageError("--no-history and --history.* exclude each other")
        return command(*args, history=History(no_history, *fields), **others)

    return with_history  # type: ignore[return-value]


def timestamp(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the callback of an option that takes an RFC 3339 time (image-spec config.md "created").

    The value is spelled as umoci writes it: +00:00 becomes Z.
    """
    from layerfarm.jobs.image.documents import as_go_writes, is_timestamp

    if value is None:
        return None
    if not is_timestamp(value):
        raise click.BadParameter(f"{value!r} is not a time like 2006-01-02T15:04:05Z")
    return as_go_writes(value)


def words(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the callback of a repeated option: the first empty value beside others is dropped.

    umoci does so too, through its flag parser (urfave/cli's lookupStringSlice): scripts pass ``--config.cmd "$ARG"``
    where ARG may be empty.
    """
    if len(values) > 1 and "" in values:
        at = values.index("")
        return values[:at] + values[at + 1 :]
    return values


# --- --compress and other options of a layer --------------------------------------------------------

COMPRESSIONS: Final = ("gzip", "estargz", "zstd", "zstd:chunked", "none")
PULLED_IN_PART: Final = "estargz: gzip that containerd reads lazily; zstd:chunked: zstd that podman pulls in part"


class Layering(NamedTuple):
    """The values of the flags for the new layer."""

    compress: str
    level: int | None
    prefetch: list[str]

    def options(self, history: History) -> LayerOptions:
        """Return the layer options of a request, with ``$SOURCE_DATE_EPOCH``."""
        from layerfarm.jobs.flows.requests import LayerOptions

        return LayerOptions.model_validate(
            {
                "compress": self.compress,
                "level": self.level,
                "prefetch": self.prefetch,
                "history": history.options(),
                "source_date_epoch": source_date_epoch(),
            }
        )


def compress_options(command: CommandT) -> CommandT:
    """Add ``--compress`` and ``--compress-level``, passed as ``layering``."""

    @click.option(
        "--compress",
        type=click.Choice(["auto", *COMPRESSIONS]),
        default="auto",
        show_default=True,
        help=f"Compression of the layer; {PULLED_IN_PART}; auto: that of the newest compressed layer of the image, "
        "else gzip.",
    )
    @click.option("--compress-level", metavar="N", type=int, help="Level of the chosen compression.")
    @prefetch_option
    @functools.wraps(command)
    def with_layering(*args: Any, compress: str, compress_level: int | None, prefetch: list[str], **others: Any) -> Any:
        return command(*args, layering=Layering(compress, compress_level, prefetch), **others)

    return with_layering  # type: ignore[return-value]


def _paths_in(context: click.Context, option: click.Parameter, file: Path | None) -> list[str]:
    """Return the lines of a file, without empty ones."""
    if file is None:
        return []
    try:
        lines = file.read_bytes().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise click.BadParameter(f"{file} cannot be read, {what}") from error
    return [line for line in lines if line]


def prefetch_option(command: CommandT) -> CommandT:
    """Add ``--prefetch``, passed as a list of paths."""
    return click.option(
        "--prefetch",
        metavar="FILE",
        type=PathType(),
        callback=_paths_in,
        help="With estargz: a file that lists the paths in the image that a workload reads first, one a line; clients "
        "fetch these before they are read.",
    )(command)


def source_date_epoch() -> int | None:
    """Return ``$SOURCE_DATE_EPOCH`` in seconds, or None if it is not set.

    Raises:
        click.UsageError: it is not a number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    from layerfarm.jobs.image.documents import SECONDS

    if not re.fullmatch(r"-?\d{1,18}", text) or int(text) not in SECONDS:
        raise click.UsageError(f"$SOURCE_DATE_EPOCH is not a number of seconds: {text!r}, or beyond the year 9999")
    return int(text)


def epoch_time() -> str | None:
    """Return ``$SOURCE_DATE_EPOCH`` as RFC 3339, or None if it is not set."""
    from layerfarm.jobs.image.documents import timestamp as written

    epoch = source_date_epoch()
    return None if epoch is None else written(epoch)


# --- --uid-map, --gid-map, --rootless --------------------------------------------------------------


_Rows = tuple[tuple[int, int, int], ...]


class Remap(NamedTuple):
    """The values of the id map flags: rows of (container, host, size)."""

    uid: _Rows
    gid: _Rows
    rootless: bool

    @classmethod
    def of_this_user(cls) -> Remap:
        """Return no map for root, and ``--rootless`` for other users."""
        return cls((), (), False) if os.geteuid() == 0 else cls.rootless_of_this_user((), ())

    @classmethod
    def rootless_of_this_user(cls, uid: _Rows, gid: _Rows) -> Remap:
        """Return the map of ``--rootless``: container root is this user, unless a map says otherwise."""
        return cls(uid or ((0, os.geteuid(), 1),), gid or ((0, os.getegid(), 1),), True)

    def fields(self) -> dict[str, Any]:
        """Return the fields ``uid_map``, ``gid_map`` and ``rootless`` of a request."""
        return {"uid_map": _mappings(self.uid), "gid_map": _mappings(self.gid), "rootless": self.rootless}


def remap_options(command: CommandT) -> CommandT:
    """Add ``--uid-map``, ``--gid-map`` and ``--rootless``, passed as ``remap``."""

    @click.option(
        "--uid-map",
        multiple=True,
        metavar="CONTAINER:HOST[:SIZE]",
        callback=_id_map,
        help="Map SIZE uids (default 1) from CONTAINER to HOST. May be repeated.",
    )
    @click.option(
        "--gid-map",
        multiple=True,
        metavar="CONTAINER:HOST[:SIZE]",
        callback=_id_map,
        help="The same for gids.",
    )
    @click.option(
        "--rootless",
        is_flag=True,
        help="Work without root: map container root to yourself, keep owners in user.rootlesscontainers.",
    )
    @functools.wraps(command)
    def with_remap(*args: Any, uid_map: Any, gid_map: Any, rootless: bool, **others: Any) -> Any:
        remap = Remap.rootless_of_this_user(uid_map, gid_map) if rootless else Remap(uid_map, gid_map, False)
        return command(*args, remap=remap, **others)

    return with_remap  # type: ignore[return-value]


def _id_map(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(_id_row(value) for value in values)


def _id_row(text: str) -> tuple[int, int, int]:
    fields = text.split(":")
    if len(fields) not in (2, 3) or not all(re.fullmatch(r"[0-9]{1,10}", field) for field in fields):
        raise click.BadParameter(f"{text!r} is not CONTAINER:HOST[:SIZE]")
    container, host, size = (*map(int, fields), 1)[:3]
    if size == 0 or max(container, host) + size > 0xFFFFFFFF:
        raise click.BadParameter(f"{text!r} exceeds the range of ids, 0 to 4294967294")
    return container, host, size


def _mappings(rows: tuple[tuple[int, int, int], ...]) -> list[IdMapping]:
    from layerfarm.jobs.flows.requests import IdMapping

    return [IdMapping(container=container, host=host, size=size) for container, host, size in rows]


# --- durations -------------------------------------------------------------------------------------


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
