"""The policies of a catalog file: transforms of images, with their options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from layerfarm.jobs.relayer.referrers import Choice

CompressionChoice = Literal["auto", "gzip", "estargz", "zstd", "zstd:chunked", "none"]


class Section(BaseModel):
    """A mapping of the file. Unknown keys are errors; nothing is converted to another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def checked(check: Callable[[str], object]) -> AfterValidator:
    """Keep a text as it is, if ``check`` raises no ValueError."""

    def keep(text: str) -> str:
        check(text)
        return text

    return AfterValidator(keep)


def _check_image(text: str) -> None:
    path, _, tag = text.partition(":")
    if not path or not tag:
        raise ValueError("not LAYOUT:TAG")


class Rule(Section):
    """Files that form a component of their own, regardless of packages."""

    name: str = Field(min_length=1)
    paths: tuple[str, ...] = Field(min_length=1, strict=False)
    """Patterns of :mod:`fnmatch` on paths without their first slash; ``*`` matches slashes too."""


class _Remaking(Section):
    referrers: Choice = "leave"
    """Copy SBOMs and other referrers of the old image that apply to the new one, or leave them."""


class _Keeping(_Remaking):
    level: int | None = None
    """Compression level."""
    keep: int = Field(default=0, ge=0)
    """The number of lowest layers that stay unchanged."""


class _Writing(_Remaking):
    source_date_epoch: int | None = Field(default=None, alias="source-date-epoch")
    """Seconds; newer times of files become this value, which the proof allows."""


class Rechunk(_Keeping, _Writing):
    """Split into layers by content, together with all other images of this kind."""

    transform: Literal["rechunk"]
    compress: CompressionChoice = "auto"
    budget: int = Field(default=64, ge=2, le=120)
    """Maximum number of layers of one image."""
    components: tuple[Rule, ...] = Field(default=(), strict=False)
    only_if_saves: Annotated[float, Field(ge=0, lt=100)] | Literal["off"] = Field(default=0, alias="only-if-saves")
    """Percentage of the bytes pulled from tag to tag that the plan must save; else a repository stays unchanged."""


class Recompress(_Keeping):
    """Recompress the same layers."""

    transform: Literal["recompress"]
    compress: Literal["gzip", "estargz", "zstd", "zstd:chunked", "none"]


class Squash(_Keeping, _Writing):
    """One layer above the kept ones."""

    transform: Literal["squash"]
    compress: CompressionChoice = "auto"


class Strip(_Writing):
    """Remove paths from all layers."""

    transform: Literal["strip"]
    level: int | None = None
    paths: tuple[str, ...] = Field(min_length=1, strict=False)
    """Shell patterns from the root; a directory is removed with its content."""


class Rebase(_Writing):
    """Replace the base. Both bases are images, ``LAYOUT:TAG``."""

    transform: Literal["rebase"]
    old_base: Annotated[str, checked(_check_image)] = Field(alias="old-base")
    new_base: Annotated[str, checked(_check_image)] = Field(alias="new-base")
    accept: Literal["safe", "review", "refuse"] = "safe"
    """The worst verdict that is accepted."""


class Keep(Section):
    """Copy to the destination unchanged."""

    transform: Literal["keep"]


Transform = Annotated[Rechunk | Recompress | Squash | Rebase | Strip | Keep, Field(discriminator="transform")]


class Policy(Section):
    """The transform of the images whose names match."""

    match: tuple[str, ...] = Field(min_length=1, strict=False)
    """Patterns of :mod:`fnmatch` on ``REPOSITORY:TAG``."""
    do: Transform

    @field_validator("match", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
