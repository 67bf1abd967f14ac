"""Pulls in part: a layer whose table of contents cannot be used counts whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.catalog.costs import Pullable
from layerfarm.worker.catalog.partial import InPart
from tests.unit.compress import chunked_reader, stargz_reader
from tests.unit.compress.chunked_reader import PREFIX, Blob
from tests.unit.layer.archives import archive, entry

TAR = archive(entry("a", content=b"a" * 700), entry("b", content=b"b" * 5000))
CHUNKED, STARGZ = chunked_reader.pack(TAR), stargz_reader.pack(TAR)
Change = Callable[[dict[str, Any]], object]


def changed(blob: Blob, change: Change) -> Blob:
    if blob is STARGZ:
        toc = stargz_reader.toc_of(blob)
        change(toc)
        return stargz_reader.with_toc(blob.data[: stargz_reader.toc_place(blob)], json.dumps(toc).encode())
    toc = chunked_reader.toc_of(blob)
    change(toc)
    return chunked_reader.with_toc(blob, json.dumps(toc).encode(), b"")


def fetched(place: Path, blob: Blob) -> tuple[int, Descriptor]:
    """Bytes that a client without any other layer fetches, and the layer."""
    layout = Layout.create(place / "layout")
    put = layout.put(blob.data, "application/vnd.oci.image.layer.v1.tar")
    layer = put.model_copy(update={"annotations": blob.annotations})
    image = Pullable((layer.digest,), {layer.digest: layer.size}, {layer.digest: layer})
    return InPart([layout]).fetched(image, Pullable((), {})), layer


@pytest.mark.parametrize("blob", [CHUNKED, STARGZ])
def test_a_layer_with_a_table_costs_its_files_and_the_table(blob: Blob, tmp_path: Path) -> None:
    count, layer = fetched(tmp_path, changed(blob, lambda toc: None))
    assert 0 < count < layer.size


def outside(toc: dict[str, Any]) -> None:
    for each in toc["entries"]:
        if each["name"] == "a":
            each.update(offset=1 << 40, **({"endOffset": 1 << 41} if "endOffset" in each else {}))


@pytest.mark.parametrize("blob", [CHUNKED, STARGZ])
@pytest.mark.parametrize("change", [outside, lambda toc: toc.update(version=2)])
def test_a_layer_with_an_unusable_table_counts_whole(blob: Blob, change: Change, tmp_path: Path) -> None:
    count, layer = fetched(tmp_path, changed(blob, change))
    assert count == layer.size


def test_a_layer_whose_annotations_contradict_the_blob_counts_whole(tmp_path: Path) -> None:
    wrong = f"sha256:{'0' * 64}"
    chunked = CHUNKED._replace(annotations=CHUNKED.annotations | {f"{PREFIX}manifest-checksum": wrong})
    for number, blob in enumerate((chunked, STARGZ._replace(annotations={stargz_reader.DIGEST: wrong}))):
        count, layer = fetched(tmp_path / str(number), blob)
        assert count == layer.size


def test_a_layer_whose_table_exceeds_the_limit_counts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_LIMIT_TOC_BYTES", "100")
    for number, blob in enumerate((CHUNKED, STARGZ)):
        count, layer = fetched(tmp_path / str(number), blob)
        assert count == layer.size
