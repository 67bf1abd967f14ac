"""The documents of an image: manifest (manifest.md) and configuration (config.md)."""

from __future__ import annotations

import posixpath
import re
from calendar import isleap, monthrange
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_MANIFEST, Descriptor, Document
from layerfarm.jobs.store.descriptor import Digest, StringMap, empty_if_null

ANNOTATION_UNCOMPRESSED_SIZE = "ci.umo.uncompressed_blob_size"
"""umoci's annotation on a compressed layer: bytes of the tar stream."""
ANNOTATION_CODEC = "dev.layerfarm.codec"
"""Codec, library and version, level and block size of a layer (law 1, docs/architecture.md)."""


class AnyManifest(Document):
    """A manifest of an image or an artifact (manifest.md)."""

    schema_version: Literal[2] = Field(default=2, alias="schemaVersion")
    media_type: str | None = Field(default=None, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType")
    config: Descriptor
    layers: Annotated[list[Descriptor], BeforeValidator(empty_if_null)] = Field(default_factory=list)
    subject: Descriptor | None = None
    annotations: StringMap | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_ambiguity(cls, value: Any) -> Any:
        """Refuse a document that could also be read as an index (CVE-2021-41190)."""
        if isinstance(value, dict):
            if "manifests" in value:
                raise ValueError("a manifest must not have 'manifests' (CVE-2021-41190)")
            if value.get("mediaType") not in (None, "", MEDIA_TYPE_MANIFEST):
                raise ValueError(f"mediaType of a manifest is {str(value['mediaType'])[:100]!r}")
        return value


class Manifest(AnyManifest):
    """An image manifest."""

    layers: Annotated[list[Descriptor], BeforeValidator(empty_if_null)]

    @model_validator(mode="after")
    def _is_of_an_image(self) -> Manifest:
        if self.config.media_type != MEDIA_TYPE_CONFIG:
            raise ValueError(f"config has media type {self.config.media_type[:100]!r}, not that of an image")
        return self


class ConfigSection(Document):
    """The ``config`` object of an image configuration: how to run it."""

    user: str | None = Field(default=None, alias="User")
    exposed_ports: dict[str, Any] | None = Field(default=None, alias="ExposedPorts")
    env: list[str] | None = Field(default=None, alias="Env")
    entrypoint: list[str] | None = Field(default=None, alias="Entrypoint")
    cmd: list[str] | None = Field(default=None, alias="Cmd")
    volumes: dict[str, Any] | None = Field(default=None, alias="Volumes")
    working_dir: str | None = Field(default=None, alias="WorkingDir")
    labels: StringMap | None = Field(default=None, alias="Labels")
    stop_signal: str | None = Field(default=None, alias="StopSignal")


class RootFS(Document):
    """The layers of an image by the digests of their uncompressed streams."""

    type: Literal["layers"] = "layers"
    diff_ids: Annotated[list[Digest], BeforeValidator(empty_if_null)]


class HistoryEntry(Document):
    """One build step of an image; each without ``empty_layer`` made a layer."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class ImageConfig(Document):
    """An image configuration."""

    created: str | None = None
    author: str | None = None
    architecture: str | None = None
    os: str | None = None
    variant: str | None = None
    config: ConfigSection | None = None
    rootfs: RootFS
    history: list[HistoryEntry] | None = None


# --- paths of an image -----------------------------------------------------------------------------


def masked_paths(config: ImageConfig, given: Sequence[str], mask_volumes: bool = True) -> list[str]:
    """Return the paths whose changes a repack omits: those given, and the image's volumes unless switched off.

    A volume at the root masks nothing, as in umoci: the new image would lose every change.
    """
    volumes = (config.config.volumes if config.config else None) or {}
    return [*given, *(sorted(path for path in volumes if not names_root(path)) if mask_volumes else ())]


def names_root(path: str) -> bool:
    """Return True if ``path``, absolute or not, is empty or the root of an image after cleaning."""
    return posixpath.normpath(f"/{path.lstrip('/')}") == "/"


# --- times: RFC 3339, always explicit, never read from the clock here (law 1, docs/architecture.md) ------

SECONDS: Final = range(-62_135_596_800, 253_402_300_800)
"""Seconds since the epoch that RFC 3339 can express: the years 1 to 9999."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


def timestamp(seconds: int) -> str:
    """Format seconds since the epoch as RFC 3339 in UTC.

    Raises:
        RequestError: the year would have more than four digits, or be before 1.
    """
    if seconds not in SECONDS:
        raise RequestError("time is out of range", where=str(seconds))
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def is_timestamp(text: str) -> bool:
    """Return True for a time by the grammar of RFC 3339 5.6 (image-spec config.md), as Go reads it.

    Go programs refuse the whole config otherwise: ``T`` and ``Z`` must be capitals, without leap seconds, the day must
    exist in its month, and years start at 0000.
    """
    found = _RFC3339.fullmatch(text)
    if found is None:
        return False
    year, month, day = (int(found[name]) for name in ("year", "month", "day"))
    # 2000 and 2001 represent leap years and other years: Go has a year 0000, Python does not.
    return 1 <= month <= 12 and 1 <= day <= monthrange(2000 if isleap(year) else 2001, month)[1]


def check_timestamp(text: str) -> str:
    """Return ``text``, checked by :func:`is_timestamp`.

    Raises:
        RequestError: it is not RFC 3339.
    """
    if not is_timestamp(text):
        raise RequestError("not an RFC 3339 time", where=text[:100], hint="write 2006-01-02T15:04:05Z")
    return text


def instant(text: str) -> tuple[int, str] | None:
    """Return a time that sorts: the seconds since the epoch, and the digits of the fraction of a second.

    None: ``text`` is not a time (:func:`is_timestamp`), or of the year 0.
    """
    if not is_timestamp(text) or text.startswith("0000"):
        return None
    zone = re.search(r"(?:Z|[+-].{5})$", text[19:])
    assert zone is not None
    whole = datetime.fromisoformat(text[:19] + zone.group())
    return (whole - _EPOCH) // timedelta(seconds=1), text[19 : 19 + zone.start()].strip(".").rstrip("0")


def as_go_writes(text: str) -> str:
    """Return an RFC 3339 time as Go (time.RFC3339Nano), and so umoci, skopeo and Docker, writes it.

    Offset 0 is ``Z``, and the fraction has no trailing zeros.
    """
    time, offset = text[:19], text[19:]
    fraction = re.match(r"(?:\.[0-9]+)?", offset)
    assert fraction is not None
    zone = offset[fraction.end() :]
    return time + fraction.group().rstrip("0").rstrip(".") + ("Z" if zone[1:] == "00:00" else zone)
