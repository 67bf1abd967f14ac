"""Requests and results of transforms. Each processes all images behind the tag: one, or every platform of an index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from layerfarm.jobs.flows.base import Model, Request, Result
from layerfarm.jobs.flows.requests import AbsolutePath, CompressionChoice, Epoch, ImageRef, Prefetch
from layerfarm.jobs.relayer.planner.plan import DEFAULT_BUDGET, MOST_LAYERS
from layerfarm.jobs.relayer.referrers import Choice

__all__ = [
    "TransformRequest",
    "RecompressRequest",
    "RewriteRequest",
    "SquashRequest",
    "StripRequest",
    "FlattenRequest",
    "RebaseCheckRequest",
    "RebaseRequest",
    "ComponentRule",
    "RechunkRequest",
    "AnalyzeRequest",
    "ImageParts",
    "AnalyzeResult",
    "ImageChange",
    "TransformResult",
    "RebaseVerdict",
    "RebaseCheckResult",
    "RebaseResult",
    "FlatTree",
    "FlattenResult",
    "VerdictName",
]


class TransformRequest(Request):
    """Transform an image. The old one stays as it is unless ``target`` is its own tag."""

    image: ImageRef
    target: ImageRef
    """Store and tag of the new image."""
    referrers: Choice = "leave"
    """Copy SBOMs and other artifacts that refer to the old image, and remain valid, to the new one. Those left behind
    are among the warnings of the result."""
    proof: bool = True
    """Store the proof as a referrer of the new image. It is made in any case, and without it nothing is tagged."""


class RecompressRequest(TransformRequest):
    """Recompress the layers. The tars, their diff_ids and the config stay the same, except to and from eStargz."""

    kind = "recompress"

    compress: Literal["gzip", "estargz", "zstd", "zstd:chunked", "none"]
    level: int | None = None
    """None: layerfarm's default, and a layer with this compression at any level stays as it is."""
    prefetch: Prefetch = []
    keep: int = Field(default=0, ge=0)
    """Number of lowest layers that stay unchanged: recompressed, a base would no longer be shared with other images."""


class RewriteRequest(TransformRequest):
    """A transform that writes new layers."""

    compress: CompressionChoice = "auto"
    """``auto``: as the newest compressed layer of the image, else gzip."""
    level: int | None = None
    prefetch: Prefetch = []
    source_date_epoch: Epoch | None = None
    """Seconds; newer mtimes are clamped to it, and it is the time written into the config."""


class SquashRequest(RewriteRequest):
    """Merge layers into one: all, or those above some of the lowest, up to some layer."""

    kind = "squash"

    keep: int = Field(default=0, ge=0)
    """Number of lowest layers that stay, with their digests."""
    base: ImageRef | None = None
    """Keep the layers of this image: it must be the base that the image was built on."""
    upto: int | None = Field(default=None, ge=1)
    """The number, from 1, of the highest layer to merge; those above stay. None: the topmost."""


class StripRequest(TransformRequest):
    """Remove paths from an image, and from each of its layers."""

    kind = "strip"

    paths: list[str] = Field(min_length=1)
    """Shell patterns, from the root; ``*`` matches slashes too, and a directory includes everything below it."""
    level: int | None = None
    source_date_epoch: Epoch | None = None


class FlattenRequest(Request):
    """Write the tree of an image as a directory or as one plain tar."""

    kind = "flatten"

    image: ImageRef
    output: AbsolutePath
    """Must not exist. If the tag leads to several images and no platform is given: a directory with one tree for each,
    ``linux_amd64`` or ``linux_amd64.tar``."""
    form: Literal["directory", "tar"] = "directory"
    platform: str | None = None
    """``os/arch[/variant]``."""
    rootless: bool = False
    """As an ordinary user: owners of a directory's entries go into ``user.rootlesscontainers``."""
    source_date_epoch: Epoch | None = None
    """Seconds; newer mtimes in a tar are clamped to it."""


VerdictName = Literal["safe", "review", "refuse"]
"""A verdict on a rebase, from good to bad."""


class RebaseCheckRequest(Request):
    """Check whether an image can be put on another base; nothing is written."""

    kind = "rebase-check"

    image: ImageRef
    old_base: ImageRef
    """The exact base that the image was built on."""
    new_base: ImageRef


