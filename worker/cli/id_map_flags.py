"""The flags ``--uid-map``, ``--gid-map`` and ``--rootless``, parsed into one value."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from layerfarm.worker.cli.flags import CommandT

if TYPE_CHECKING:
    from layerfarm.jobs.flows.requests import IdMapping

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
