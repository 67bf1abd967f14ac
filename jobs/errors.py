"""Every error that layerfarm raises on purpose.

Each message says what is wrong, where (a path, a digest, a tag) and what to do. The command line prints the message and
exits with ``exit_code``; only a bug shows a traceback.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = [
    "display",
    "LayerfarmError",
    "RequestError",
    "OutsideAllowedRoots",
    "Untrusted",
    "MissingExtra",
    "LimitExceeded",
    "RootfsError",
    "RootfsNotFound",
    "UnsafePath",
    "TreeChanged",
    "MtreeError",
    "MtreeSyntaxError",
    "IncompleteTree",
    "StaleCache",
    "LayerError",
    "MalformedLayer",
    "TruncatedStream",
    "UnsupportedEntry",
    "UnsupportedMediaType",
    "UnmappedId",
    "StoreError",
    "NotALayout",
    "LayoutExists",
    "BlobNotFound",
    "DigestMismatch",
    "SizeMismatch",
    "MalformedDocument",
    "InvalidReference",
    "TagNotFound",
    "AmbiguousReference",
    "BundleError",
    "BundleExists",
    "ImageConfigError",
    "TransformError",
    "NotEquivalent",
    "UnsafeRebase",
    "MalformedPlan",
    "FarmError",
    "FarmUnreachable",
    "FarmFull",
    "JobNotFound",
    "RecordDamaged",
    "JobFailed",
    "JobCancelled",
    "JobTimeout",
    "CatalogError",
    "CatalogFileError",
    "RegistryError",
    "NotInRegistry",
    "AccessDenied",
    "RegistryBusy",
]


def display(where: str | bytes | Path) -> str:
    """Return ``where`` as one printable line, whatever bytes it holds."""
    text = os.fsdecode(where)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


class LayerfarmError(Exception):
    """Base of the tree. ``what`` went wrong, ``where``, and a ``hint`` of what to do: one printable line together."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | bytes | Path | None = None, hint: str | None = None) -> None:
        self.what = display(what)
        super().__init__(self.what)
        self.where = None if where is None else display(where)
        self.hint = None if hint is None else display(hint)

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.what}: {self.where}"
        return text if self.hint is None else f"{text} ({self.hint})"


class RequestError(LayerfarmError):
    """A request is inconsistent or holds a value out of range."""


class OutsideAllowedRoots(RequestError):
    """A request names a path that the worker's operator did not allow (law 7, docs/architecture.md)."""


class Untrusted(RequestError):
    """A request is not signed by a known submitter, or was altered, replayed or signed too long ago."""


class MissingExtra(LayerfarmError):
    """A package is needed that only an extra of layerfarm installs (``pip install 'layerfarm[EXTRA]'``)."""


class LimitExceeded(LayerfarmError):
    """An input is larger than a configured limit (law 9, docs/architecture.md)."""


# --- a root filesystem on disk -----------------------------------------------------------------


class RootfsError(LayerfarmError):
    """A root filesystem cannot be read or written."""


class RootfsNotFound(RootfsError):
    """The root filesystem does not exist or is not a directory."""


class UnsafePath(RootfsError):
    """A path inside a root filesystem would lead out of it, or is not a valid path."""


class TreeChanged(RootfsError):
    """The root filesystem was changed while it was being read."""


# --- mtree ---------------------------------------------------------------------------------------


class MtreeError(LayerfarmError):
    """An mtree manifest cannot be used."""


class MtreeSyntaxError(MtreeError):
    """A line of an mtree manifest does not parse."""


class IncompleteTree(MtreeError):
    """A shard is missing, or two shards hold the same path."""


class StaleCache(MtreeError):
    """A stat cache is missing, damaged, of another version or of another manifest; it is ignored."""


# --- layers --------------------------------------------------------------------------------------


class LayerError(LayerfarmError):
    """A layer cannot be written or applied."""


class MalformedLayer(LayerError):
    """The tar stream of a layer breaks the format, or an entry breaks the layer rules."""


