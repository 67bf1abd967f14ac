from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs import limits as limits_module
from layerfarm.jobs.errors import BlobNotFound, DigestMismatch, LimitExceeded, SizeMismatch
from layerfarm.jobs.image import Resolved, listings
from layerfarm.jobs.image.layers import read_layer
from layerfarm.jobs.image.listings import Listing, decode, list_layer
from layerfarm.jobs.layer.stack import Read
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import UNREAD, cache_path, result_path, stale_results, user_cache, write_result
from layerfarm.jobs.tar.reader import Member
from layerfarm.jobs.tar.sparse import Holes
from tests.unit.image.images import image, special, tar

LAYER = tar(
    ("d", None), ("d/f", b"x" * 3000), special("d/same", tarfile.LNKTYPE, "d/f"), special("null", tarfile.CHRTYPE)
)


@pytest.fixture
def made(layout: Layout) -> Resolved:
    return image(layout, [LAYER])


def kept() -> list[Path]:
    return sorted((cache_path() / ".layerfarm/notes/listings").glob("*"))


def listed(layout: Layout, made: Resolved) -> list[Read]:
    ((layer, diff_id),) = made.layers
    return list(list_layer(layout, layer, diff_id))


def spoil(layout: Layout, made: Resolved) -> Path:
    """Change the layer's blob, not its size."""
    blob = layout.blob_path(made.manifest.layers[0].digest)
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(content)))
    return blob


numbers = st.integers(0, 2**32 - 1)
members = st.builds(
    Member,
    name=st.binary(min_size=1, max_size=300),
    type=st.sampled_from(b"0123456"),
    mode=st.integers(0, 0o7777),
    uid=numbers,
    gid=numbers,
    size=st.integers(0, 2**63 - 1),
    mtime=st.integers(-(2**63) * 10**9, (2**63 - 1) * 10**9),
    link=st.binary(max_size=300),
    device=st.one_of(st.just((0, 0)), st.tuples(numbers, numbers)),
    atime=st.one_of(st.none(), st.integers(-(2**80), 2**80)),
    xattrs=st.lists(st.tuples(st.binary(), st.binary()), max_size=3).map(tuple),
    holes=st.one_of(
        st.none(),
        st.builds(
            Holes,
            st.integers(0, 2**63),
            st.lists(st.tuples(st.integers(0, 2**63), st.integers(1, 2**63)), max_size=3).map(tuple),
        ),
    ),
)


def read_of(member: Member, digest: bytes) -> Read:
    return Read(member, digest.hex() if member.type == 0x30 else None)


@given(st.lists(st.builds(read_of, members, st.binary(min_size=32, max_size=32)), max_size=8))
def test_a_listing_holds_all_that_was_read(reads: list[Read]) -> None:
    listing = Listing()
    for read in reads:
        listing.add(read)
    content = listing.encode()
    assert content is not None
    found = decode(content)
    assert found is not None
    assert list(found) == reads


@pytest.mark.parametrize("change", [{"mtime": 2**100}, {"uid": 2**32}, {"size": 2**64}, {"link": b"x" * 70_000}])
def test_a_number_beyond_those_of_a_filesystem_is_not_recorded(change: dict[str, Any]) -> None:
    listing = Listing()
    listing.add(Read(Member(b"f", 0x30, 0o644, 0, 0, 0, 0, b"", (0, 0))._replace(**change), "00" * 32))
    assert listing.encode() is None


def test_a_layer_is_read_once(layout: Layout, made: Resolved) -> None:
    ((layer, diff_id),) = made.layers
    first = listed(layout, made)
    assert first == list(read_layer(layout, layer, diff_id))
    spoil(layout, made)
    told: list[int] = []
    assert list(list_layer(layout, layer, diff_id, told.append)) == first
    assert sum(told) == layer.size
    with pytest.raises(DigestMismatch):
        list(read_layer(layout, layer, diff_id))


def test_a_layer_that_is_missing_or_has_another_size_is_an_error_all_the_same(layout: Layout, made: Resolved) -> None:
    listed(layout, made)
    blob = spoil(layout, made)
    blob.write_bytes(b"short")
    with pytest.raises(SizeMismatch):
        listed(layout, made)
    blob.unlink()
    with pytest.raises(BlobNotFound):
        listed(layout, made)


def test_only_a_verified_layer_is_listed(layout: Layout, made: Resolved) -> None:
    ((layer, diff_id),) = made.layers
    with pytest.raises(DigestMismatch):
        list(list_layer(layout, layer, "sha256:" + "0" * 64))
    begun = list_layer(layout, layer, diff_id)
    next(begun)
    assert isinstance(begun, Generator)
    begun.close()
    spoil(layout, made)
    with pytest.raises(DigestMismatch):
        listed(layout, made)
    assert kept() == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, "cut", "changed"])
def test_a_damaged_listing_is_replaced(layout: Layout, made: Resolved, damage: bytes | str) -> None:
    first = listed(layout, made)
    (path,) = kept()
    right = path.read_bytes()
    if damage == "cut":
        damage = right[:-3]
    elif damage == "changed":
        damage = right[:-10] + bytes([right[-10] ^ 1]) + right[-9:]
    assert isinstance(damage, bytes)
    path.write_bytes(damage)
    assert listed(layout, made) == first
    assert path.read_bytes() == right


def test_smaller_limits_hold_for_a_layer_that_was_listed(
    layout: Layout, made: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(layout, made)
    small = Limits(entries=2)
    for module in (limits_module, listings):
        monkeypatch.setattr(module, "limits", lambda: small)
    monkeypatch.setattr("layerfarm.jobs.layer.stack.process_limits", lambda: small)
    with pytest.raises(LimitExceeded, match="more than 2 entries"):
        listed(layout, made)


def test_listings_of_another_user_are_neither_read_nor_written(
    layout: Layout, made: Resolved, as_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(layout, made)
    listings._cache_at.cache_clear()
    os.chown(cache_path(), 4242, 4242)
    spoil(layout, made)
    with pytest.raises(DigestMismatch):
        listed(layout, made)


def test_a_listing_beside_the_image_is_not_believed(layout: Layout, made: Resolved) -> None:
    listed(layout, made)
    shutil.copytree(cache_path() / ".layerfarm/notes", layout.path / ".layerfarm/notes", dirs_exist_ok=True)
    shutil.rmtree(cache_path())
    listings._cache_at.cache_clear()
    spoil(layout, made)
    with pytest.raises(DigestMismatch):
        listed(layout, made)


def test_results_beyond_the_size_of_the_cache_are_stale_the_longest_unread_first() -> None:
    cache = user_cache()
    now = 1_000_000_000.0
    for age, name in enumerate(("newest", "middle", "oldest")):
        write_result(cache, "listings", name, bytes(100))
        os.utime(result_path(cache, "listings", name), (now - age, now - age))
    assert stale_results(cache, now) == []
    assert [path.name for path, _ in stale_results(cache, now, 200)] == ["oldest"]
    assert [path.name for path, _ in stale_results(cache, now, 199)] == ["middle", "oldest"]
    assert {path.name for path, _ in stale_results(cache, now + UNREAD, 0)} == {"newest", "middle", "oldest"}
