"""The OCI image layout as a shared content-addressed store: the only writer of ``blobs/`` and ``index.json``."""

from layerfarm.jobs.store.atomic_file import PRIVATE_DIRECTORY
from layerfarm.jobs.store.blob import Ingest, VerifiedReader
from layerfarm.jobs.store.descriptor import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_LAYER,
    MEDIA_TYPE_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Platform,
    check_digest,
    check_refname,
)
from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.janitor import janitor
from layerfarm.jobs.store.layout import Layout

__all__ = [
    "MEDIA_TYPE_CONFIG",
    "MEDIA_TYPE_INDEX",
    "MEDIA_TYPE_LAYER",
    "MEDIA_TYPE_MANIFEST",
    "PRIVATE_DIRECTORY",
    "REF_NAME",
    "Descriptor",
    "Document",
    "Index",
    "Ingest",
    "Layout",
    "Platform",
    "VerifiedReader",
    "check_digest",
    "check_refname",
    "encode_document",
    "janitor",
    "parse_document",
]
