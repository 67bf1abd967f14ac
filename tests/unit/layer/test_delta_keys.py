"""Sort keys read from a deltas file are those of its deltas."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.errors import LayerError, MtreeSyntaxError, UnsafePath
from layerfarm.jobs.layer import delta_keys, read_keys
from layerfarm.jobs.layer.delta_keys import key_of
from layerfarm.jobs.mtree import Delta, DeltaKind, write_deltas

EXTRA, MODIFIED, MISSING = DeltaKind.EXTRA, DeltaKind.MODIFIED, DeltaKind.MISSING
NAMES = st.sampled_from(
    [b"a", b".a", b"..", b".", b"...", b"b.c", b"sp ace", b"new\nline", b"back\\slash", b"\xff", b""]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join).filter(bool)
DELTAS = st.lists(st.builds(Delta, st.sampled_from([*DeltaKind]), PATHS), max_size=20)


def written(deltas: list[Delta]) -> io.BytesIO:
    out = io.BytesIO()
    write_deltas(deltas, out)
    out.seek(0)
    return out


@pytest.mark.parametrize("at_once", [1, 20, 1 << 20])
@given(deltas=DELTAS)
def test_keys_are_those_of_the_deltas(at_once: int, deltas: list[Delta]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_keys, "_AT_ONCE", at_once)
        try:
            keys = set(map(key_of, deltas))
        except (UnsafePath, LayerError) as error:
            with pytest.raises(type(error)):
                read_keys(written(deltas))
        else:
            assert read_keys(written(deltas)) == keys


def test_usual_lines_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = [Delta(MODIFIED, b"."), Delta(EXTRA, b"a"), Delta(MODIFIED, b"b"), Delta(EXTRA, b"d/..e")]
    expected = set(map(key_of, deltas))
    monkeypatch.setattr(delta_keys, "read_deltas", lambda stream: pytest.fail("lines were parsed"))
    assert read_keys(written(deltas)) == expected


@pytest.mark.parametrize("path", [b"..", b"a/../b", b"a//b", b"/a", b"a/", b"./a", b"a/.", b"a\0b"])
@pytest.mark.parametrize("kind", [EXTRA, MODIFIED, MISSING])
def test_a_path_that_leads_elsewhere_is_refused(kind: DeltaKind, path: bytes) -> None:
    with pytest.raises(UnsafePath):
        read_keys(io.BytesIO(b"extra .\n%b %b\nextra b\n" % (kind.value.encode(), path)))


@pytest.mark.parametrize(
    "text", [b"extra a", b"extra a\nextra \n", b"extra a\nextr b\n", b"missing\n", b"\n", b"extra \\q\n"]
)
def test_a_damaged_file_is_refused(text: bytes) -> None:
    with pytest.raises(MtreeSyntaxError):
        read_keys(io.BytesIO(text))


def test_a_root_that_is_missing_is_refused() -> None:
    with pytest.raises(LayerError, match="cannot delete the root"):
        read_keys(io.BytesIO(b"missing .\n"))
