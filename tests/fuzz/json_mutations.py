"""Mutations of JSON documents that keep them JSON, mostly."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from tests.fuzz import bytes_mutations

_DEEP: Any = []
for _ in range(300):
    _DEEP = [_DEEP]

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**32 - 1, 2**63, 2**70, -(2**63), 0.5, 1e300, "", "0", "..", "/",
    "../../canary", "/canary/file", "a\0b", "\x1b[2J", "\udcff", "x" * 5000, "sha256:" + "0" * 64,
    "sha256:../../canary/file", "sha512:", "md5:" + "0" * 32, "sha256:" + "A" * 64, [], {}, [None], [[]], {"": None},
    [0] * 3, _DEEP, "linux", "windows", "root:x", "4294967296", "-1", ":", "a:b:c", "PATH", "=x", "A=b\0c", "nobody",
    "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip", "2", 3,
)  # fmt: skip
_KEYS = (
    "manifests", "config", "layers", "mediaType", "schemaVersion", "digest", "size", "data", "annotations", "urls",
    "platform", "rootfs", "os", "", "uid_mappings", "whiteout_mode", "Volumes", "User", "Env", "x",
)  # fmt: skip


def mutate(rng: Random, document: Any, other: Any) -> bytes:
    """The bytes of ``document`` with one to four nodes changed."""
    value = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = _places(value)
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 3:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == 4:
            del holder[key]
        elif kind == 5:
            donor, donated = rng.choice(_places(other))
            holder[key] = copy.deepcopy(donor[donated])
        elif kind == 6 and isinstance(holder, dict):
            holder[rng.choice(_KEYS)] = copy.deepcopy(rng.choice(_VALUES))
        elif isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * rng.choice((1, 2, 20))
        else:
            holder[rng.choice(_KEYS)] = holder.pop(key)
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    return bytes_mutations.mutate(rng, text, text) if rng.randrange(8) == 0 else text


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list) and len(found) < 500:
                pending.append(holder[key])
    return found