class RebaseRequest(TransformRequest):
    """Replace the layers of an image's base with those of another base."""

    kind = "rebase"

    old_base: ImageRef
    new_base: ImageRef
    accept: VerdictName = "safe"
    """The worst verdict with which the rebase is done."""
    source_date_epoch: Epoch | None = None


class ComponentRule(Model):
    """A component defined by the operator, which takes precedence over package databases."""

    name: str = Field(min_length=1)
    paths: list[str] = Field(min_length=1)
    """Shell patterns, from the root; ``*`` matches slashes too."""


class RechunkRequest(RewriteRequest):
    """Rechunk an image: files that change together, or that images share, go into one layer."""

    kind = "rechunk"

    budget: int = Field(default=DEFAULT_BUDGET, ge=2, le=MOST_LAYERS)
    """Maximum number of layers, kept ones included."""
    plan: str | None = None
    """Digest of a plan in the target's store (:func:`layerfarm.jobs.relayer.rechunk.put_plan`). None: plan for this
    image alone."""
    keep: int = Field(default=0, ge=0)
    """Number of lowest layers that stay, with their digests."""
    base: ImageRef | None = None
    """Keep the layers of this image: it must be the base that the image was built on."""
    components: list[ComponentRule] = []


class AnalyzeRequest(Request):
    """Find the components of an image; store them beside the store or, if it is read-only, in the user's cache."""

    kind = "analyze"

    image: ImageRef
    keep: int = Field(default=0, ge=0)
    base: ImageRef | None = None
    source_date_epoch: Epoch | None = None
    components: list[ComponentRule] = []


class ImageParts(Model):
    """Components of one image."""

    platform: str
    image: str
    """Digest of the manifest."""
    keep: int
    components: int
    files: int
    bytes: int
    """Bytes of content."""


class AnalyzeResult(Result):
    """Result of an analysis; the components are in :func:`layerfarm.jobs.relayer.rechunk.kept_analysis`."""

    image: str
    top: str
    """Digest that the tag names."""
    images: list[ImageParts]
    kept_in: str
    """The layout beside which they are stored: the image's own, or that in the user's cache directory."""
    warnings: list[str] = []


class ImageChange(Model):
    """The change of one image."""

    platform: str
    old: str
    """Digest of its manifest."""
    new: str
    """Digest of the new manifest; the same if nothing had to be done."""
    layers_before: int
    layers_after: int
    bytes_before: int
    """Compressed bytes of its layers, each counted once."""
    bytes_after: int
    proof: str | None = None
    """Digest of the proof's manifest, a referrer of the new image; None if nothing was done, or it is not stored."""


class TransformResult(Result):
    """Result of a transform."""

    image: str
    """Store and tag of the new image."""
    old: str
    """Digest that the old image's tag names: a manifest or an index."""
    new: str
    images: list[ImageChange]
    bytes_before: int
    """Compressed bytes of all layers, each counted once."""
    bytes_after: int
    referrers: int = 0
    """Number of referrers (attestations, SBOMs …) copied to the new images."""
    unchanged: bool
    """There was nothing to do; the tag names the old image."""
    warnings: list[str] = []


class RebaseVerdict(Model):
    """Findings for one image."""

    platform: str
    verdict: VerdictName
    concerns: list[str] = []
    """Findings against the rebase, the worst first."""
    concerns_total: int = 0
    packages: list[str] = []
    """Packages of the base that change, as ``name old -> new``."""
    packages_total: int = 0


class RebaseCheckResult(Result):
    """Findings against a rebase, for each image."""

    image: str
    verdict: VerdictName
    """The worst of all."""
    images: list[RebaseVerdict]
    warnings: list[str] = []


class RebaseResult(TransformResult):
    """Result of a rebase, with the findings."""

    verdict: VerdictName = "safe"
    verdicts: list[RebaseVerdict] = []


class FlatTree(Model):
    """One tree that was written."""

    platform: str
    output: str
    manifest: str
    """Digest of the image's manifest."""
    mtree: str
    """``sha256:`` digest of the tree's mtree manifest."""


class FlattenResult(Result):
    """The trees that were written."""

    trees: list[FlatTree]
    warnings: list[str] = []
