"""OCI images and runtime bundles.

Names that need :mod:`layerfarm.jobs.layer` or :mod:`layerfarm.jobs.mtree` are imported on first use, because
``layerfarm stat`` must start in 0.15 s.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from layerfarm.jobs.image.documents import HistoryEntry, ImageConfig
from layerfarm.jobs.image.mutate import append_layer, write_image
from layerfarm.jobs.image.resolve import Resolved, resolve, resolve_walk

if TYPE_CHECKING:
    from layerfarm.jobs.image.pack import PackedLayer, pack_layer
    from layerfarm.jobs.image.trees import tree_digest, tree_of
    from layerfarm.jobs.image.unpack import UnpackOptions, unpack_manifest, unpack_rootfs

_LAZY: Final = {
    "PackedLayer": "pack",
    "pack_layer": "pack",
    "tree_digest": "trees",
    "tree_of": "trees",
    "UnpackOptions": "unpack",
    "unpack_manifest": "unpack",
    "unpack_rootfs": "unpack",
}

__all__ = [
    "HistoryEntry",
    "ImageConfig",
    "PackedLayer",
    "Resolved",
    "UnpackOptions",
    "append_layer",
    "pack_layer",
    "resolve",
    "resolve_walk",
    "tree_digest",
    "tree_of",
    "unpack_manifest",
    "unpack_rootfs",
    "write_image",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"layerfarm.jobs.image.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
