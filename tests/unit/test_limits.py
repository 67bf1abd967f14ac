"""Every limit: its default, how it is set, and that exceeding it is an error that says how to raise it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import zstandard

from layerfarm.jobs.compress import Codec, Compression, decompress
from layerfarm.jobs.errors import LimitExceeded, RequestError
from layerfarm.jobs.image import UnpackOptions, pack_layer, resolve, unpack_rootfs
from layerfarm.jobs.image.check_layer import check_layer
from layerfarm.jobs.image.users import lookup_user
from layerfarm.jobs.layer import Extractor
from layerfarm.jobs.limits import NAMES, Limits, limits, set_limit
from layerfarm.jobs.mtree import read_manifest
from layerfarm.jobs.store import Layout, parse_document
from layerfarm.jobs.store.descriptor import MEDIA_TYPE_INDEX, REF_NAME, Index
from tests.trees import file, tree
from tests.unit.image.images import image, tar
from tests.unit.layer.archives import archive, entry

DOCUMENTED = Path(__file__).parents[2] / "docs/limits.md"


def layer(*members: Any, **options: Any) -> Callable[[Path], object]:
    """Apply one layer to an empty tree."""

    def run(place: Path) -> None:
        (place / "root").mkdir()
        with Extractor(place / "root") as extractor:
            extractor.apply(io.BytesIO(archive(*members, **options)))
            extractor.finish()

    return run


def unpacked(*layers: bytes) -> Callable[[Path], object]:
    """Unpack an image of gzip layers."""

    def run(place: Path) -> None:
        layout = Layout.create(place / "store")
        image(layout, layers, compress=lambda raw: gzip.compress(raw, mtime=0))
        unpack_rootfs(layout, place / "rootfs", resolve(layout, "t"), UnpackOptions())

    return run


def nested(depth: int) -> Callable[[Path], object]:
    """Resolve a tag that leads through so many indexes."""

    def run(place: Path) -> None:
        layout = Layout.create(place / "store")
        descriptor = image(layout, [tar(("f", b""))]).descriptor
        for _ in range(depth):
            index = Index.model_validate({"schemaVersion": 2, "manifests": [descriptor]})
            descriptor = layout.put_document(index, MEDIA_TYPE_INDEX)
        layout.tag("nested", descriptor)
        resolve(layout, "nested")

    return run


def passwd(place: Path) -> None:
    lookup_user(tree(place / "rootfs", {"etc/passwd": file(b"#" * 200)}), "0")


def tags(place: Path) -> None:
    layout = Layout.create(place / "store")
    descriptor = layout.put(b"x", "text/plain")
    for number in range(5):
        layout.tag(f"t{number}", descriptor)


def document(place: Path) -> None:
    value: dict[str, Any] = {"schemaVersion": 2, "manifests": [], "annotations": {REF_NAME: "x" * 300}}
    parse_document(Index, json.dumps(value).encode(), "here")


def deep(place: Path) -> None:
    parse_document(Index, b'{"schemaVersion": 2, "x": [[[{"y": [1, [2]]}]]]}', "here")


def zstd_window(place: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=20, write_content_size=False)
    blob = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = blob.compress(b"x" * (3 << 20)) + blob.flush()
    decompress(io.BytesIO(packed), Compression.ZSTD).read()


def toc(place: Path) -> None:
    layout = Layout.create(place / "store")
    layer = pack_layer(layout, [tar(("f", b"x"))], Codec(Compression.ZSTD_CHUNKED)).descriptor
    assert check_layer(layout, layer).toc_faults == []


def sparse(**records: str) -> Callable[[Path], object]:
    return layer(entry("s", content=b"ab", pax={f"GNU.sparse.{key}": value for key, value in records.items()}))


CASES: dict[str, tuple[Callable[[Path], object], int, int]] = {
    # The reader of the input, a value that it exceeds, and one that it just fits.
    "entries": (layer(*(entry(f"f{n}") for n in range(5))), 4, 5),
    "path_bytes": (layer(entry("d/" + "n" * 88)), 89, 90),
    "pax_bytes": (layer(entry("f", pax={"comment": "c" * 500})), 512, 520),
    "xattr_bytes": (layer(entry("f", xattrs={"trusted.x": b"v" * 91})), 99, 100),
    "stream_bytes": (unpacked(tar(("f", b"x" * 5000))), 10_000, 10_240),
    "unpacked_bytes": (unpacked(tar(("f", b"x" * 300)), tar(("f", b"x" * 300))), 599, 600),
    "hole_bytes": (sparse(size="102", numblocks="1", map="100,2"), 99, 100),
    "sparse_parts": (layer(entry("s", content=b"2\n0\n1\n5\n1\n".ljust(512, b"\0") + b"ab", pax={
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "6"})), 1, 2),
    "zstd_window": (zstd_window, (1 << 20) - 1, 1 << 20),
    "toc_bytes": (toc, 200, 2000),
    "document_bytes": (document, 300, 400),
    "document_depth": (deep, 6, 7),
    "index_bytes": (tags, 500, 5000),
    "index_depth": (nested(3), 2, 3),
    "manifests": (nested(3), 3, 4),
    "passwd_bytes": (passwd, 199, 200),
    "mtree_line_bytes": (lambda place: list(read_manifest(io.BytesIO(b"#" * 3_000_000))), 2_000_000, 4_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_exceeding_a_limit_is_an_error_that_says_how_to_raise_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, too_low, enough = CASES[name]
    for number, place in ((too_low, tmp_path / "low"), (enough, tmp_path / "enough")):
        place.mkdir()
        monkeypatch.setenv(f"LAYERFARM_LIMIT_{name.upper()}", str(number))
        if number == enough:
            run(place)
        else:
            with pytest.raises(LimitExceeded) as caught:
                run(place)
            assert str(number) in caught.value.what
            assert f"--limit {name}=N or LAYERFARM_LIMIT_{name.upper()}" in str(caught.value)


def test_ratio_and_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = unpacked(tar(("zeros", bytes(3 << 20))))
    monkeypatch.setenv("LAYERFARM_LIMIT_RATIO", "100")
    (tmp_path / "below").mkdir()
    bomb(tmp_path / "below")  # the floor is 4 GiB
    monkeypatch.setenv("LAYERFARM_LIMIT_RATIO_FLOOR", "1M")
    (tmp_path / "above").mkdir()
    with pytest.raises(LimitExceeded, match=r"more than 100 times its size.*--limit ratio=N"):
        bomb(tmp_path / "above")
    assert os.listdir(tmp_path / "above") == ["store"]


def test_every_limit_has_a_test() -> None:
    assert {*CASES, "ratio", "ratio_floor"} == set(NAMES)


def test_the_table_in_the_documentation_has_every_limit_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([0-9,]+)([KMGT]?) \|", DOCUMENTED.read_text(), re.MULTILINE)
    shift = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
    assert {name: int(number.replace(",", "")) << shift[unit] for name, number, unit in rows} == asdict(Limits())


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("2K", 2048), ("3m", 3 << 20), ("1G", 1 << 30), ("5T", 5 << 40)])
def test_numbers_may_have_a_unit(text: str, value: int) -> None:
    environment: dict[str, str] = {}
    set_limit(f"entries={text}", environment)
    assert environment == {"LAYERFARM_LIMIT_ENTRIES": text}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERFARM_LIMIT_ENTRIES", text)
        assert limits() == Limits(entries=value)
    assert limits() == Limits()


@pytest.mark.parametrize("text", ["entries", *(f"entries={bad}" for bad in ("", "0", "-1", "1.5", "many")), "x=1"])
def test_unknown_limits_and_invalid_numbers_are_refused(text: str) -> None:
    environment: dict[str, str] = {}
    with pytest.raises(RequestError):
        set_limit(text, environment)
    assert environment == {}


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_LIMIT_ENTRYS", "5")
    with pytest.raises(RequestError, match=r"unknown limit 'entrys'.*one of entries, path_bytes"):
        limits()
