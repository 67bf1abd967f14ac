"""Certificates for a Redis that is spoken to over TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificates(directory: Path, server: str, name: str, alternative: str) -> Path:
    """An authority of one's own, and the server's key and certificate, signed by it; returns the authority's.

    ``server``: what its files are called. ``alternative``: its subjectAltName, which clients hold its address against.
    """

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-x509", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{server}.key", "-out", f"{server}.csr")
    (directory / "names").write_text(f"subjectAltName={alternative}")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
    openssl("x509", "-req", "-in", f"{server}.csr", "-out", f"{server}.crt", *signed)
    return directory / "ca.crt"
