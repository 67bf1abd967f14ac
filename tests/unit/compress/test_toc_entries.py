"""Tables of contents of zstd:chunked and eStargz layers, as text."""

from __future__ import annotations

import pytest

from layerfarm.jobs.compress.toc.entries import parse_toc

TEXT = '{"version": 1, "entries": [{"type": "dir", "name": "d/"}]}'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32-le"])
def test_table_is_utf8_and_nothing_else(encoding: str) -> None:
    """RFC 8259 8.1: Go's readers know no other encoding."""
    assert [entry.name for entry in parse_toc(TEXT.encode())["entries"]] == ["d/"]
    with pytest.raises(ValueError, match=r"decode|Expecting"):
        parse_toc(TEXT.encode(encoding))
