"""Look up ``Config.User`` in the image's own passwd and group files.

The rules are umoci's (umoci.md C, "User table"), which follow config.md "User". The files are read inside the rootfs
only, and only regular ones: umoci follows ``etc/passwd`` out to the host, and hangs if it is a fifo (umoci.md B2.6).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from layerfarm.jobs.errors import ImageConfigError, LimitExceeded
from layerfarm.jobs.fs import Rootfs, read_regular
from layerfarm.jobs.limits import limits

_MAX_ID = 2**31 - 1
_NUMBER = re.compile(r"[+-]?[0-9]+")


class User(NamedTuple):
    """The identity of the container's process."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str | None = None


class _Account(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: list[str]


def lookup_user(rootfs: Path | None, spec: str) -> User:
    """Return the user that ``spec`` (``user``, ``uid``, ``user:group`` … or nothing) names in this rootfs.

    A number is an id even if it is also a user's name, and need not be in the files. A name must be. The user's other
    groups count only if ``spec`` names no group. Without a rootfs no name is known.

    Raises:
        ImageConfigError: an unknown name, or an id out of range.
        LimitExceeded: one of the files is larger than limit ``passwd_bytes``.
        RootfsNotFound: there is no rootfs.
    """
    accounts: list[_Account] = []
    groups: list[_Group] = []
    if rootfs is not None:
        with Rootfs(rootfs) as root:
            accounts = list(_accounts(_read(root.fd, b"etc/passwd")))
            groups = list(_groups(_read(root.fd, b"etc/group")))
    user_part, group_part = (*spec.split(":"), "")[:2]  # a third field is ignored, as umoci does
    account = _find_account(user_part or "0", accounts)
    uid = account.uid if account else _number(user_part or "0", "user")
    gid = account.gid if account else 0
    additional: tuple[int, ...] = ()
    if group_part:
        gid = _find_gid(group_part, groups)
    elif account:
        additional = tuple(dict.fromkeys(group.gid for group in groups if account.name in group.members))
    return User(uid, gid, additional, account.home if account and account.home else None)


def _read(root: int, path: bytes) -> bytes:
    bounds = limits()
    try:
        return read_regular(root, path, bounds.passwd_bytes) or b""
    except LimitExceeded as error:
        raise bounds.exceeded("passwd_bytes", error.what, path) from error


def _find_account(text: str, accounts: list[_Account]) -> _Account | None:
    if _NUMBER.fullmatch(text):
        uid = _number(text, "user")
        return next((account for account in accounts if account.uid == uid), None)
    for account in accounts:
        if account.name == text:
            return account
    raise ImageConfigError(f"user {text[:100]!r} is not in the image's etc/passwd", hint="a number needs no entry")


def _find_gid(text: str, groups: list[_Group]) -> int:
    if _NUMBER.fullmatch(text):
        return _number(text, "group")
    for group in groups:
        if group.name == text:
            return group.gid
    raise ImageConfigError(f"group {text[:100]!r} is not in the image's etc/group", hint="a number needs no entry")


def _number(text: str, kind: str) -> int:
    # Eleven digits already exceed the range; int() of a million digits is slow.
    value = int(text) if len(text) <= 11 else -1
    if not 0 <= value <= _MAX_ID:
        raise ImageConfigError(f"{kind} id {text[:40]} is not between 0 and {_MAX_ID}")
    return value


def _accounts(content: bytes) -> Iterator[_Account]:
    for fields in _lines(content, 7):
        if _is_id(fields[2]) and _is_id(fields[3]):
            yield _Account(fields[0], int(fields[2]), int(fields[3]), fields[5])


def _groups(content: bytes) -> Iterator[_Group]:
    for fields in _lines(content, 4):
        if _is_id(fields[2]):
            yield _Group(fields[0], int(fields[2]), fields[3].split(","))


def _lines(content: bytes, width: int) -> Iterator[list[str]]:
    """Yield the fields of each line that may be an entry, padded to ``width``; other lines are skipped."""
    for line in content.split(b"\n"):
        text = os.fsdecode(line.strip())
        if not text or text.startswith("#"):
            continue
        fields = text.split(":")
        if fields[0]:
            yield fields + [""] * (width - len(fields))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID
