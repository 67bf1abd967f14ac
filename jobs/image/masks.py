"""Which paths a new layer leaves out, whatever was changed there."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerfarm.jobs.image.documents import ImageConfig


def masked_paths(config: ImageConfig, given: Sequence[str], mask_volumes: bool = True) -> list[str]:
    """The paths whose changes a repack leaves out: those given, and the image's volumes unless switched off.

    A volume at the root masks nothing, as with umoci: the new image would lose every change, without a word.
    """
    volumes = (config.config.volumes if config.config else None) or {}
    return [*given, *(sorted(path for path in volumes if not names_root(path)) if mask_volumes else ())]


def names_root(path: str) -> bool:
    """Whether ``path``, absolute or not, is empty or the root of an image once it is cleaned."""
    return posixpath.normpath(f"/{path.lstrip('/')}") == "/"
