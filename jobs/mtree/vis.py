"""vis(3) encoding of names: any bytes as printable ASCII without white space.

Encoding is that of go-mtree, VIS_WHITE | VIS_OCTAL | VIS_GLOB (umoci.md D "Format"): a byte that is not
printable ASCII, a space, one of ``* ? [ #`` becomes ``\\ooo``, a backslash is doubled. Decoding also
reads what NetBSD and bsdtar write, the C-style and meta forms of unvis(3).
"""

from __future__ import annotations

import re

from layerfarm.jobs.errors import MtreeSyntaxError

_UNSAFE = re.compile(rb"[^!-~]|[*?\[#\\]")
# The names of a directory joined by NUL are tested in one search; see :func:`all_plain`.
_UNSAFE_IN_LIST = re.compile("[^!-~\0]|[*?\\[#\\\\]")
_ESCAPES = [b"\\\\" if code == ord("\\") else b"\\%03o" % code for code in range(256)]

_ESCAPED = re.compile(
    rb"\\(?:([0-3][0-7]{2}|[0-7]{1,2})"  # octal
    rb"|x([0-9A-Fa-f]{1,2})"  # VIS_HTTPSTYLE's cousin, read by NetBSD
    rb"|M-([!-~])|M\^([?-_a-z])|\^([?-_a-z])"  # meta, meta control, control
    rb"|([^0-9A-Za-z^\x00-\x20\x7f-\xff]|[abtnvfrsE\n]))?",
    re.DOTALL,
)
_C_STYLE = {
    b"a": b"\a",
    b"b": b"\b",
    b"t": b"\t",
    b"n": b"\n",
    b"v": b"\v",
    b"f": b"\f",
    b"r": b"\r",
    b"s": b" ",
    b"E": b"\x1b",
    b"$": b"",  # marks a hidden place, stands for nothing
    b"\n": b"",
}


def encode(name: bytes) -> bytes:
    """``name`` as printable ASCII; the same object where nothing needs encoding."""
    if _UNSAFE.search(name) is None:
        return name
    return _UNSAFE.sub(lambda found: _ESCAPES[found[0][0]], name)


def all_plain(names: str) -> bool:
    """Whether no name of a NUL-joined list needs encoding: one search instead of one for each name."""
    return _UNSAFE_IN_LIST.search(names) is None


def decode(text: bytes) -> bytes:
    """The bytes that ``text`` stands for; the same object where nothing is encoded.

    Raises:
        MtreeSyntaxError: a backslash begins no known escape.
    """
    if b"\\" not in text:
        return text
    return _ESCAPED.sub(_unescape, text)


def _unescape(found: re.Match[bytes]) -> bytes:
    octal, hexadecimal, meta, meta_control, control, plain = found.groups()
    if octal is not None:
        return bytes((int(octal, 8),))
    if plain is not None:
        return _C_STYLE.get(plain, plain)
    if meta is not None:
        return bytes((meta[0] | 0x80,))
    if meta_control is not None:
        return bytes((_control(meta_control) | 0x80,))
    if control is not None:
        return bytes((_control(control),))
    if hexadecimal is not None:
        return bytes((int(hexadecimal, 16),))
    raise MtreeSyntaxError("not an escape of vis(3)", where=found.string)


def _control(letter: bytes) -> int:
    return 0x7F if letter == b"?" else letter[0] & 0x1F
