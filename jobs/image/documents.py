"""The documents of an image: manifest (manifest.md) and configuration (config.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_MANIFEST, Descriptor, Document
from layerfarm.jobs.store.descriptor import Digest, StringMap, empty_if_null

ANNOTATION_UNCOMPRESSED_SIZE = "ci.umo.uncompressed_blob_size"
"""umoci's annotation on a compressed layer: bytes of the tar stream."""
ANNOTATION_CODEC = "dev.layerfarm.codec"
"""How the layer was compressed: codec, its library and version, level, block size (DESIGN law 1)."""


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
        """CVE-2021-41190: a document that could also be read as an index is neither."""
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
    """One step of an image's making; every one that is not an ``empty_layer`` made a layer."""

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
