"""Secrets of notifications: tokens and signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.catalog.serve.authentication import has_token, is_signed, read_secrets

OLD, NEW = b"the-old-secret-of-the-farm", b"the-new-secret-of-the-farm"
BOTH = (OLD, NEW)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("secret", [OLD.decode(), NEW.decode()])
def test_a_token_comes_in_any_form_that_a_registry_sends(secret: str) -> None:
    for value in (f"Bearer {secret}", f"bearer {secret}", secret, basic(f"zot:{secret}"), basic(f":{secret}")):
        assert has_token("harbor", BOTH, {"authorization": value}, "")
    assert has_token("quay", BOTH, {}, secret)


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer wrong", "wrong", basic("u:wrong"), basic("no colon"), "Basic %%%", "é"]
)
def test_any_other_token_is_refused(value: str) -> None:
    assert not has_token("distribution", BOTH, {"authorization": value}, "")


def test_only_quay_may_have_its_token_in_the_address() -> None:
    for kind in ("distribution", "harbor", "zot", "github"):
        assert not has_token(kind, BOTH, {}, OLD.decode())
    assert not has_token("quay", BOTH, {}, "")


def test_a_signature_is_that_of_the_documentation_of_github() -> None:
    secret, body = b"It's a Secret to Everybody", b"Hello, World!"
    header = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert is_signed((secret,), {"x-hub-signature-256": header}, body)
    assert is_signed((OLD, secret), {"x-hub-signature-256": header}, body)
    assert not is_signed((secret,), {"x-hub-signature-256": header}, body + b"!")
    assert not is_signed((secret,), {"x-hub-signature-256": header.upper()}, body)
    assert not is_signed((OLD,), {"x-hub-signature-256": header}, body)


@pytest.mark.parametrize("algorithm", ["sha1", "sha512", "", "SHA256"])
def test_a_signature_of_another_algorithm_is_refused(algorithm: str) -> None:
    right = hmac.new(OLD, b"body", hashlib.sha256).hexdigest()
    assert is_signed(BOTH, {"x-hub-signature-256": f"sha256={right}"}, b"body")
    for header in (f"{algorithm}={right}", right, f"sha256={right} ", "sha256=", "sha256=é", ""):
        given = is_signed(BOTH, {"x-hub-signature-256": header}, b"body")
        assert given is (header == f"sha256={right} "), header
    assert not is_signed(BOTH, {}, b"body")


def test_secrets_are_read_from_files_named_like_the_registries(tmp_path: Path) -> None:
    (tmp_path / "harbor").write_bytes(OLD + b"\n" + NEW + b"\n\n")
    (tmp_path / "github").write_bytes(b"  " + OLD)
    (tmp_path / "other").write_bytes(b"x")
    assert read_secrets(tmp_path) == {"harbor": BOTH, "github": (OLD,)}


@pytest.mark.parametrize("content", [b"", b"\n", b"too short\n", OLD + b"\nshort"])
def test_a_secret_that_is_missing_or_too_short_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "zot").write_bytes(content)
    with pytest.raises(RequestError, match=r"shorter than 16 characters: .*/zot"):
        read_secrets(tmp_path)


def test_missing_and_unreadable_secrets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no secrets: .* distribution, harbor, quay, github, zot"):
        read_secrets(tmp_path)
    (tmp_path / "zot").mkdir()
    with pytest.raises(RequestError, match="secret cannot be read, Is a directory"):
        read_secrets(tmp_path)
