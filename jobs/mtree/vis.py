"""Names and xattrs as manifests write them: vis(3), any bytes as printable ASCII without white space.

Encoding is that of go-mtree, VIS_WHITE | VIS_OCTAL | VIS_GLOB (umoci.md D "Format"): a byte that is not
printable ASCII, a space, one of ``* ? [ #`` becomes ``\\ooo``, a backslash is doubled. Decoding also
reads what NetBSD and bsdtar write, the C-style and meta forms of unvis(3).
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from layerfarm.jobs.errors import MtreeSyntaxError
from layerfarm.jobs.mtree.model import Xattrs

_UNSAFE = re.compile(rb"[^!-~]|[*?\[#\\]")
_PLAIN_IN_LIST = bytes(code for code in range(128) if code == 0 or _UNSAFE.match(bytes((code,))) is None)
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
    b"$": b"",  # marks a hidden place, represents nothing
    b"\n": b"",
}


def encode(name: bytes) -> bytes:
    """``name`` as printable ASCII; the same object if nothing needs encoding."""
    if _UNSAFE.search(name) is None:
        return name
    return _UNSAFE.sub(lambda found: _ESCAPES[found[0][0]], name)


def all_plain(names: str) -> bool:
    """Return True if no name of a NUL-joined list needs encoding.

    Deleting all plain characters takes a tenth of the time of a search for another one.
    """
    return names.isascii() and not names.encode("ascii").translate(None, _PLAIN_IN_LIST)


def decode(text: bytes) -> bytes:
    """Return the bytes that ``text`` stands for; the same object if nothing is encoded.

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


def parse_xattr(token: bytes) -> tuple[bytes, bytes]:
    """Name and value of ``NAME=BASE64``, the text after ``xattr.``.

    go-mtree does not encode an ``=`` in a name. The name ends at the first one after which the rest is base64, which
    has none but at its end.
    """
    at = token.find(b"=")
    while at >= 0:
        try:
            value = a2b_base64(token[at + 1 :], strict_mode=True) if len(token) > at + 1 else b""
            return decode(token[:at]), value
        except Base64Error:
            at = token.find(b"=", at + 1)
    raise MtreeSyntaxError("xattr is not base64", where=token[:200])


def xattr_keywords(xattrs: Xattrs, *, exact: bool = True) -> str:
    """`` xattr.NAME=BASE64`` for each xattr.

    ``exact``: an ``=`` in a name is encoded, so that the first one always ends the name; go-mtree does not.
    """
    text = ""
    for name, value in xattrs:
        encoded = encode(name)
        if exact:
            encoded = encoded.replace(b"=", b"\\075")
        text += f" xattr.{encoded.decode('ascii')}={b2a_base64(value, newline=False).decode('ascii')}"
    return text
