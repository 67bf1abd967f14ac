from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.errors import MtreeSyntaxError
from layerfarm.jobs.mtree import vis


@given(st.binary())
def test_decode_undoes_encode(name: bytes) -> None:
    assert vis.decode(vis.encode(name)) == name


@given(st.binary())
def test_encoded_is_printable_ascii_without_white_space_or_globs(name: bytes) -> None:
    assert all(0x21 <= byte <= 0x7E and byte not in b"*?[#" for byte in vis.encode(name))


@given(st.lists(st.text(st.characters(exclude_characters="\0/"))))
def test_all_plain_agrees_with_encoding_each_name(names: list[str]) -> None:
    raw = [name.encode("utf-8", "surrogatepass") for name in names]
    assert vis.all_plain("\0".join(names)) == all(vis.encode(name) is name for name in raw)


def test_D_format_vis_encoding_is_the_one_umoci_wrote() -> None:
    assert vis.encode(b"new\nline\ttab [glob]*?#\\ back") == rb"new\012line\011tab\040\133glob]\052\077\043\\\040back"
    assert vis.encode(b"nonutf8-\xff\xfe") == rb"nonutf8-\377\376"
    assert vis.encode(b"\x01\x7f") == rb"\001\177"


def test_plain_name_is_passed_through_as_the_same_object() -> None:
    name = b"plain-name_1.2~!]{}$&'()=\"^"
    assert vis.encode(name) is name
    assert vis.decode(name) is name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (rb"a\040b", b"a b"),
        (rb"a\0b", b"a\0b"),
        (rb"\7x", b"\7x"),
        (rb"\12x", b"\nx"),
        (rb"\377", b"\xff"),
        (rb"\1234", b"S4"),
        (rb"\\", b"\\"),
        (rb"\\040", rb"\040"),
        (rb"\a\b\t\n\v\f\r\s\E", b"\a\b\t\n\v\f\r \x1b"),
        (rb"\^A\^?", b"\x01\x7f"),
        (rb"\M-a", b"\xe1"),
        (rb"\M^A\M^?", b"\x81\xff"),
        (rb"\x41", b"A"),
        (rb"\#\*\"", b'#*"'),
        (rb"a\$b", b"ab"),
        (b"a\\\nb", b"ab"),
    ],
)
def test_decode_reads_every_form_of_unvis(text: bytes, name: bytes) -> None:
    assert vis.decode(text) == name


@pytest.mark.parametrize("text", [b"\\", b"a\\", rb"\q", rb"\9", rb"\Mx", rb"\M", rb"\^", b"\\\xff", b"\\ "])
def test_decode_refuses_invalid_escapes(text: bytes) -> None:
    with pytest.raises(MtreeSyntaxError):
        vis.decode(text)
