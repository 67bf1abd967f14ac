"""JSON documents: only what every other reader would take for the same document."""

from __future__ import annotations

import pytest

from layerfarm.jobs.errors import LimitExceeded, MalformedDocument
from layerfarm.jobs.store import Index, encode_document, parse_document

EMPTY = '{"schemaVersion": 2, "manifests": []}'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32-le", "utf-8-sig"])
def test_only_utf_8_without_a_mark_is_json(encoding: str) -> None:
    with pytest.raises(MalformedDocument, match=r"not a JSON document.*: here$"):
        parse_document(Index, EMPTY.encode(encoding), "here")


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[]", b'{"schemaVersion": NaN}', b'{"x": "\\udc00"}', b"[" * 9999])
def test_invalid_documents_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedDocument):
        parse_document(Index, raw, "here")


def test_unknown_fields_may_be_deep_but_not_so_deep_that_passing_them_on_fails() -> None:
    """Found by the fuzzer: pydantic reads what it then cannot write into the message of a unit."""

    def nested(depth: int) -> bytes:
        return EMPTY[:-1].encode() + b', "x": ' + b"[" * depth + b"]" * depth + b"}"

    document = parse_document(Index, nested(63), "here")
    assert encode_document(document) == nested(63).replace(b" ", b"")
    with pytest.raises(LimitExceeded, match="nested deeper than 64"):
        parse_document(Index, nested(64), "here")
