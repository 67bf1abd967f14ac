"""Certificates for a Redis that is spoken to over TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

_EXTENSIONS = """basicConstraints=CA:FALSE
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth,clientAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""
"""Fields of a certificate that RFC 5280 requires and Python checks since 3.13 (``ssl.VERIFY_X509_STRICT``)."""


def certificates(directory: Path, server: str, name: str, alternative: str) -> Path:
    """An authority of one's own, and the server's key and certificate, signed by it; returns the authority's.

    ``server``: what its files are called. ``alternative``: its subjectAltName, which clients hold its address against.
    """

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(*new, "-x509", "-days", "2", *usage, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{server}.key", "-out", f"{server}.csr")
    (directory / "names").write_text(f"{_EXTENSIONS}subjectAltName={alternative}\n")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
    openssl("x509", "-req", "-in", f"{server}.csr", "-out", f"{server}.crt", *signed)
    return directory / "ca.crt"
