"""What can be asked of an image that exists already, and what comes back: requests and results of re-layering.

Each acts on all that the tag leads to: one image, or every platform of an index.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from layerfarm.jobs.flows.base import Model, Request, Result
from layerfarm.jobs.flows.requests import AbsolutePath, CompressionChoice, Epoch, ImageRef
from layerfarm.jobs.relayer.planner.plan import DEFAULT_BUDGET, MOST_LAYERS
from layerfarm.jobs.relayer.referrers import Choice


class TransformRequest(Request):
    """Make an image over. The old one stays as it is unless ``target`` is its own tag."""

    image: ImageRef
    target: ImageRef
    """Where the new one goes: this store or another one, this tag or another one."""
    referrers: Choice = "leave"
    """Of SBOMs and other artifacts that refer to the old image and stay true of the new one: whether copies refer to
    that. What is left is among the warnings of the result."""


class RecompressRequest(TransformRequest):
    """Compress the layers anew. The tars, their diff_ids and the config stay the same."""

    kind = "recompress"

    compress: Literal["gzip", "zstd", "none"]
    level: int | None = None
    """None: layerfarm's default, and a layer that is so compressed already stays as it is, whoever wrote it."""
    keep: int = Field(default=0, ge=0)
    """So many of the lowest layers stay as they are: recompressed, a base would not be shared with others any more."""


class RewriteRequest(TransformRequest):
    """A transform that writes layers of its own."""

    compress: CompressionChoice = "auto"
    """``auto``: as the newest compressed layer of the image, else gzip."""
    level: int | None = None
    source_date_epoch: Epoch | None = None
    """Seconds; newer mtimes are clamped to it, and it is the time of what is written into the config."""


class SquashRequest(RewriteRequest):
    """Merge layers into one: all, or those above some of the lowest, up to some layer."""

    kind = "squash"

    keep: int = Field(default=0, ge=0)
    """So many of the lowest layers stay, with their digests."""
    base: ImageRef | None = None
    """The layers of this image stay: it has to be what the image was built on."""
    upto: int | None = Field(default=None, ge=1)
    """The number, from 1, of the highest layer to be merged; those above stay. None: the topmost."""


class StripRequest(TransformRequest):
    """Take paths out of an image, and out of each of its layers."""

    kind = "strip"

    paths: list[str] = Field(min_length=1)
    """Patterns as a shell's, from the root; ``*`` matches slashes too, and a directory goes with all in it."""
    level: int | None = None
    source_date_epoch: Epoch | None = None


class FlattenRequest(Request):
    """Write the tree of an image as a directory or as one plain tar."""

    kind = "flatten"

    image: ImageRef
    output: AbsolutePath
    """Must not exist yet. Where the tag leads to several images and no platform is named: a directory that gets
    one tree for each, ``linux_amd64`` or ``linux_amd64.tar``."""
    form: Literal["directory", "tar"] = "directory"
    platform: str | None = None
    """``os/arch[/variant]``."""
    rootless: bool = False
    """As an ordinary user: owners of a directory's entries go into ``user.rootlesscontainers``."""
    source_date_epoch: Epoch | None = None
    """Seconds; newer mtimes in a tar are clamped to it."""


VerdictName = Literal["safe", "review", "refuse"]


class RebaseCheckRequest(Request):
    """Look for what speaks against putting an image on another base; nothing is written."""

    kind = "rebase-check"

    image: ImageRef
    old_base: ImageRef
    """What the image was built on, exactly."""
    new_base: ImageRef


class RebaseRequest(TransformRequest):
    """Put an image on another base: the layers of the old one go, those of the new one come."""

    kind = "rebase"

    old_base: ImageRef
    new_base: ImageRef
    accept: VerdictName = "safe"
    """The worst verdict with which it is done all the same."""
    source_date_epoch: Epoch | None = None


class ComponentRule(Model):
    """A component of the operator's own, which comes before what package databases say."""

    name: str = Field(min_length=1)
    paths: list[str] = Field(min_length=1)
    """Patterns as a shell's, from the root; ``*`` matches slashes too."""


class RechunkRequest(RewriteRequest):
    """Lay an image out in layers by content: what changes together, and what images share, in one."""

    kind = "rechunk"

    budget: int = Field(default=DEFAULT_BUDGET, ge=2, le=MOST_LAYERS)
    """Layers at most, kept ones included."""
    plan: str | None = None
    """Digest of a plan in the target's store (:func:`layerfarm.jobs.relayer.rechunk.put_plan`). None: the plan is
    made for this image alone."""
    keep: int = Field(default=0, ge=0)
    """So many of the lowest layers stay, with their digests."""
    base: ImageRef | None = None
    """The layers of this image stay: it has to be what the image was built on."""
    components: list[ComponentRule] = []


class AnalyzeRequest(Request):
    """Take an image apart, and keep what was found beside the store; if that may only be read, in the user's cache."""

    kind = "analyze"

    image: ImageRef
    keep: int = Field(default=0, ge=0)
    base: ImageRef | None = None
    source_date_epoch: Epoch | None = None
    components: list[ComponentRule] = []


class ImageParts(Model):
    """What one image was found to consist of."""

    platform: str
    image: str
    """Digest of the manifest."""
    keep: int
    components: int
    files: int
    bytes: int
    """Of content."""


class AnalyzeResult(Result):
    """What an analysis found; the components themselves are in :func:`layerfarm.jobs.relayer.rechunk.kept_analysis`."""

    image: str
    top: str
    """Digest of what the tag names."""
    images: list[ImageParts]
    kept_in: str
    """The layout beside which they are kept: the image's own, or that in the user's cache directory."""
    warnings: list[str] = []


class ImageChange(Model):
    """What became of one image."""

    platform: str
    old: str
    """Digest of its manifest."""
    new: str
    """The same where nothing had to be done."""
    layers_before: int
    layers_after: int
    bytes_before: int
    """Compressed bytes of its layers."""
    bytes_after: int
    proof: str | None = None
    """Digest of the proof's manifest, a referrer of the new image; None where nothing was done."""


class TransformResult(Result):
    """What a transform made."""

    image: str
    """Store and tag of the new image."""
    old: str
    """Digest of what the tag of the old one names: a manifest or an index."""
    new: str
    images: list[ImageChange]
    bytes_before: int
    """Compressed bytes of all layers, each counted once."""
    bytes_after: int
    referrers: int = 0
    """Manifests beside the images (attestations, SBOMs …) that were carried over to the new ones."""
    unchanged: bool
    """There was nothing to do; the tag names the old image."""
    warnings: list[str] = []


class RebaseVerdict(Model):
    """What was found for one image."""

    platform: str
    verdict: VerdictName
    concerns: list[str] = []
    """What speaks against it, the worst first."""
    concerns_total: int = 0
    packages: list[str] = []
    """Packages of the base that change, as ``name old -> new``."""
    packages_total: int = 0


class RebaseCheckResult(Result):
    """What speaks against a rebase, for each image."""

    image: str
    verdict: VerdictName
    """The worst of all."""
    images: list[RebaseVerdict]
    warnings: list[str] = []


class RebaseResult(TransformResult):
    """What a rebase made, and with which evidence."""

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
