"""OCI images and runtime bundles.

What a quick command needs is imported at once; what moves bytes (:mod:`layerfarm.jobs.layer`,
:mod:`layerfarm.jobs.mtree`) only when it is asked for, because ``layerfarm stat`` has to start in 0.15 s.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layerfarm.jobs.image.documents import ConfigSection, HistoryEntry, ImageConfig, Manifest, RootFS, masked_paths
from layerfarm.jobs.image.mutate import append_layer, new_image, write_image
from layerfarm.jobs.image.resolve import Resolved, resolve, resolve_walk

if TYPE_CHECKING:
    from layerfarm.jobs.image.bundle import ROOTFS_NAME, Bundle
    from layerfarm.jobs.image.pack import PackedLayer, choose_compression, pack_layer
    from layerfarm.jobs.image.repack import open_baseline, open_bundle_baseline, refresh_bundle
    from layerfarm.jobs.image.trees import portable, tree_digest, tree_of
    from layerfarm.jobs.image.unpack import UnpackedBundle, UnpackOptions, unpack_manifest, unpack_rootfs

_LAZY = {
    name: module
    for module, names in {
        "bundle": ("ROOTFS_NAME", "Bundle"),
        "pack": ("PackedLayer", "choose_compression", "pack_layer"),
        "repack": ("open_baseline", "open_bundle_baseline", "refresh_bundle"),
        "trees": ("portable", "tree_digest", "tree_of"),
        "unpack": ("UnpackOptions", "UnpackedBundle", "unpack_manifest", "unpack_rootfs"),
    }.items()
    for name in names
}

__all__ = [
    "Bundle",
    "ConfigSection",
    "HistoryEntry",
    "ImageConfig",
    "Manifest",
    "PackedLayer",
    "ROOTFS_NAME",
    "Resolved",
    "RootFS",
    "UnpackOptions",
    "UnpackedBundle",
    "append_layer",
    "choose_compression",
    "masked_paths",
    "new_image",
    "open_baseline",
    "open_bundle_baseline",
    "pack_layer",
    "portable",
    "refresh_bundle",
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
