"""Descriptors, digests and tags of the image-spec (descriptor.md, annotations.md), and the index that holds them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from layerfarm.jobs.errors import InvalidReference
from layerfarm.jobs.store.document import Document

MEDIA_TYPE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation that holds a tag in index.json (annotations.md)."""
SUBJECT: Final = "dev.layerfarm.subject"
"""Annotation of an entry of index.json without a tag: the digest of the manifest that it refers to.

A referrer (:mod:`layerfarm.jobs.relayer.referrers`) is kept as long as its subject. As an ordinary root it would keep
its subject for ever, because a manifest leads to its subject.
"""

_KNOWN = re.compile("sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_COMPONENT = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_DOCKER_COMPONENT = r"[A-Za-z0-9]+(?:(?:[._]|__|-+)[A-Za-z0-9]+)*"
_DOCKER_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_REFNAME = re.compile(
    rf"{_COMPONENT}(?:/{_COMPONENT})*|(?:{_DOCKER_COMPONENT}/)*(?:{_DOCKER_COMPONENT}:)?{_DOCKER_TAG}"
)


def check_digest(text: str) -> str:
    """Return ``text`` if it is a digest by the grammar of descriptor.md "Digests"; raise ValueError if not."""
    if not _KNOWN.fullmatch(text) and (text.startswith(("sha256:", "sha512:")) or not _DIGEST.fullmatch(text)):
        raise ValueError(f"not a digest: {text[:200]!r}")
    return text


Digest = Annotated[str, AfterValidator(check_digest)]


def _nulls_as_go(value: Any) -> Any:
    # Go reads a null in a map of strings as the empty string.
    if isinstance(value, dict) and None in value.values():
        return {key: "" if item is None else item for key, item in value.items()}
    return value


StringMap = Annotated[dict[str, str], BeforeValidator(_nulls_as_go)]
"""Annotations or labels."""


class Platform(Document):
    """The platform an image runs on (image-index.md); some tools write ``{}``."""

    architecture: str | None = None
    os: str | None = None
    variant: str | None = None


class Descriptor(Document):
    """Media type, digest and size of a blob."""

    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0)
    urls: list[str] | None = None
    annotations: StringMap | None = None
    data: str | None = None
    artifact_type: str | None = Field(default=None, alias="artifactType")
    platform: Platform | None = None


def empty_if_null(value: Any) -> Any:
    """Convert null to an empty list: Go programs write a nil slice as null."""
    return [] if value is None else value


class Index(Document):
    """An image index: ``index.json`` of a layout, or a nested index blob (image-index.md)."""

    schema_version: int = Field(default=2, alias="schemaVersion", ge=2, le=2)
    media_type: str | None = Field(default=None, alias="mediaType")
    manifests: Annotated[list[Descriptor], BeforeValidator(empty_if_null)] = Field(default_factory=list)
    annotations: StringMap | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_ambiguity(cls, value: Any) -> Any:
        """Refuse a document that could also be read as a manifest (CVE-2021-41190)."""
        if isinstance(value, dict):
            if "config" in value or "layers" in value:
                raise ValueError("an index must not have 'config' or 'layers' (CVE-2021-41190)")
            if value.get("mediaType") not in (None, "", MEDIA_TYPE_INDEX):
                raise ValueError(f"mediaType of an index is {str(value['mediaType'])[:100]!r}")
        return value


# --- tags -----------------------------------------------------------------------------------------


def check_refname(text: str) -> str:
    """Return ``text`` if it is a tag by annotations.md, "org.opencontainers.image.ref.name", or by Docker's grammar.

    The former is a SHOULD. Registries hold tags that it does not allow, such as ``v1_``, ``main__2024`` and
    ``_edge``, and repositories such as ``my---app`` (skopeo#1740); distribution's reference.go defines theirs.

    Raises:
        InvalidReference: it is neither.
    """
    if not _REFNAME.fullmatch(text):
        raise InvalidReference(
            "not a valid tag",
            where=text[:200],
            hint="letters and digits, joined by one of - . _ : @ + or --, and /; or a name and tag as Docker allows",
        )
    return text


def named(descriptor: Descriptor, tag: str) -> Descriptor:
    """Return the entry of index.json that tags ``descriptor``. Raises InvalidReference as :func:`check_refname`."""
    check_refname(tag)
    return descriptor.model_copy(update={"annotations": {**(descriptor.annotations or {}), REF_NAME: tag}})


def subject_of(entry: Descriptor) -> str | None:
    """Return the digest that an entry of index.json refers to, by its annotation."""
    return (entry.annotations or {}).get(SUBJECT)


def name_of(entry: Descriptor) -> str | None:
    """Return the tag of this entry of index.json, if any."""
    return (entry.annotations or {}).get(REF_NAME)
