"""OCI images and runtime bundles.

What a quick command needs is imported at once; what moves bytes (:mod:`jobs.layer`, :mod:`jobs.mtree`)
only when it is asked for, because ``layerfarm stat`` has to start in 0.15 s.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jobs.image.documents import ConfigSection, HistoryEntry, ImageConfig, Manifest, RootFS
from jobs.image.mutate import append_layer, new_image, write_image
from jobs.image.resolve import Resolved, resolve, resolve_walk

if TYPE_CHECKING:
    from jobs.image.pack import PackedLayer, choose_compression, pack_layer

_LAZY = {
    "PackedLayer": "pack",
    "choose_compression": "pack",
    "pack_layer": "pack",
}

__all__ = [
    "ConfigSection",
    "HistoryEntry",
    "ImageConfig",
    "Manifest",
    "PackedLayer",
    "Resolved",
    "RootFS",
    "append_layer",
    "choose_compression",
    "new_image",
    "pack_layer",
    "resolve",
    "resolve_walk",
    "write_image",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"jobs.image.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
