"""Deltas between two trees as lines for people and as JSON for programs."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from typing import Any, Literal

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.image.documents import timestamp
from layerfarm.jobs.mtree import Delta, Entry
from layerfarm.jobs.mtree.vis import decode, encode

_SIGNS = {"extra": "+", "missing": "-", "modified": "~"}
_FIELDS = {"tar_time": "mtime", "sha256digest": "sha256"}
_ORDER = ("type", "mode", "uid", "gid", "size", "link", "device", "nlink", "tar_time", "sha256digest")


def human_line(delta: Delta) -> str:
    """Format as ``~ path  mode 0644 -> 0755, size 1 -> 2``."""
    head = f"{_SIGNS[delta.kind]} {shown(delta.path)}"
    entry = delta.new or delta.old
    if entry is not None and entry.type == "dir" and entry.path != b".":
        head += "/"
    changes = ", ".join(_change(delta, key) for key in _sorted(delta.keys))
    return f"{head}  {changes}" if changes else head


@dataclass
class Change:
    """Values of a keyword; None: it has none."""

    old: str | int | None
    new: str | int | None


@dataclass
class Difference:
    """A path that differs, for JSON; fields that are None are left out."""

    kind: Literal["extra", "missing", "modified"]
    path: str
    path_base64: str | None = None
    """The exact bytes of a path that is not UTF-8."""
    type: str | None = None
    changes: dict[str, Change] | None = None
    """By keyword of mtree."""


def json_object(delta: Delta) -> str:
    """Return a :class:`Difference` as JSON."""
    entry, keys = delta.new or delta.old, delta.keys
    found = Difference(delta.kind.value, *_names(delta.path), None if entry is None else entry.type)
    if keys and delta.old is not None and delta.new is not None:
        found.changes = {key: Change(_plain(delta.old, key), _plain(delta.new, key)) for key in _sorted(keys)}
    fields = {name: value for name, value in vars(found).items() if value is not None}
    return json.dumps(fields, ensure_ascii=False, default=vars)


def _names(path: bytes) -> tuple[str, str | None]:
    """Return a path as text, and its exact bytes in base64 if it is not UTF-8."""
    try:
        return path.decode(), None
    except UnicodeDecodeError:
        return path.decode("utf-8", "replace"), b64encode(path).decode("ascii")


def shown(name: bytes) -> str:
    """Return a name on one line: unchanged if it is plain text, else encoded as in a manifest, unambiguously."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return encode(name).decode("ascii")
    return text if text.isprintable() and "\\" not in text else encode(name).decode("ascii")


def _sorted(keys: tuple[str, ...]) -> list[str]:
    return sorted(keys, key=lambda key: (_ORDER.index(key) if key in _ORDER else len(_ORDER), key))


def _change(delta: Delta, key: str) -> str:
    old, new = delta.old, delta.new
    if old is None or new is None:
        return key
    if key.startswith("xattr."):
        is_old, is_new = (_xattr(entry, key) is not None for entry in (old, new))
        return f"{key} {'changed' if is_old and is_new else 'removed' if is_old else 'added'}"
    before, after = (_short(entry, key) for entry in (old, new))
    return f"{_FIELDS.get(key, key)} {before} -> {after}"


def _short(entry: Entry, key: str) -> str:
    if key == "tar_time":
        seconds = entry.mtime // 1_000_000_000
        try:
            return timestamp(seconds)
        except RequestError:
            return str(seconds)
    value = _plain(entry, key)
    if value is None:
        return "none"
    return str(value)[:12] if key == "sha256digest" else str(value)


def _plain(entry: Entry, key: str) -> Any:
    """Return the whole value of a keyword for JSON."""
    if key.startswith("xattr."):
        value = _xattr(entry, key)
        return None if value is None else b64encode(value).decode("ascii")
    if key == "mode":
        return f"{entry.mode:04o}"
    if key == "tar_time":
        return entry.mtime // 1_000_000_000
    if key == "device":
        return None if entry.device is None else f"{entry.device[0]}:{entry.device[1]}"
    if key == "link":
        return None if entry.link is None else shown(entry.link)
    return getattr(entry, _FIELDS.get(key, key))


def _xattr(entry: Entry, key: str) -> bytes | None:
    return dict(entry.xattrs or ()).get(decode(key.removeprefix("xattr.").encode("ascii")))