class TruncatedStream(LayerError):
    """A compressed stream or a tar entry ends before it should."""


class UnsupportedEntry(LayerError):
    """A tar entry of a type that no OCI layer may hold."""


class UnsupportedMediaType(LayerError):
    """A blob has a media type or a compression that layerfarm does not read."""


class UnmappedId(LayerError):
    """A uid or gid is outside the given id map."""


# --- the store -----------------------------------------------------------------------------------


class StoreError(LayerfarmError):
    """An OCI image layout cannot be used."""


class NotALayout(StoreError):
    """The directory is not an OCI image layout, or one of an unknown version."""


class LayoutExists(StoreError):
    """A layout was to be created at a path that is in use."""


class BlobNotFound(StoreError):
    """A descriptor names a blob that the store does not hold."""


class DigestMismatch(StoreError):
    """The bytes of a blob, or of an unpacked layer, do not have the expected digest."""


class SizeMismatch(StoreError):
    """A blob is longer or shorter than its descriptor says."""


class MalformedDocument(StoreError):
    """A JSON document of the layout does not parse or breaks its schema."""


class InvalidReference(StoreError):
    """A tag breaks the refname grammar of the image-spec."""


class TagNotFound(StoreError):
    """No manifest has this tag."""


class AmbiguousReference(StoreError):
    """A tag leads to more than one manifest; a platform has to be named."""


# --- bundles -------------------------------------------------------------------------------------


class BundleError(LayerfarmError):
    """A runtime bundle is not as umoci or layerfarm left it."""


class BundleExists(BundleError):
    """The place where a bundle was to be unpacked already holds one."""


class ImageConfigError(LayerfarmError):
    """An image configuration cannot be converted to a runtime configuration."""


# --- re-layering ---------------------------------------------------------------------------------


class TransformError(LayerfarmError):
    """An image cannot be transformed as requested."""


class NotEquivalent(TransformError):
    """A new image's files differ from the original's. Nothing is published."""


class UnsafeRebase(TransformError):
    """A rebase would break the image, or needs a review first; the message lists the findings."""


class MalformedPlan(TransformError):
    """A plan does not parse, is of another version, or gives a component to two groups."""


# --- the farm ------------------------------------------------------------------------------------


class FarmError(LayerfarmError):
    """The queue, or a job on it, went wrong."""


class FarmUnreachable(FarmError):
    """Redis does not answer at the given address, or refuses the connection."""


class FarmFull(FarmError):
    """The queue already holds the maximum number of waiting jobs."""


class JobNotFound(FarmError):
    """No job has this id: it never existed, or its record has expired."""


class RecordDamaged(FarmError):
    """The record of a job in Redis is corrupt."""


class JobFailed(FarmError):
    """A job ended with an error; the message is the error of the unit that failed."""

    def __init__(self, what: str, *, error_type: str | None = None, where: str | None = None) -> None:
        super().__init__(what, where=where)
        self.error_type = error_type
        """Class name of that error."""


class JobCancelled(FarmError):
    """A job was cancelled before it ended."""


class JobTimeout(FarmError):
    """A job did not end within the caller's timeout."""


# --- catalogs ------------------------------------------------------------------------------------


class CatalogError(LayerfarmError):
    """A catalog cannot be processed."""


class CatalogFileError(CatalogError):
    """A catalog file is not YAML, or not a catalog; ``where`` ends in line and column."""

    def __str__(self) -> str:
        # The form that compilers use: editors jump to the place.
        return self.what if self.where is None else f"{self.where}: {self.what}"


class RegistryError(CatalogError):
    """A registry, or skopeo, refuses; a retry would change nothing."""


class NotInRegistry(RegistryError):
    """A registry has no such repository, tag or manifest."""


class AccessDenied(RegistryError):
    """A registry denies access. Several registries also do so if the repository does not exist."""


class RegistryBusy(RegistryError):
    """A registry is unreachable, throttles, or dropped the connection; retried as often as the catalog allows."""
