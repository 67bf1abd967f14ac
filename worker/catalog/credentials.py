"""Find the credentials of a registry where skopeo finds them: containers-auth.json(5) and Docker's config.json."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_HUB: Final = "docker.io"
_HUB_KEY: Final = "https://index.docker.io/v1/"
"""The key of Docker Hub in Docker's files."""
_HELPER_ANSWERS: Final = 30.0
"""Seconds within which a credential helper must answer."""
_TOKEN_USER: Final = "<token>"
"""The user that a credential helper returns for an identity token."""


@dataclass(frozen=True)
class Credentials:
    """A user and password, or an identity token alone."""

    user: str
    password: str
    identity_token: bool = False

    @property
    def basic(self) -> str:
        """Return the value of an ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def credentials_for(host: str, repository: str, auth_file: str | None) -> Credentials | None:
    """Return the first credentials found for a repository; None: there are none.

    A file that cannot be read or parsed is skipped: skopeo reports it when it is called.
    """
    for path in [Path(auth_file)] if auth_file else _files():
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and (found := _in_file(content, host, repository)) is not None:
            return found
    return None


def _files() -> Iterator[Path]:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    yield Path(runtime) / "containers/auth.json" if runtime else Path(f"/run/containers/{os.getuid()}/auth.json")
    home = Path(os.environ.get("HOME", "/"))
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json"
    yield Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _in_file(content: dict[str, Any], host: str, repository: str) -> Credentials | None:
    helpers = content.get("credHelpers")
    if isinstance(helpers, dict) and isinstance(helper := helpers.get(host), str):
        return _from_helper(helper, host)
    entries = content.get("auths")
    if isinstance(entries, dict):
        for key in _keys(host, repository):
            if isinstance(entry := entries.get(key), dict) and (found := _from_entry(entry)) is not None:
                return found
        for key, entry in entries.items():
            if _host_of(key) == host and isinstance(entry, dict) and (found := _from_entry(entry)) is not None:
                return found
    if isinstance(store := content.get("credsStore"), str) and store:
        return _from_helper(store, _HUB_KEY if host == _HUB else host)
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """Return Podman's keys, the most specific first: HOST/A/B, HOST/A, HOST."""
    parts = [host, *repository.split("/")]
    for length in range(len(parts), 0, -1):
        yield "/".join(parts[:length])


def _host_of(key: str) -> str:
    """Return the host of one of Docker's keys, which may be URLs."""
    host = key.partition("://")[2] or key
    host, _, path = host.partition("/")
    if path not in ("", "v1/", "v2/", "v1", "v2"):
        return ""
    return _HUB if host == "index.docker.io" else host


def _from_entry(entry: dict[str, Any]) -> Credentials | None:
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return Credentials("", token, identity_token=True)
    if not isinstance(encoded := entry.get("auth"), str) or not encoded:
        return None
    try:
        user, colon, password = base64.b64decode(encoded).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Credentials(user, password.rstrip("\0")) if colon else None


def _from_helper(name: str, server: str) -> Credentials | None:
    """Ask a program by the protocol of docker-credential-helpers."""
    if "/" in name:
        return None
    try:
        done = subprocess.run(
            [f"docker-credential-{name}", "get"],
            input=server.encode(),
            capture_output=True,
            check=True,
            timeout=_HELPER_ANSWERS,
        )
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None
    return Credentials(user, secret, identity_token=user == _TOKEN_USER)
