"""What the stages know that turn a tree on disk into a layer."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from layerfarm.jobs.compress import Compression
from layerfarm.jobs.flows.base import FileRef, Model, State
from layerfarm.jobs.flows.newtree import Tree
from layerfarm.jobs.flows.requests import IdMapping, LayerOptions
from layerfarm.jobs.flows.survey import Known, Survey
from layerfarm.jobs.image.pack import PackedLayer
from layerfarm.jobs.layer import IdMap


class Changes(Model):
    """The outcome of comparing the old tree with the new one."""

    file: FileRef | None = None
    """None: there are none."""
    count: int = 0
    bytes: int = 0
    """Content of the regular files to be packed."""
    newest_mtime: int | None = None
    """Seconds; over the Extra and Modified paths."""


class LayeringState(State):
    """What the shared stages know; the flows' own states extend it."""

    store: Path
    rootfs: Path
    options: LayerOptions
    compression: Compression
    mask_paths: list[str] = []
    uid_map: list[IdMapping] = []
    gid_map: list[IdMapping] = []
    rootless: bool = False
    known: Known | None = None
    """The bundle's own account of the rootfs, if it is one's."""
    exact: bool = False
    """Write down the new tree as it lies on disk, too: for the bundle's next repack."""
    survey: Survey | None = None
    fragments: list[FileRef] = []
    exact_tree: Tree | None = None
    """None if not wanted, or if it is the old one."""
    tree_digest: str = ""
    """``sha256:`` digest of the manifest of the tree as a layer can hold it."""
    tree_entries: int = 0
    changes: Changes | None = None
    differing: int = 0
    """Paths that are not as they were, also those that are masked."""
    packed: PackedLayer | None = None
    warnings: list[str] = []


StateT = TypeVar("StateT", bound=LayeringState)


def id_map(rows: list[IdMapping]) -> IdMap:
    """The id map of a request or a bundle in the layer room's form."""
    return IdMap.of(*((row.container, row.host, row.size) for row in rows))
