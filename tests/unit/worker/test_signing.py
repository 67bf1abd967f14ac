"""Signatures of requests: what they speak for, and keys that are not to be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from layerfarm.jobs.errors import RequestError, Untrusted
from layerfarm.worker.security.signing import Keyring, Signed, read_keys, sign

SIGNED = Signed("5481e43f0ef6", "build", "interactive", "ci@build-7", 1, '{"rootfs": "/srv/a"}')
KEY, OTHER = SecretStr("k" * 32), SecretStr("o" * 32)
HOUR = 3_600_000


def keyring(**keys: tuple[SecretStr, ...]) -> Keyring:
    return Keyring({"ci@build-7": (KEY,), **keys}, HOUR)


def test_signature_of_the_submitter_is_taken() -> None:
    keyring().check(SIGNED, sign(KEY, SIGNED, 5000))


@pytest.mark.parametrize(
    "altered",
    [
        {"job_id": "another"},
        {"kind": "unpack"},
        {"traffic": "bulk"},
        {"submitter": "mallory"},
        {"format": 2},
        {"request": '{"rootfs": "/srv/b"}'},
    ],
)
def test_nothing_that_is_signed_can_be_altered(altered: dict[str, object]) -> None:
    signature = sign(KEY, SIGNED, 5000)
    with pytest.raises(Untrusted, match="not valid for its submitter"):
        keyring(mallory=(OTHER,)).check(SIGNED._replace(**altered), signature)  # type: ignore[arg-type]


def test_expiry_and_nonce_are_signed_too() -> None:
    version, _, nonce, code = sign(KEY, SIGNED, 5000).split(":")
    for forged in (f"{version}:6000:{nonce}:{code}", f"{version}:5000:{'0' * 32}:{code}"):
        with pytest.raises(Untrusted, match="not valid for its submitter"):
            keyring().check(SIGNED, forged)


@pytest.mark.parametrize("signature", ["", "1:5000:abc:def", "2" + sign(KEY, SIGNED, 5000)[1:], "x" * 500])
def test_malformed_signature_is_reported(signature: str) -> None:
    with pytest.raises(Untrusted, match="request is not signed"):
        keyring().check(SIGNED, signature)


def test_key_of_another_submitter_signs_for_that_submitter_only() -> None:
    with pytest.raises(Untrusted):
        keyring(mallory=(OTHER,)).check(SIGNED, sign(OTHER, SIGNED, 5000))


def test_signature_is_good_until_it_expires_and_not_for_ever() -> None:
    ring, signature = keyring(), sign(KEY, SIGNED, 5000)
    ring.check_time(signature, 4999)
    with pytest.raises(Untrusted, match="has expired"):
        ring.check_time(signature, 5000)
    with pytest.raises(Untrusted, match="valid for too long"):
        ring.check_time(sign(KEY, SIGNED, HOUR + 2), 1)


def test_no_two_signatures_are_alike() -> None:
    assert sign(KEY, SIGNED, 5000) != sign(KEY, SIGNED, 5000)


def test_old_and_new_key_are_both_taken_while_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ci@build-7"
    path.write_text("n" * 32 + "\n" + "k" * 32 + "\n")
    path.chmod(0o600)
    ring = Keyring.load(tmp_path, HOUR)
    ring.check(SIGNED, sign(KEY, SIGNED, 5000))
    ring.check(SIGNED, sign(read_keys(path)[0], SIGNED, 5000))


def test_keys_that_are_not_to_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ci"
    with pytest.raises(RequestError, match="directory of keys is empty"):
        Keyring.load(tmp_path, HOUR)
    with pytest.raises(RequestError, match="cannot be read"):
        Keyring.load(tmp_path / "none", HOUR)
    path.write_text("k" * 32)
    path.chmod(0o644)
    with pytest.raises(RequestError, match="readable by other users"):
        Keyring.load(tmp_path, HOUR)
    path.chmod(0o600)
    for bad in ("", "short"):
        path.write_text(bad)
        with pytest.raises(RequestError, match="fewer than 32 characters"):
            Keyring.load(tmp_path, HOUR)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(RequestError, match="not text"):
        Keyring.load(tmp_path, HOUR)


def test_key_is_never_shown() -> None:
    assert "k" * 8 not in f"{KEY} {KEY!r} {keyring()!r}"
