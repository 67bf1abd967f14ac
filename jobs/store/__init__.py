"""The OCI image layout as a shared content-addressed store: the only writer of ``blobs/`` and ``index.json``."""

from jobs.store.descriptor import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_LAYER,
    MEDIA_TYPE_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Platform,
    check_digest,
)
from jobs.store.document import Document, encode_document, parse_document
from jobs.store.indexfile import PRIVATE_DIRECTORY
from jobs.store.ingest import Ingest
from jobs.store.janitor import janitor
from jobs.store.layout import Layout
from jobs.store.refname import check_refname
from jobs.store.verify import VerifiedReader

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
