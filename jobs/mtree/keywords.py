"""The values of mtree keywords, between the text of a manifest and the fields of an Entry."""

from __future__ import annotations

import os
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from layerfarm.jobs.errors import MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.model import Xattrs

BILLION = 1_000_000_000

_DEVICE_FORMATS = frozenset(
    b"native 386bsd 4bsd bsdos freebsd hpux isc linux netbsd osf1 sco solaris sunos svr3 svr4 ultrix".split()
)


def parse_time(text: bytes) -> int:
    """Nanoseconds of ``seconds[.nanoseconds]``; what stands after the dot is a number, not a fraction.

    NetBSD's and bsdtar's manifests say ``1.5`` for five nanoseconds; go-mtree pads to nine digits.
    """
    seconds, dot, nanoseconds = text.partition(b".")
    if not dot:
        return int(seconds) * BILLION
    if not nanoseconds.isdigit() or len(nanoseconds) > 9:
        raise ValueError(f"not a time: {text!r}")
    return int(seconds) * BILLION + int(nanoseconds)


def parse_device(text: bytes) -> tuple[int, int]:
    """Major and minor of ours (``8:1``), bsdtar's (``native,8,1``) or NetBSD's (one number) form."""
    if b":" in text:
        major, minor = text.split(b":")
        return int(major), int(minor)
    if b"," in text:
        kind, major, minor = text.split(b",")
        if kind not in _DEVICE_FORMATS:
            raise ValueError(f"not a device format: {kind!r}")
        return int(major, 0), int(minor, 0)
    number = int(text, 0)
    if not 0 <= number < 1 << 64:
        raise ValueError("not a device number")
    return os.major(number), os.minor(number)


def parse_xattr(token: bytes) -> tuple[bytes, bytes]:
    """Name and value of ``NAME=BASE64``, the text after ``xattr.``.

    go-mtree leaves an ``=`` in a name as it is. The name ends at the first one after which the rest is
    base64; inside base64 there is none but at the end.
    """
    at = token.find(b"=")
    while at >= 0:
        try:
            value = a2b_base64(token[at + 1 :], strict_mode=True) if len(token) > at + 1 else b""
            return vis.decode(token[:at]), value
        except Base64Error:
            at = token.find(b"=", at + 1)
    raise MtreeSyntaxError("xattr is not base64", where=token[:200])


def xattr_keywords(xattrs: Xattrs) -> str:
    """`` xattr.NAME=BASE64`` for each, as go-mtree writes them."""
    return "".join(
        f" xattr.{vis.encode(name).decode('ascii')}={b2a_base64(value, newline=False).decode('ascii')}"
        for name, value in xattrs
    )


def exact_xattr_keywords(xattrs: Xattrs) -> str:
    """The same with ``=`` in a name encoded, so that the first one always ends it: for our own files."""
    return "".join(
        f" xattr.{_exact(name)}={b2a_base64(value, newline=False).decode('ascii')}" for name, value in xattrs
    )


def _exact(name: bytes) -> str:
    return vis.encode(name).replace(b"=", b"\\075").decode("ascii")
