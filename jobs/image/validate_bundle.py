"""Check a bundle: umoci.json, the mtree manifest, the rootfs and config.json."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from pydantic import Field

from layerfarm.jobs.errors import LayerfarmError, display
from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.image.bundle import CONFIG_NAME, META_NAME, ROOTFS_NAME, Bundle, BundleMeta
from layerfarm.jobs.image.report import Report
from layerfarm.jobs.limits import limits
from layerfarm.jobs.mtree import ROOT, mtree_key
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.store import Document, parse_document


class _Root(Document):
    path: str


class _Process(Document):
    cwd: str
    args: list[str] = Field(min_length=1)
    env: list[str] = Field(default_factory=list)


class RuntimeConfig(Document):
    """The fields of runtime-spec config.md that layerfarm writes and every runtime needs."""

    ociVersion: str
    root: _Root
    process: _Process
    mounts: list[dict[str, Any]] = Field(default_factory=list)
    linux: dict[str, Any] | None = None


def validate_bundle(path: Path) -> Report:
    """Check every part of a bundle. The rootfs is not compared with the manifest: bundles are meant to be changed."""
    report = Report()
    if not is_directory(path):
        report.error("bundle", ".", "bundle is not a directory")
        return report
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        report.warning("mode", ".", f"others may enter the bundle (mode {mode:04o}) and use its setuid files")
    rootfs = path / ROOTFS_NAME
    if rootfs.is_symlink() or not is_directory(rootfs):
        report.error("rootfs", ROOTFS_NAME, "rootfs is not a directory")
    meta = _document(path / META_NAME, BundleMeta, report)
    if meta is not None:
        bundle = Bundle(path, meta)
        _check_manifest(bundle, report)
        if os.path.lexists(bundle.stat_cache) and not Beneath(path).is_file(bundle.stat_cache):
            report.warning("stat-cache", bundle.stat_cache.name, "not a regular file, repack reads every file instead")
    config = _document(path / CONFIG_NAME, RuntimeConfig, report)
    if config is not None:
        _check_config(config, report)
    return report


def _document(path: Path, model: type[Any], report: Report) -> Any:
    try:
        return parse_document(model, Beneath(path.parent).read(path, limits().document_bytes + 1), path.name)
    except (LayerfarmError, OSError) as error:
        report.error("document", path.name, error.strerror if isinstance(error, OSError) else error)
        return None


def _check_manifest(bundle: Bundle, report: Report) -> None:
    name = bundle.mtree.name
    last = None
    try:
        for entry in bundle.baseline():
            key = mtree_key(entry.path, entry.type == "dir")
            if last is None and entry.path != ROOT:
                report.error("mtree", name, f"manifest does not begin with the root but with {display(entry.path)}")
            if last is not None and key <= last:
                report.error("mtree", name, f"entry is not in mtree order, or repeated: {display(entry.path)}")
                return
            last = key
    except (LayerfarmError, OSError) as error:
        report.error("mtree", name, str(error))
        return
    if last is None:
        report.error("mtree", name, "manifest is empty")


def _check_config(config: RuntimeConfig, report: Report) -> None:
    if os.path.normpath(config.root.path) != ROOTFS_NAME:
        report.warning("config", CONFIG_NAME, f"root.path is {config.root.path!r}, not {ROOTFS_NAME!r}")
    if not config.process.cwd.startswith("/"):
        report.error("config", CONFIG_NAME, f"process.cwd is not absolute: {config.process.cwd!r}")
    for variable in config.process.env:
        if "=" not in variable[1:]:
            report.error("config", CONFIG_NAME, f"process.env has an entry without a name or value: {variable[:100]!r}")
